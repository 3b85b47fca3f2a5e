"""The scope of a deployment: what it may change, and so what each backup contains.

The operator's side decides it (`host_setup.host_files_and_units`) and sends it as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import entries_below, entry_of, is_below
from polydev.hosttool.paths import Paths
from polydev.hosttool.sqlite_database import content_sha256
from polydev.image_layout import GOLDEN_LINK

SHALLOWEST_PARTS = 3  # "/", a folder, a name: no scope has all of /etc


@dataclass(frozen=True)
class ControllerScope:
    """The folder in which the controller is installed, and its database."""

    root: Path
    database: Path

    @property
    def current(self) -> Path:
        return self.root / "current"

    def release(self, name: str) -> Path:
        return self.root / "releases" / name


@dataclass(frozen=True)
class Scope:
    """`units` are in the order of their start; access to the host depends on `reach`."""

    paths: tuple[Path, ...]
    reach: tuple[Path, ...] = ()
    units: tuple[str, ...] = ()
    controller: ControllerScope | None = None
    store: Path | None = None

    def as_dict(self) -> dict[str, object]:
        controller = self.controller and {
            "root": str(self.controller.root),
            "database": str(self.controller.database),
        }
        return {
            "paths": [str(path) for path in self.paths],
            "reach": [str(path) for path in self.reach],
            "units": list(self.units),
            "controller": controller,
            "store": str(self.store) if self.store else None,
        }


def scope_from(document: dict[str, Any]) -> Scope:
    """Return the scope of a JSON document. Raises HostError `bad-scope`."""
    try:
        controller = document.get("controller")
        store = document.get("store")
        scope = Scope(
            paths=tuple(_path(text) for text in document["paths"]),
            reach=tuple(_path(text) for text in document.get("reach", ())),
            units=tuple(str(unit) for unit in document.get("units", ())),
            controller=controller
            and ControllerScope(_path(controller["root"]), _path(controller["database"])),
            store=_path(store) if store else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise _bad(f"a field is missing or has a wrong type: {error!r}") from error
    outside = [str(path) for path in scope.reach if not is_below(path, scope.paths)]
    if outside:
        raise _bad(f"`paths` lacks what `reach` has: {', '.join(outside)}")
    return scope


def require_restorable(scope: Scope, paths: Paths) -> None:
    """Check that no folder of the scope, which a restore empties, contains the backups."""
    for path in scope.paths:
        if path == paths.home or is_below(path, [paths.backups]) or is_below(paths.home, [path]):
            raise _bad(f"{path} contains the backups themselves")


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < SHALLOWEST_PARTS:
        raise _bad(f"{text!r} must be an absolute path of at least two names")
    return path


def _bad(why: str) -> HostError:
    return HostError("bad-scope", f"invalid scope: {why}")


def list_scope(scope: Scope) -> list[dict[str, object]]:
    """Return every path of the scope, the golden and the `current` link, sorted by path.

    Two such lists show what changed between them. The database's `sha256` is the hash of its rows
    and schema, not of its pages.
    """
    roots = [*scope.paths]
    if scope.controller:
        roots.append(scope.controller.current)
    if scope.store:
        roots.append(scope.store / GOLDEN_LINK)
    found = [entry.as_listed() for entry in entries_below(roots) if entry.kind != "absent"]
    if scope.controller and scope.controller.database.exists():
        entry = entry_of(scope.controller.database)
        found.append(entry.as_listed() | {"sha256": content_sha256(entry.path)})
    return sorted(found, key=lambda each: str(each["path"]))
