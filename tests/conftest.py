"""Marks and shared fixtures.

Every test is marked with the name of its folder, so that `-m "not e2e"` needs no decorators.
Images, boots and hosts are expensive: each is made once and shared.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog
from xdist.scheduler import LoadScopeScheduling

from polydev.errors import MachineBusy
from polydev.host_setup import web_assets
from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.store import ImageStore
from polydev.image_record import ImageRecord
from polydev.lab import find as find_lab
from polydev.progress import Steps
from polydev.settings import Settings
from tests.hosts import SHARED_HOSTS, DeployedHost, lab_host
from tests.images import link_image
from tests.inv import Inv, own_inv

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECIPE = ROOT / "golden" / "recipe.yaml"
KINDS = frozenset({"unit", "spec", "integration", "e2e", "bench"})
# The files of each lane whose tests share a host, in their order.
HOST_LANES = {
    # What `up` made. Its VM costs the tests after it CPU time until the first file has ended it;
    # the last file ends the host.
    "up": (
        "e2e/test_desktop.py",
        "e2e/test_login.py",
        "integration/test_verify.py",
        "integration/test_deploy.py",
        "integration/test_rollback.py",
        "integration/test_credentials_host.py",
        "integration/test_operator_verbs.py",
        "integration/test_doctor.py",
        "e2e/test_down.py",
    ),
    # A host of their own, so that they run beside those of `up`: what deployments do to it.
    "second": (
        "integration/second_host/test_deploy_faults.py",
        "integration/second_host/test_isolation.py",
        "integration/second_host/test_vm_walls.py",
        "integration/second_host/test_deploy_postgres.py",
    ),
    # Another one: the VMs on it. The last files share its templates too.
    "third": (
        "integration/second_host/test_microvm.py",
        "integration/second_host/test_sessions.py",
        "integration/second_host/test_templates.py",
        "integration/second_host/test_session_page.py",
    ),
}
LANE_OF = {file: lane for lane, files in HOST_LANES.items() for file in files}
# In one process the files of the folder `second_host` share one host.
HOST_OF = {file: "up" if lane == "up" else "second" for file, lane in LANE_OF.items()}
# Files that share it as this fixture has made it, so that no failure resets it between them.
SHARED_STATE = "templates_host"
# The longest of the remaining files, which are started first.
LONG = ("integration/test_faults.py", "integration/test_template.py")
# Unit tests run beside `up`, whose image the other lanes take from the cache.
ORDER = (*HOST_LANES["up"], "unit", *HOST_LANES["second"], *HOST_LANES["third"], *LONG)
UP_ATTEMPTS = 5
# Characters of one value in the name of a test.
LONGEST_ID = 32
FAILED_IN = pytest.StashKey[dict[str, str]]()


def pytest_configure() -> None:
    # Labs of tests make no template, unless a test switches that on.
    os.environ["POLYDEV_LAB_TEMPLATES"] = "false"
    # Beside VMs that boot, an example and its data may take as long as they like. Each run tries
    # the same examples: `--hypothesis-seed=random` looks for new ones.
    hypothesis.settings.register_profile(
        "lanes",
        deadline=None,
        derandomize=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("lanes")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Shorten a value that would make a test's name too long to read, or to select by."""
    if isinstance(val, str) and len(val) > LONGEST_ID:
        return f"{val[:LONGEST_ID]}..."
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in KINDS:
            item.add_marker(kind)
        fixtures = getattr(item, "fixturenames", ())
        lane = LANE_OF.get(file_of(item))
        if ("deployed" in fixtures and lane is None) or ("up" in fixtures and lane != "up"):
            raise pytest.UsageError(f"tests/conftest.py: HOST_LANES lacks {file_of(item)}")
    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives to the end: thousands of tests, and their modules."""
    gc.collect()
    gc.freeze()


class Lanes(LoadScopeScheduling):  # type: ignore[misc]  # the library has no types
    """Keeps the tests of a file in one process of pytest-xdist, and those of a shared host too."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return LANE_OF.get(file.removeprefix("tests/"), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    host = HOST_OF.get(file_of(item))
    if report.failed and host:
        item.session.stash.setdefault(FAILED_IN, {})[host] = state_of(item)
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Reset a shared host before the first test after a file in which one failed."""
    host = HOST_OF.get(file_of(item))
    failed_in = item.session.stash.get(FAILED_IN, {})
    if host not in failed_in or failed_in[host] == state_of(item):
        return
    del failed_in[host]
    shared_hosts = item.session.stash.get(SHARED_HOSTS, {})
    if host in shared_hosts:
        shared_hosts[host].reset()


def turn(item: pytest.Item) -> int:
    """The key by which tests are sorted: the longest lane first, beside which runs the rest."""
    file = file_of(item)
    place = "unit" if file.startswith("unit/") else file
    return ORDER.index(place) if place in ORDER else len(ORDER)


def state_of(item: pytest.Item) -> str:
    """Name the state of its host that a test needs: that of its file, or a shared one."""
    return SHARED_STATE if SHARED_STATE in getattr(item, "fixturenames", ()) else file_of(item)


def file_of(item: pytest.Item) -> str:
    """Path of the file of a test, from the folder of all tests."""
    inside = item.path.is_relative_to(TESTS)
    return (item.path.relative_to(TESTS) if inside else item.path).as_posix()


@pytest.fixture(autouse=True, scope="session")
def loggers_are_not_cached() -> Iterator[None]:
    """A cached logger would keep one test's configuration, and hide its lines from later tests."""
    configure = structlog.configure

    def configure_for_now(**words: Any) -> None:
        configure(**{**words, "cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", configure_for_now)
        yield


@pytest.fixture(autouse=True)
def logs_of_its_own() -> Iterator[None]:
    """Reset logging after each test, since the streams of a test are closed with it."""
    yield
    for handler in list(logging.getLogger().handlers):
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def logs_as_before(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Restore the logging configuration before the streams of a test are closed."""
    from polydev.controller.logs import QUIET

    loggers = [logging.getLogger(), *map(logging.getLogger, QUIET)]
    handlers, levels = loggers[0].handlers[:], [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = handlers
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    structlog.reset_defaults()


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
def image(
    settings: Settings, store: ImageStore, tmp_path_factory: pytest.TempPathFactory
) -> ImageRecord:
    """The browser VM's built image: one lane builds it, the others' stores have hard links."""
    base = tmp_path_factory.getbasetemp()
    shared = ImageStore((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "image")
    there = replace(settings, store=shared.root)
    record = build(load_recipe(RECIPE), there, shared, Steps(), BuildOptions()).record
    link_image(shared, store, record.digest)
    return record


@pytest.fixture(scope="session")
def node_modules(settings: Settings) -> Path:
    """The npm packages of the pages and of their tests, such as axe-core."""
    return web_assets.node_modules(ROOT, settings.cache, Steps())


@pytest.fixture(scope="session")
def packed_assets(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of others that the pages load, as the controller's wheel has them."""
    packed = tmp_path_factory.mktemp("packed")
    web_assets.pack(ROOT, node_modules, packed)
    return packed


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
        yield first_up(main_inv)
    finally:
        main_inv("down")


def first_up(inv: Inv) -> dict[str, Any]:
    """Return the answer of `./inv up`, tried anew while the machine is too busy for a verdict."""
    for _ in range(UP_ATTEMPTS):
        done = inv("up", "--json")
        if done.status == 0 or json.loads(done.stdout)["error"] != MachineBusy.code:
            break
        inv("down")
        shutil.rmtree(inv.settings.store)
    assert done.status == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


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
        request.session.stash.setdefault(SHARED_HOSTS, {})["up"] = host
        yield host
