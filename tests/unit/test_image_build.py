"""A build before its first layer: images that are there already, and a disk that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from polydev.errors import BuildError, CommandError
from polydev.image.build import BuildOptions, _Builder, _space_errors
from polydev.image.recipe import load_recipe
from polydev.image.record import ROOTFS, SBOM
from polydev.image.store import ImageStore
from polydev.progress import Steps
from polydev.settings import Settings
from tests.images import contents, record_of

RECIPE = Path(__file__).resolve().parents[2] / "golden" / "recipe.yaml"


@pytest.mark.parametrize(
    ("verified", "is_damaged", "is_taken"),
    [(None, True, True), (True, True, True), (False, False, True), (False, True, False)],
)
def test_build_takes_an_image_that_is_there_unless_it_was_refused_for_damage(
    tmp_path: Path, verified: bool | None, is_damaged: bool, is_taken: bool
) -> None:
    store, cache = ImageStore(tmp_path / "store"), tmp_path / "cache"
    places = Settings(store=store.root, cache=cache, state=tmp_path / "state")
    builder = _Builder(load_recipe(RECIPE), places, store, Steps(), BuildOptions(offline=True))
    assert builder._known_image("none") is None
    with store.new_incoming() as incoming:
        for name, data in contents("a").items():
            (incoming / name).write_bytes(data)
        (incoming / SBOM).write_text("{}")
        record = store.add(incoming, record_of("a", verified=verified))
    (cache / "assemblies").mkdir(parents=True)
    for name, digest in {"made": record.digest, "pruned": "0" * 64}.items():
        (cache / "assemblies" / name).write_text(digest)
    if is_damaged:
        (store.path(record.digest) / ROOTFS).write_text("torn")
    assert builder._known_image("made") == (record if is_taken else None)
    assert builder._known_image("pruned") is None


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no"),
        OSError(errno.EDQUOT, "no"),
        BuildError("layer web: npm error No space left on device"),
        CommandError(["apt-get"], 100, "E: You don't have enough free space in /x"),
    ],
)
def test_full_disk_is_told_as_such(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(BuildError, match=f"no space left while building below {tmp_path}") as told,
        _space_errors(tmp_path),
    ):
        raise error
    assert "POLYDEV_CACHE" in str(told.value.hint)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), BuildError("layer web: no")])
def test_other_failures_of_a_build_are_told_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as told, _space_errors(tmp_path):
        raise error
    assert told.value is error
