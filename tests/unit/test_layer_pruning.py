"""Pruning of cached layers that no image of any store needs."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from polydev.errors import BuildError, ImageError
from polydev.image.layer_pruning import prune_cache, remember_store
from polydev.image.store import ImageStore
from polydev.image_layout import RECORD
from polydev.image_record import LayerEntry
from tests.images import add_image


def store_with(folder: Path, *layers: str) -> ImageStore:
    """Make a store with one image of these layers."""
    store = ImageStore(folder)
    record = add_image(store, folder.name)
    entries = [LayerEntry(name=layer, id=layer, seconds=None) for layer in layers]
    store.write_record(record.model_copy(update={"layers": entries}))
    return store


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in ("shared", "mine", "theirs", "nobodys"):
        (tmp_path / "cache/layers" / name).mkdir(parents=True)
    return tmp_path / "cache"


def layers_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "layers").iterdir())


def test_layers_of_other_stores_are_kept(cache: Path, tmp_path: Path) -> None:
    mine, theirs = (store_with(tmp_path / name, "shared", name) for name in ("mine", "theirs"))
    for store in (theirs, mine, theirs):
        remember_store(cache, store)
    assert prune_cache(cache, mine, dry_run=True) == (["nobodys"], 0)
    assert prune_cache(cache, mine) == (["nobodys"], 0)
    assert layers_in(cache) == ["mine", "shared", "theirs"]
    # A store without builds, whose folder does not exist.
    assert prune_cache(cache, ImageStore(tmp_path / "new")) == ([], 0)


def test_layers_of_a_removed_store_are_pruned(cache: Path, tmp_path: Path) -> None:
    mine, theirs = (store_with(tmp_path / name, "shared", name) for name in ("mine", "theirs"))
    remember_store(cache, theirs)
    remember_store(cache, mine)
    shutil.rmtree(theirs.root)
    assert prune_cache(cache, mine)[0] == ["nobodys", "theirs"]
    remember_store(cache, mine)
    assert (cache / "stores").read_text() == f"{mine.root}\n"


def test_store_by_another_path_is_the_same_store(cache: Path, tmp_path: Path) -> None:
    mine = store_with(tmp_path / "mine", "mine")
    remember_store(cache, mine)
    (tmp_path / "link").symlink_to(mine.root)
    by_link = ImageStore(tmp_path / "link")
    assert "mine" in prune_cache(cache, by_link, going=mine.digests())[0]


def test_dry_run_lists_layers_of_images_to_be_removed(cache: Path, tmp_path: Path) -> None:
    mine = store_with(tmp_path / "mine", "mine")
    would = mine.prune(keep=0, dry_run=True).removed
    told = prune_cache(cache, mine, going=would, dry_run=True)
    assert "mine" in told[0]
    assert mine.prune(keep=0).removed == would
    assert prune_cache(cache, mine, going=would) == told


def test_nothing_is_pruned_if_another_store_is_unreadable(cache: Path, tmp_path: Path) -> None:
    mine, theirs = (store_with(tmp_path / name, name) for name in ("mine", "theirs"))
    remember_store(cache, theirs)
    (theirs.path(theirs.digests()[0]) / RECORD).write_text("torn")
    with pytest.raises(ImageError, match=str(theirs.root)):
        prune_cache(cache, mine)
    assert "theirs" in layers_in(cache)


def test_nothing_is_pruned_during_a_build(cache: Path, tmp_path: Path) -> None:
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BuildError, match="a build is running"):
            prune_cache(cache, ImageStore(tmp_path))
    assert "nobodys" in layers_in(cache)
