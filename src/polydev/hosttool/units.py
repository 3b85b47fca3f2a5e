"""The units of a deployment, their files, and whether they run with their current configuration.

A unit's file, or a drop-in in `<unit>.d`, says `X-Polydev-Config=<hash>`. When the unit starts or
reloads, it writes the same hash to its stamp. If the two differ, the unit needs a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from polydev.hosttool.backup_scope import Scope
from polydev.hosttool.file_metadata import is_below
from polydev.hosttool.paths import Paths
from polydev.hosttool.systemd import Systemd, UnitStatus

MAIN = "master-controller.service"
SOCKET = "master-controller.socket"
NEXT = "master-controller-next@"
NEXT_PATTERN = f"{NEXT}*.service"
# VMs belong to their users: a backup does not cover them, and a restore keeps what they need.
VM = "microvm@"
VM_PATTERN = f"{VM}*.service"
SLOT = "microvm-slot@"
WATCH = "polydev-network-watch.service"
# It runs a program of the release that `current` names when it starts.
TEMPLATE_HOLDER = "polydev-templates.service"
# Changes start it, those of a restore too, and it ends by itself.
TEMPLATE_MAKER = "polydev-template.service"
CONFIG_LINE = re.compile(r"^X-Polydev-Config=(\S+)", re.MULTILINE)


def next_unit(release: str) -> str:
    return f"{NEXT}{release}.service"


def known_units(systemd: Systemd, scope: Scope, files: Iterable[Path]) -> dict[str, UnitStatus]:
    """Return the states of the scope's units, the controller's, and instances of its templates."""
    names = [*scope.units]
    if scope.controller:
        names += [SOCKET, MAIN]
    names += instances(systemd, files)
    return systemd.states(list(dict.fromkeys(names)))


def instances(systemd: Systemd, files: Iterable[Path]) -> list[str]:
    """Return loaded instances of the template units among `files`, except VMs."""
    found: list[str] = []
    for path in files:
        stem, mark, suffix = path.name.partition("@.")
        if mark and not path.name.startswith((NEXT, VM)):
            found += systemd.loaded(f"{stem}@*.{suffix}")
    return found


def running_vms(systemd: Systemd) -> list[str]:
    states = systemd.states(systemd.loaded(VM_PATTERN))
    return [unit for unit, state in states.items() if state.is_running]


def slots_of(vms: Iterable[str]) -> set[str]:
    """Return the slot units that these VMs need."""
    return {vm.replace(VM, SLOT) for vm in vms}


def template_of(unit: str) -> str | None:
    """Return `a@.service` for `a@b.service`; None for a unit that is not an instance."""
    stem, mark, rest = unit.partition("@")
    return f"{stem}@.{rest.rpartition('.')[2]}" if mark else None


def file_roots(paths: Paths, unit: str) -> list[Path]:
    """Return a unit's file and folder of drop-ins, those with the highest priority last."""
    names = [name for name in (template_of(unit), unit) if name]
    return [paths.units / f"{name}{suffix}" for suffix in ("", ".d") for name in names]


def has_files_among(paths: Paths, unit: str, places: Iterable[Path]) -> bool:
    """Whether `places`, files or folders, contain one of the unit's files or lie among them."""
    roots = file_roots(paths, unit)
    return any(
        is_below(place, roots) or any(is_below(root, [place]) for root in roots) for place in places
    )


def wanted_config(paths: Paths, unit: str) -> str | None:
    """Return the hash in the unit's files as they are now; the last one counts, as in systemd."""
    found = None
    for root in file_roots(paths, unit):
        for path in sorted(root.glob("*.conf")) if root.is_dir() else [root]:
            if path.is_file():
                match = CONFIG_LINE.search(path.read_text("utf-8", "replace"))
                found = match[1] if match else found
    return found


def started_config(paths: Paths, unit: str) -> str | None:
    try:
        return (paths.stamps / unit).read_text().strip()
    except FileNotFoundError:
        return None


def forget_config(paths: Paths, unit: str) -> None:
    """Remove a unit's stamp, which nothing would renew any more."""
    (paths.stamps / unit).unlink(missing_ok=True)


def is_outdated(paths: Paths, unit: str, changed: Iterable[Path]) -> bool:
    """Whether the unit runs with another configuration than its files have."""
    wanted, started = wanted_config(paths, unit), started_config(paths, unit)
    if wanted is None or (started is None and not unit.endswith(".service")):
        return has_files_among(paths, unit, changed)
    return wanted != started
