"""Bench: golden.build against a plain build of the same things, and against itself."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from polydev.image.build import BuildOptions, BuildResult, build
from polydev.image.store import ImageStore
from polydev.image_layout import ROOTFS
from polydev.progress import Steps
from polydev.settings import Settings
from tests.bench.conftest import AGENT_BUILD_LIMIT, Checkout, Ratios, quickest
from tests.bench.plain import PlainImage

MB = 1e6
# As a share of a cold build's time.
UNCHANGED_BUILD_LIMIT = 0.02


def test_cold_build_takes_no_longer_than_plain_build(
    ratio: Ratios, cold: BuildResult, plain: PlainImage
) -> None:
    ratio("cold-build/plain-build", cold.seconds, plain.build_seconds, limit=1.0)


def test_unchanged_recipe_builds_in_almost_no_time(
    ratio: Ratios, settings: Settings, store: ImageStore, checkout: Checkout, cold: BuildResult
) -> None:
    def build_again() -> BuildResult:
        result = build(checkout.recipe, settings, store, Steps(), BuildOptions())
        assert not result.changed
        assert result.record.digest == cold.record.digest
        return result

    os.sync()
    good_seconds = UNCHANGED_BUILD_LIMIT * cold.seconds
    again = quickest(build_again, lambda result: result.seconds, good_seconds)
    ratio("unchanged-build/cold-build", again.seconds, cold.seconds, limit=UNCHANGED_BUILD_LIMIT)


def test_changed_agent_rebuilds_only_its_layer_and_root_filesystem(
    ratio: Ratios, cold: BuildResult, touched: BuildResult
) -> None:
    assert touched.changed
    assert touched.record.digest != cold.record.digest
    assert touched.made == ("agent",)
    ratio("agent-build/cold-build", touched.seconds, cold.seconds, limit=AGENT_BUILD_LIMIT)


def test_build_in_another_cache_gives_same_digest(
    settings: Settings, checkout: Checkout, cold: BuildResult, tmp_path: Path
) -> None:
    """The other one is of layers that other tests, or an operator, had built before this run.

    What they gave is noted beside these layers; where it is not, the image is built from them.
    """
    assert cold.made == tuple(layer.name for layer in cold.record.layers)
    cache = Settings.from_environment().cache
    notes = (settings.cache / "assemblies").iterdir()
    (name,) = [note.name for note in notes if note.read_text() == cold.record.digest]
    if not (cache / "assemblies" / name).exists():
        there = replace(settings, store=tmp_path, cache=cache)
        build(checkout.recipe, there, ImageStore(there.store), Steps(), BuildOptions())
        shutil.rmtree(tmp_path)
    assert (cache / "assemblies" / name).read_text() == cold.record.digest


def test_image_is_smaller_than_plain_image(
    ratio: Ratios, cold: BuildResult, plain: PlainImage
) -> None:
    ours = cold.record.files[ROOTFS].allocated_bytes
    theirs = plain.rootfs.stat().st_blocks * 512
    ratio("image-size/plain-size", ours / MB, theirs / MB, limit=1.0, unit="MB")
