"""Removal of cached layers that no image needs any more.

A cache may serve several stores. `stores` in it names each that an image was built for, so that
a prune of one leaves the layers of the others.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection
from pathlib import Path

from polydev.durable import write_text_durably
from polydev.errors import BuildError
from polydev.image.layer_cache import layer_bytes, remove_layer
from polydev.image.store import ImageStore

STORES = "stores"


def remember_store(cache: Path, store: ImageStore) -> None:
    """Write down that the cache serves a store; stores that are gone are forgotten.

    The caller holds the build's lock.
    """
    stores = {*_stores(cache), store.root.absolute()}
    text = "".join(f"{each}\n" for each in sorted(stores))
    if text != _text(cache):
        write_text_durably(cache / STORES, text)


def prune_cache(
    cache: Path, store: ImageStore, *, going: Collection[str] = (), dry_run: bool = False
) -> tuple[list[str], int]:
    """Remove layers that no image of a store of this cache is made of: their ids and their bytes.

    `going` are digests of images of `store` that a dry run would have removed. Raises BuildError
    while a build is running.
    """
    folder = cache / "layers"
    if not folder.is_dir():
        return [], 0
    with (cache / "build.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BuildError(
                "a build is running, and what it uses cannot be told yet",
                "prune again when it has ended",
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
    """The folders of all stores that were built for and are still there."""
    return [Path(line) for line in _text(cache).splitlines() if Path(line).is_dir()]


def _text(cache: Path) -> str:
    try:
        return (cache / STORES).read_text()
    except FileNotFoundError:
        return ""
