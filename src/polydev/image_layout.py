"""Paths in an image store, and in the folder of one image.

    images/<digest>/         one image; it appears and disappears by one rename
        rootfs.ext4, vmlinux, initrd.img, cmdline        what a VM boots from
        record.json, sbom.cdx.json, tree.jsonl.gz        what is known of it
        in-use.lock                                      locked by every user of the image
    incoming/                images that are being made, received or removed
    promotions/000007        link to ../images/<digest>
    promotions/000007.json   the same promotion as JSON, with the number of the one before it
    golden-rootfs.ext4       link to promotions/000007/rootfs.ext4: the golden image
    templates/<key>/         on a host: saved VMs, from which others are resumed
    .lock                    held by the verb that changes the store

The store of an operator's machine and that of a host have the same layout. This module imports the
standard library only, so that every program can have it.
"""

from __future__ import annotations

import re
from pathlib import Path

STORE = Path("/var/lib/firecracker/snapshots/base")
IMAGES, INCOMING, PROMOTIONS, TEMPLATES = "images", "incoming", "promotions", "templates"
GOLDEN_LINK = "golden-rootfs.ext4"
STORE_LOCK = ".lock"

ROOTFS = "rootfs.ext4"
KERNEL = "vmlinux"
INITRD = "initrd.img"
CMDLINE = "cmdline"
BOOT_FILES = (ROOTFS, KERNEL, INITRD, CMDLINE)
RECORD = "record.json"
SBOM = "sbom.cdx.json"
TREE = "tree.jsonl.gz"
IN_USE = "in-use.lock"


def image_path(store: Path, digest: str) -> Path:
    """The folder of an image."""
    return store / IMAGES / digest


def promotion_link(store: Path, number: int) -> Path:
    """The link of a promotion, which leads to the folder of its image."""
    return store / PROMOTIONS / f"{number:06d}"


def promotion_file(store: Path, number: int) -> Path:
    """The JSON file of a promotion."""
    return store / PROMOTIONS / f"{number:06d}.json"


def golden_target(number: int) -> str:
    """Return the content of the golden link when a promotion is the golden one."""
    return f"{PROMOTIONS}/{number:06d}/{ROOTFS}"


def promotion_number(golden_target: str) -> int | None:
    """The promotion that a golden link's content names; None if it names none."""
    found = re.fullmatch(rf"{PROMOTIONS}/(\d+)/{re.escape(ROOTFS)}", golden_target)
    return int(found[1]) if found else None
