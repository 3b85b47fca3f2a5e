"""The golden link of the host's image store: read, backed up, restored, promoted.

golden-rootfs.ext4 -> promotions/N/rootfs.ext4,  promotions/N -> ../images/<digest>
"""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from polydev.durable_files import (
    UNFINISHED,
    make_folder,
    point_link,
    read_json,
    remove,
    target_of,
    write_json,
)
from polydev.hosttool.errors import HostError
from polydev.image_layout import (
    GOLDEN_LINK,
    IMAGES,
    PROMOTIONS,
    RECORD,
    ROOTFS,
    golden_target,
    image_path,
    promotion_file,
    promotion_link,
    promotion_number,
)


@dataclass(frozen=True)
class GoldenTarget:
    """The content of the golden link, and the folder of the image to which it led."""

    target: str
    image: str


def golden_of(store: Path) -> GoldenTarget | None:
    """Return the present golden link; None before the first promotion."""
    target = target_of(store / GOLDEN_LINK)
    return None if target is None else GoldenTarget(target, image_of(store, target))


def image_of(store: Path, target: str) -> str:
    """Return the name of the image's folder to which a target leads; `""` if it leads nowhere."""
    rootfs = (store / target).resolve()
    return rootfs.parent.name if rootfs.is_file() else ""


def golden_damage(store: Path, golden: GoldenTarget) -> list[str]:
    found = image_of(store, golden.target)
    if not found:
        return [f"{store / golden.target} points to no image; it pointed to {golden.image[:12]}"]
    if found != golden.image:
        return [f"{store / golden.target} points to {found[:12]}, not to {golden.image[:12]}"]
    return []


def point_golden(store: Path, golden: GoldenTarget | None) -> bool:
    """Restore the link; return whether that changed anything."""
    link = store / GOLDEN_LINK
    wanted = golden.target if golden else None
    if target_of(link) == wanted:
        return False
    if wanted is None:
        remove(link)
    else:
        point_link(link, wanted)
    return True


# Promotions


def golden_number(store: Path) -> int | None:
    try:
        target = os.readlink(store / GOLDEN_LINK)
    except OSError:
        return None
    return promotion_number(target)


def golden_digest(store: Path) -> str | None:
    number = golden_number(store)
    entry = read_json(promotion_file(store, number)) if number is not None else None
    return str(entry["digest"]) if entry else None


def golden_leads_to(store: Path, digest: str | None) -> bool:
    """Whether the golden link points to this image, through all links in between."""
    rootfs = image_path(store, str(digest)) / ROOTFS
    return rootfs.is_file() and (store / GOLDEN_LINK).resolve() == rootfs.resolve()


def make_golden(digest: str, store: Path) -> dict[str, object]:
    """Promote an image: point the golden link to it. Raises HostError `no-image`."""
    if not (image_path(store, digest) / RECORD).exists():
        raise HostError(
            "no-image", f"no image {digest[:12]} in {store}", "deploy again, which sends it"
        )
    was = golden_digest(store)
    if was == digest and golden_leads_to(store, digest):
        return {"golden": digest, "was": was, "changed": False}
    folder = store / PROMOTIONS
    make_folder(folder)
    for left in folder.glob(f".*{UNFINISHED}"):  # left by a killed promotion
        remove(left)
    found = (re.match(r"\d+", path.name) for path in folder.iterdir())
    number = max((int(name[0]) for name in found if name), default=0) + 1
    entry = {
        "number": number,
        "digest": digest,
        "previous": golden_number(store),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "by": {"user": "root", "host": socket.gethostname(), "pid": os.getpid()},
    }
    write_json(promotion_file(store, number), entry)
    point_link(promotion_link(store, number), f"../{IMAGES}/{digest}")
    point_link(store / GOLDEN_LINK, golden_target(number))
    return {"golden": digest, "was": was, "changed": True}
