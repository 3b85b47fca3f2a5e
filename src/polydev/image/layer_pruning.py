"""Removal of cached layers that no image needs any more.

A cache may serve several stores. Its file `stores` lists each store that an image was built for, so
that pruning one store keeps the layers of the others.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection
from pathlib import Path

from polydev.durable_files import write_text_durably
from polydev.errors import BuildError
from polydev.image.layer_cache import layer_bytes, remove_layer
from polydev.image.store import ImageStore

STORES = "stores"


def remember_store(cache: Path, store: ImageStore) -> None:
    """Add a store to the list of the cache's stores, and drop stores that no longer exist.

    The caller holds the lock of builds.
    """
    stores = {*_stores(cache), store.root.absolute()}
    text = "".join(f"{each}\n" for each in sorted(stores))
    if text != _text(cache):
        write_text_durably(cache / STORES, text)


def prune_cache(
    cache: Path, store: ImageStore, *, going: Collection[str] = (), dry_run: bool = False
) -> tuple[list[str], int]:
    """Remove the layers that no image in the cache's stores uses; return their ids and bytes.

    `going` are images of `store` that a dry run would have removed. Raises BuildError while a build
    is running.
    """
    folder = cache / "layers"
    if not folder.is_dir():
        return [], 0
    with (cache / "build.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildError(
                "cannot prune the cached layers while a build is running",
                "run it again when the build has ended",
            ) from error
        used = store.layer_ids(without=going)
        for other in _stores(cache):
            if other.resolve() != store.root.resolve():
                used |= ImageStore(other).layer_ids()
        unused = sorted(path for path in folder.iterdir() if path.name not in used)
        freed = sum(map(layer_bytes, unused))
        for path in unused if not dry_run else ():
            remove_layer(path)
    return [path.name for path in unused], freed


def _stores(cache: Path) -> list[Path]:
    """Return the folders of the cache's stores that still exist."""
    return [Path(line) for line in _text(cache).splitlines() if Path(line).is_dir()]


def _text(cache: Path) -> str:
    try:
        return (cache / STORES).read_text()
    except FileNotFoundError:
        return ""
