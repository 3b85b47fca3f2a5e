"""Shared parts of benches: ratios within one run instead of seconds, and images made once.

The plain image takes one processor two minutes. It is made beside the benches that take turns or
count CPU time, which need no more than the other one; all others begin when it is there.

Each result is printed and kept in a JSON file: POLYDEV_BENCH_REPORT, or .inv/bench.json.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from polydev.image.build import BuildOptions, BuildResult, build
from polydev.image.recipe import Recipe, load_recipe
from polydev.image.store import ImageStore
from polydev.progress import Steps
from polydev.settings import Settings
from tests.bench.plain import PlainImage, make_plain_image

ROOT = Path(__file__).resolve().parents[2]
ATTEMPTS = 3
# As a share of a cold build's time.
AGENT_BUILD_LIMIT = 0.15

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """`a` is ours, `b` what it is measured against."""

    name: str
    ratio: float
    a: float
    b: float
    unit: str
    limit: float


class Ratios:
    """Records a ratio, then asserts that it keeps its limit."""

    def __init__(
        self, file: Path, capture: pytest.CaptureFixture[str], results: list[Result]
    ) -> None:
        self.file = file
        self.capture = capture
        self.results = results

    def __call__(self, name: str, a: float, b: float, *, limit: float, unit: str = "s") -> None:
        result = Result(name, round(a / b, 4), round(a, 2), round(b, 2), unit, limit)
        self.results.append(result)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps([asdict(each) for each in self.results], indent=1) + "\n")
        line = (
            f"bench {name} ratio={result.ratio:.4f} a={a:.2f}{unit} b={b:.2f}{unit} limit={limit}"
        )
        with self.capture.disabled():
            print(f"\n{line}", flush=True)
        assert result.ratio <= limit, line


@pytest.fixture(scope="session")
def results() -> list[Result]:
    return []


@pytest.fixture
def ratio(capsys: pytest.CaptureFixture[str], results: list[Result]) -> Ratios:
    default = ROOT / ".inv" / "bench.json"
    return Ratios(Path(os.environ.get("POLYDEV_BENCH_REPORT", default)), capsys, results)


def quickest(measured: Callable[[], T], seconds: Callable[[T], float], good_seconds: float) -> T:
    """Return the quickest of at most three runs; stop at the first that is good enough.

    Of work that takes a few seconds, what else the machine has to do then is a large part.
    """
    results = []
    for _ in range(ATTEMPTS):
        results.append(measured())
        if seconds(results[-1]) <= good_seconds:
            break
    return min(results, key=seconds)


@dataclass(frozen=True)
class Checkout:
    """A copy of recipe and agent from the start of the run, since somebody may edit them."""

    root: Path

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.root / "golden" / "recipe.yaml")

    @property
    def agent_file(self) -> Path:
        return self.root / "src" / "polydev" / "agent" / "__init__.py"


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    leave = shutil.ignore_patterns("__pycache__", "node_modules")
    shutil.copytree(ROOT / "golden", made.root / "golden", symlinks=True, ignore=leave)
    package = made.root / "src" / "polydev"
    shutil.copytree(ROOT / "src/polydev/agent", package / "agent", ignore=leave)
    shutil.copy(ROOT / "src/polydev/__init__.py", package)
    return made


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with an empty store and cache: no package, layer or image is there yet."""
    own = tmp_path_factory.mktemp("polydev")
    return Settings(store=own / "store", cache=own / "cache", state=own / "state")


@pytest.fixture(scope="session")
def store(settings: Settings) -> ImageStore:
    return ImageStore(settings.store)


@pytest.fixture(scope="session")
def cold(
    settings: Settings,
    store: ImageStore,
    checkout: Checkout,
    plain_under_way: Future[PlainImage] | None,
) -> Iterator[BuildResult]:
    """The first build on a machine that has nothing, npm's cache included."""
    if plain_under_way:
        wait([plain_under_way])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("npm_config_cache", str(settings.state / "npm"))
        os.sync()
        result = build(checkout.recipe, settings, store, Steps(), BuildOptions())
    yield result
    shutil.rmtree(settings.cache)


@pytest.fixture(scope="session")
def touched(
    settings: Settings, store: ImageStore, checkout: Checkout, cold: BuildResult
) -> BuildResult:
    """A build after one file of the agent changed; afterwards the file is as it was."""
    before = checkout.agent_file.read_text()
    numbers = itertools.count()

    def build_again() -> BuildResult:
        checkout.agent_file.write_text(f"{before}# touched: {next(numbers)}\n")
        os.sync()
        return build(checkout.recipe, settings, store, Steps(), BuildOptions())

    try:
        good_seconds = AGENT_BUILD_LIMIT * cold.seconds
        return quickest(build_again, lambda result: result.seconds, good_seconds)
    finally:
        checkout.agent_file.write_text(before)


@pytest.fixture(autouse=True, scope="session")
def plain_under_way(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkout: Checkout
) -> Iterator[Future[PlainImage] | None]:
    """The plain image, which is made in the background from the start of the run."""
    if not any("plain" in fixtures_of(item) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("plain")
    os.sync()
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(make_plain_image, checkout.recipe, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def plain(plain_under_way: Future[PlainImage] | None) -> PlainImage:
    assert plain_under_way
    return plain_under_way.result()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the benches that need no image first, while the plain image is being made."""
    items.sort(key=lambda item: "cold" in fixtures_of(item))


def fixtures_of(item: pytest.Item) -> Sequence[str]:
    """Names of all fixtures of a test."""
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return names
