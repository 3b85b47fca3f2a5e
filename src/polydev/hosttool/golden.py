"""The golden link of the host's image store, as it is kept in a backup.

golden-rootfs.ext4 -> promotions/N/rootfs.ext4,  promotions/N -> ../images/<digest>
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polydev.hosttool.durable import point_link, remove, target_of

LINK = "golden-rootfs.ext4"


@dataclass(frozen=True)
class Golden:
    """What the link names, and the folder of the image that this led to."""

    target: str
    image: str


def golden_of(store: Path) -> Golden | None:
    """What is golden now; None before the first promotion."""
    target = target_of(store / LINK)
    return None if target is None else Golden(target, image_of(store, target))


def image_of(store: Path, target: str) -> str:
    """The name of the image's folder that a target leads to; `""` if it leads nowhere."""
    rootfs = (store / target).resolve()
    return rootfs.parent.name if rootfs.is_file() else ""


def golden_damage(store: Path, golden: Golden) -> list[str]:
    found = image_of(store, golden.target)
    if not found:
        return [f"{store / golden.target} leads to no image (it was {golden.image[:12]})"]
    if found != golden.image:
        return [f"{store / golden.target} leads to {found[:12]}, not {golden.image[:12]}"]
    return []


def point_golden(store: Path, golden: Golden | None) -> bool:
    """Put the link back; says whether there was anything to do."""
    link = store / LINK
    wanted = golden.target if golden else None
    if target_of(link) == wanted:
        return False
    if wanted is None:
        remove(link)
    else:
        point_link(link, wanted)
    return True
