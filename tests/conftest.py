"""Marks and shared fixtures.

Every test is marked with the name of its folder, so that `-m "not e2e"` needs no decorators.
Images and boots are dear: each is made once and shared.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.record import ImageRecord
from polydev.image.store import ImageStore
from polydev.image.verify import VerifyOptions, verify
from polydev.progress import Steps
from polydev.settings import Settings

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
RECIPE = ROOT / "golden" / "recipe.yaml"
SPECS = TESTS / "spec" / "image"
KINDS = frozenset({"unit", "spec", "integration", "e2e", "bench"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in KINDS:
            item.add_marker(kind)


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
