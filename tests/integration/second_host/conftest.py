"""A second host, for tests that run in parallel with those of the host of `./inv up`.

Each lane of tests/conftest.py that has files here has one.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polydev.image.store import ImageStore
from polydev.image_record import ImageRecord
from polydev.lab import up
from polydev.progress import Steps
from polydev.settings import Settings
from tests.hosts import SHARED_HOSTS, DeployedHost, bring_image, lab_host
from tests.images import link_image, said_to_be_verified
from tests.inv import Inv, own_inv
from tests.pooled_host import FOLDER, HOLDER, MAKER, POOLED, host_with_pool
from tests.sessions import operated


@pytest.fixture(scope="session")
def inv(tmp_path_factory: pytest.TempPathFactory) -> Inv:
    return own_inv(tmp_path_factory.mktemp("second"))


@pytest.fixture(scope="session")
def golden_settings(inv: Inv, store: ImageStore, image: ImageRecord) -> Settings:
    """Settings whose store has the image as its golden one, by hard links."""
    own = ImageStore(inv.settings.store)
    link_image(store, own, image.digest)
    own.write_record(said_to_be_verified(image))
    own.promote(image.digest)
    return inv.settings


@pytest.fixture(scope="session")
def deployed(
    inv: Inv,
    golden_settings: Settings,
    image: ImageRecord,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeployedHost]:
    """A lab after its first deployment; each test leaves it as declared.

    The host of `up` shows what it takes to send an image.
    """
    lab = up(inv.lab, golden_settings, Steps())
    try:
        bring_image(lab, ImageStore(golden_settings.store).path(image.digest))
        with lab_host(lab, golden_settings, tmp_path_factory.mktemp("logs")) as host:
            assert host.deploy().status == "succeeded"
            host.save()
            request.session.stash.setdefault(SHARED_HOSTS, {})["second"] = host
            yield host
    finally:
        inv("down")


@pytest.fixture(scope="package")
def templates_host(deployed: DeployedHost) -> Iterator[DeployedHost]:
    """The host with templates switched on; restored after the last file of the folder."""
    host = host_with_pool(deployed, 0)
    assert host.deploy(target="master-controller").status == "succeeded"
    yield host
    deployed.deploy(target="master-controller")
    with operated(deployed) as service:
        service.wait_until_nothing_held()
    # Its folder and what the holder has of it.
    deployed.inside(f"systemctl stop {MAKER}; rm -rf {FOLDER}/*; systemctl restart {HOLDER}")


@pytest.fixture(scope="package")
def pooled(templates_host: DeployedHost) -> DeployedHost:
    """The host with a pool, which ends with the templates."""
    host = host_with_pool(templates_host, POOLED)
    host.inside(f"systemctl start --wait {MAKER}")
    assert host.deploy(target="master-controller").status == "succeeded"
    return host
