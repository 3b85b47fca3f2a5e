"""The host's image store: what is there, what has just arrived, which one is golden.

Its layout is the store's of the operator's machine: `images/<digest>/`, numbered promotions
and the golden link, which names one of them and is replaced by one rename.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from polydev.durable import (
    json_bytes,
    make_folder,
    read_json,
    remove,
    sync,
    write_json,
    write_new,
)
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_entries import file_sha256
from polydev.hosttool.golden_link import golden_digest, golden_leads_to, make_golden
from polydev.hosttool.paths import Paths
from polydev.hosttool.verb import Call, HostVerb, required
from polydev.hosttool.verb_lock import lock_host
from polydev.image_layout import BOOT_FILES, IN_USE, RECORD, STORE

# When each file of an image was written to last, as its checksum was right.
CHECKED = "checked.json"


def is_intact(folder: Path) -> bool:
    """Whether an image's files are what its record says.

    A file that was not written to since its checksum was right is not read again: the kernel's
    ctime says so, which no program sets. Decay of the disk is not seen then.
    """
    try:
        record = json.loads((folder / RECORD).read_bytes())
        if read_json(folder / CHECKED) == _written(folder):
            return True
        if _damaged(folder, record):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    # The time of the folder says when the image came.
    came = folder.stat()
    write_json(folder / CHECKED, _written(folder))
    os.utime(folder, ns=(came.st_atime_ns, came.st_mtime_ns))
    return True


def _damaged(folder: Path, record: dict[str, Any]) -> list[str]:
    """The files of an image that have not the checksums of its record."""
    sums = {name: record["files"][name]["sha256"] for name in BOOT_FILES}
    return [name for name, sha256 in sums.items() if file_sha256(folder / name) != sha256]


def _written(folder: Path) -> dict[str, int]:
    """When each file of an image was written to last."""
    return {name: (folder / name).stat().st_ctime_ns for name in BOOT_FILES}


def listing(store: Path = STORE) -> dict[str, object]:
    """`images`: whole ones, oldest first; `golden`: the one that the link leads to, or None."""
    folders = [path for path in (store / "images").glob("*") if is_intact(path)]
    folders.sort(key=lambda path: path.stat().st_mtime)
    golden = golden_digest(store)
    names = [path.name for path in folders]
    return {"images": names, "golden": golden if golden_leads_to(store, golden) else None}


def add(digest: str, store: Path = STORE) -> dict[str, object]:
    """Take what arrived in `incoming/<digest>` into the store, once its checksums are right.

    Raises HostError `image-damaged`.
    """
    arrived, place = store / "incoming" / digest, store / "images" / digest
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
    """Remove images that are not golden, not in a backup and not in use; and what broke off.

    Images with a template stay as well until the golden image has one: VMs are resumed from these.
    """
    saved = (read_json(file) or {} for file in paths.backups.glob("*/backup.json"))
    golden, with_template = golden_digest(store), _with_template(store)
    needed = {golden, *((each.get("golden") or {}).get("image") for each in saved)}
    if golden not in with_template:
        needed |= with_template
    removed = []
    for folder in sorted((store / "images").glob("*")):
        if folder.name in needed:
            continue
        with _nobodys(folder) as is_free:
            if is_free:
                # Out of sight first, so that a kill leaves no part of an image to be found.
                gone = store / "incoming" / f".gone-{folder.name}"
                make_folder(gone.parent)
                folder.rename(gone)
                sync(folder.parent)
                removed.append(folder.name)
    for rest in (store / "incoming").glob("*"):
        remove(rest)
    return {"removed": removed}


def _with_template(store: Path) -> set[str]:
    found = set()
    for file in (store / "templates").glob("*/record.json"):
        with suppress(OSError, ValueError):
            found.add(str((read_json(file) or {}).get("image_digest")))
    return found


@contextmanager
def _nobodys(folder: Path) -> Iterator[bool]:
    """Whether no process holds the image, as its VMs do; none begins to meanwhile."""
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
