"""Marks and shared fixtures.

Every test is marked with the name of its folder, so that `-m "not e2e"` needs no decorators.
Images, boots and hosts are expensive: each is made once and shared.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.record import ImageRecord
from polydev.image.store import ImageStore
from polydev.lab import find as find_lab
from polydev.progress import Steps
from polydev.settings import Settings
from tests.hosts import DeployedHost, lab_host
from tests.inv import Inv, own_inv

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECIPE = ROOT / "golden" / "recipe.yaml"
KINDS = frozenset({"unit", "spec", "integration", "e2e", "bench"})
# The files with tests of what `up` made, in their order. The VM costs the tests after it CPU time
# until the first file has ended it; the last file ends the host.
HOST_FILES = (
    "e2e/test_desktop.py",
    "integration/test_verify.py",
    "integration/test_deploy.py",
    "integration/test_deploy_faults.py",
    "integration/test_rollback.py",
    "integration/test_deploy_postgres.py",
    "integration/test_credentials_host.py",
    "integration/test_doctor.py",
    "integration/test_isolation.py",
    "integration/test_vm_walls.py",
    "integration/test_microvm.py",
    "integration/test_sessions.py",
    "e2e/test_down.py",
)
SHARED_HOST = pytest.StashKey[DeployedHost]()
FAILED_ON_HOST = pytest.StashKey[str]()


def pytest_configure() -> None:
    # Beside VMs that boot, an example may take as long as it likes.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile("lanes", deadline=None, suppress_health_check=slow)
    hypothesis.settings.load_profile("lanes")
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
        if "up" in getattr(item, "fixturenames", ()) and not is_on_host(item):
            raise pytest.UsageError(f"tests/conftest.py: HOST_FILES lacks {file_of(item)}")
    items.sort(key=turn)


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """Keeps the tests of a file in one lane of pytest-xdist, and those of the shared host too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "host" if file.removeprefix("tests/") in HOST_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and "CI" in os.environ and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"CI skips no test, and this one was skipped: {report.longrepr}"
    if report.failed and is_on_host(item):
        item.session.stash[FAILED_ON_HOST] = file_of(item)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reset the shared host before the first test after a file in which one failed."""
    stash = item.session.stash
    failed_in = stash.get(FAILED_ON_HOST, None)
    if failed_in is None or failed_in == file_of(item) or not is_on_host(item):
        return
    del stash[FAILED_ON_HOST]
    if SHARED_HOST in stash:
        stash[SHARED_HOST].reset()


def turn(item: pytest.Item) -> int:
    """The key by which tests are sorted: the longest lane first, beside which runs the rest."""
    return HOST_FILES.index(file_of(item)) if is_on_host(item) else len(HOST_FILES)


def is_on_host(item: pytest.Item) -> bool:
    return file_of(item) in HOST_FILES


def file_of(item: pytest.Item) -> str:
    """Path of the file of a test, from the folder of all tests."""
    inside = item.path.is_relative_to(TESTS)
    return (item.path.relative_to(TESTS) if inside else item.path).as_posix()


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
def main_inv(tmp_path_factory: pytest.TempPathFactory) -> Inv:
    """./inv with a store and a state of its own, for what all tests share."""
    return own_inv(tmp_path_factory.mktemp("up"))


@pytest.fixture(scope="session")
def up(main_inv: Inv) -> Iterator[dict[str, Any]]:
    """The answer of the main job, `./inv up`: an image, a VM of it and a deployed lab.

    It is done once, for all tests that need any of these.
    """
    try:
        yield main_inv.answer("up")
    finally:
        main_inv("down")


@pytest.fixture(scope="session")
def deployed(
    main_inv: Inv,
    up: dict[str, Any],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[DeployedHost]:
    """The lab after its first deployment; each test leaves it as declared.

    Where a test fails, the host is reset before the tests of the next file.
    """
    lab = find_lab(up["lab"], main_inv.settings)
    assert lab is not None
    with lab_host(lab, main_inv.settings, tmp_path_factory.mktemp("logs")) as host:
        host.save()
        request.session.stash[SHARED_HOST] = host
        yield host
