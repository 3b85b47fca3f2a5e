"""Marks and shared fixtures.

Every test is marked with the name of its folder, so that `-m "not e2e"` needs no decorators.
Images and boots are dear: each is made once and shared.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.record import ImageRecord
from polydev.image.store import ImageStore
from polydev.image.verify import VerifyOptions, verify
from polydev.lab import Lab, down, up
from polydev.progress import Steps
from polydev.settings import Settings
from tests.hosts import DeployedHost, lab_host

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECIPE = ROOT / "golden" / "recipe.yaml"
SPECS = TESTS / "spec" / "image"
KINDS = frozenset({"unit", "spec", "integration", "e2e", "bench"})


def pytest_configure() -> None:
    # Where the tests run as a background job, SIGINT is ignored, and so it would be by every
    # process that they start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in KINDS:
            item.add_marker(kind)


@pytest.fixture(autouse=True)
def logs_of_its_own() -> Iterator[None]:
    """Where a test sends logs to is closed with it, and must not be written to by the next."""
    yield
    for handler in list(logging.getLogger().handlers):
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The machine's cache of layers, but a store and a state of the tests' own."""
    cache = Settings.from_environment().cache
    own = tmp_path_factory.mktemp("polydev")
    return Settings(store=own / "store", cache=cache, state=own / "state")


@pytest.fixture(scope="session")
def store(settings: Settings) -> ImageStore:
    return ImageStore(settings.store)


@pytest.fixture(scope="session")
def image(settings: Settings, store: ImageStore) -> ImageRecord:
    """The browser VM's image, built."""
    return build(load_recipe(RECIPE), settings, store, Steps(), BuildOptions()).record


@pytest.fixture(scope="session")
def verified_image(settings: Settings, store: ImageStore, image: ImageRecord) -> ImageRecord:
    """The same image after a cold boot and all specs."""
    return verify(image.digest, settings, store, SPECS, Steps(), VerifyOptions())


@pytest.fixture(scope="session")
def host_lab(settings: Settings) -> Iterator[Lab]:
    """A bare host: nothing is deployed to it yet. It goes when the tests end."""
    name = f"t-{secrets.token_hex(3)}"
    lab = up(name, settings, Steps())
    yield lab
    down(name, settings)


@pytest.fixture(scope="session")
def bare_host(
    host_lab: Lab,
    settings: Settings,
    store: ImageStore,
    verified_image: ImageRecord,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeployedHost]:
    """The bare host with what would be deployed to it.

    The image lies in a store of its own: in the tests' one others become golden meanwhile.
    """
    own = ImageStore(tmp_path_factory.mktemp("host-store"))
    image = own.path(verified_image.digest)
    shutil.copytree(store.path(verified_image.digest), image, copy_function=os.link)
    own.promote(verified_image.digest)
    folders = replace(settings, store=own.root)
    with lab_host(host_lab, folders, tmp_path_factory.mktemp("logs")) as host:
        yield host


@pytest.fixture(scope="session")
def deployed(bare_host: DeployedHost) -> DeployedHost:
    """The host after its first deployment; each test leaves it as declared."""
    bare_host.deploy()
    return bare_host
