"""Files of others that change our units: drop-ins, masks, units with a higher priority.

systemd reads them besides the unit's own file, so the file can be as declared while the unit is
not. Drop-ins for all units of a type (`service.d`) are not reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path("/")
OWN = "etc/systemd/system"
BEFORE_OURS = ("etc/systemd/system.control", "run/systemd/system.control")
# As in systemd.unit(5), without the folders of generators and systemd-run.
FOLDERS = (
    *BEFORE_OURS,
    OWN,
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
)


def find(units: Iterable[str], root: Path = ROOT) -> list[str]:
    """Return the paths of these files; `units` are our files in /etc/systemd/system."""
    names = list(units)
    found = {path for folder in FOLDERS for path in _in_folder(folder, names, root)}
    return [f"/{path.relative_to(root)}" for path in sorted(found)]


def _in_folder(folder: str, units: list[str], root: Path) -> Iterator[Path]:
    place = root / folder
    if place.is_symlink() or not place.is_dir():
        return
    for path in place.iterdir():
        if any(_is_drop_in_folder(path.name, unit) for unit in units):
            yield from path.glob("*.conf")
        elif path.name in units:
            if folder in BEFORE_OURS:
                yield path
        elif any(_is_instance(path.name, unit) for unit in units):
            yield path


def _is_drop_in_folder(name: str, unit: str) -> bool:
    """Whether a folder has drop-ins for this unit, an instance, or a prefix of its name."""
    bare = name.removesuffix(".d")
    if bare == name:
        return False
    stem, _, kind = unit.rpartition(".")
    words = stem.partition("@")[0].split("-")
    beginnings = {"-".join(words[:count]) + f"-.{kind}" for count in range(1, len(words))}
    return bare == unit or bare in beginnings or _is_instance(bare, unit)


def _is_instance(name: str, unit: str) -> bool:
    template, at, suffix = unit.partition("@")
    return bool(at) and bool(re.fullmatch(f"{re.escape(template)}@.+{re.escape(suffix)}", name))
