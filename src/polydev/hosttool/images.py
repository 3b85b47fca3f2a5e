"""The host's image store: images listed, added, made golden, pruned.

Its layout is that of the operator's store; see `polydev.image_layout`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polydev.durable_files import (
    json_bytes,
    make_folder,
    read_json,
    remove,
    sync,
    write_json,
    write_new,
)
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.golden_link import golden_digest, golden_leads_to, make_golden
from polydev.hosttool.paths import Paths
from polydev.hosttool.verb import Call, HostVerb, required
from polydev.hosttool.verb_lock import lock_host
from polydev.image_layout import (
    BOOT_FILES,
    IMAGES,
    IN_USE,
    INCOMING,
    RECORD,
    STORE,
    TEMPLATES,
    image_path,
)

# The ctime of each file of an image when its checksum was last verified.
CHECKED = "checked.json"


def is_intact(folder: Path) -> bool:
    """Whether an image's files have the checksums in its record.

    A file whose ctime, which no program can set, is unchanged since its checksum was verified is
    not read again. Damage by the disk itself is not noticed then.
    """
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if read_json(folder / CHECKED) == _written(folder):
            return True
        if _damaged(folder, record):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # The folder's mtime says when the image arrived.
    came = folder.stat()
    write_json(folder / CHECKED, _written(folder))
    os.utime(folder, ns=(came.st_atime_ns, came.st_mtime_ns))
    return True


def _damaged(folder: Path, record: dict[str, Any]) -> list[str]:
    """Return the files of an image whose checksums differ from its record."""
    sums = {name: record["files"][name]["sha256"] for name in BOOT_FILES}
    return [name for name, sha256 in sums.items() if file_sha256(folder / name) != sha256]


def _written(folder: Path) -> dict[str, int]:
    """Return the ctime of each file of an image."""
    return {name: (folder / name).stat().st_ctime_ns for name in BOOT_FILES}


def listing(store: Path = STORE) -> dict[str, object]:
    """Return `images`: intact ones, oldest first; and `golden`: the link's image, or None."""
    folders = [path for path in (store / IMAGES).glob("*") if is_intact(path)]
    folders.sort(key=lambda path: path.stat().st_mtime)
    golden = golden_digest(store)
    names = [path.name for path in folders]
    return {"images": names, "golden": golden if golden_leads_to(store, golden) else None}


def add(digest: str, store: Path = STORE) -> dict[str, object]:
    """Add an image that arrived in `incoming/<digest>` to the store, if its checksums are right.

    Raises HostError `image-damaged`.
    """
    arrived, place = store / INCOMING / digest, image_path(store, digest)
    if place.exists() and not arrived.exists():
        return {"digest": digest, "added": False}
    try:
        record = json.loads((arrived / RECORD).read_bytes())
        wrong = _damaged(arrived, record)
    except (OSError, ValueError, KeyError) as error:
        raise HostError(
            "image-damaged",
            f"image {digest[:12]} arrived incomplete: {error}",
            "deploy again: intact files are not sent a second time",
        ) from (error)
    if wrong or record["digest"] != digest:
        raise HostError(
            "image-damaged",
            f"image {digest[:12]} arrived damaged: {', '.join(wrong) or 'its record'}",
            "deploy again: intact files are not sent a second time",
        )
    for name in (*BOOT_FILES, RECORD):
        sync(arrived / name)
    write_new(arrived / CHECKED, json_bytes(_written(arrived)), 0o644)
    (arrived / IN_USE).touch(0o644)
    sync(arrived)
    make_folder(place.parent)
    remove(place)  # a damaged one
    arrived.rename(place)
    sync(place.parent)
    return {"digest": digest, "added": True}


def prune(paths: Paths, store: Path = STORE) -> dict[str, object]:
    """Remove images that are not golden, in a backup or in use, and incomplete ones.

    Images with a template stay until the golden image has a template: VMs are resumed from them.
    """
    saved = (read_json(file) or {} for file in paths.backups.glob("*/backup.json"))
    golden, with_template = golden_digest(store), _with_template(store)
    needed = {golden, *((each.get("golden") or {}).get("image") for each in saved)}
    if golden not in with_template:
        needed |= with_template
    removed = []
    for folder in sorted((store / IMAGES).glob("*")):
        if folder.name in needed:
            continue
        with _unused(folder) as is_free:
            if is_free:
                # Moved away first, so that a kill leaves no part of an image in the store.
                gone = store / INCOMING / f".gone-{folder.name}"
                make_folder(gone.parent)
                folder.rename(gone)
                sync(folder.parent)
                removed.append(folder.name)
    for rest in (store / INCOMING).glob("*"):
        remove(rest)
    return {"removed": removed}


def _with_template(store: Path) -> set[str]:
    found = set()
    for file in (store / TEMPLATES).glob(f"*/{RECORD}"):
        with suppress(OSError, ValueError):
            found.add(str((read_json(file) or {}).get("image_digest")))
    return found


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Lock an image; yield whether no process uses it, such as a VM."""
    try:
        lock = (folder / IN_USE).open()
    except FileNotFoundError:
        yield True
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


# Verbs


DIGEST = required("--digest", help="digest of an image")


def image_list(call: Call) -> object:
    return listing(call.paths.images)


def image_add(call: Call) -> object:
    digest = call.arguments.digest
    with lock_host(call.paths, f"image add {digest[:12]}"):
        return add(digest, call.paths.images)


def image_golden(call: Call) -> object:
    digest = call.arguments.digest
    with lock_host(call.paths, f"image golden {digest[:12]}"):
        return make_golden(digest, call.paths.images)


def image_prune(call: Call) -> object:
    with lock_host(call.paths, "image prune"):
        return prune(call.paths, call.paths.images)


VERBS = (
    HostVerb("image list", "List intact images, and the golden one", image_list),
    HostVerb("image add", "Add an image that arrived to the store", image_add, (DIGEST,)),
    HostVerb("image golden", "Make an image golden", image_golden, (DIGEST,)),
    HostVerb("image prune", "Remove images that nothing needs", image_prune),
)
