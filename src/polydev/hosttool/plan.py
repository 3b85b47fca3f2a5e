"""backup, what is there → what must change. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from polydev.hosttool.saved import Kept, Saved
from polydev.hosttool.tree import Entry, is_below


@dataclass(frozen=True)
class Change:
    """One path to put right. `how`: written (content or kind), adjusted (the rest), removed."""

    path: Path
    how: str
    kept: Kept

    def as_dict(self) -> dict[str, object]:
        return {"path": str(self.path), "how": self.how}


def with_later(saved: Saved, later: Iterable[Saved]) -> Saved:
    """`saved`, and of what its scope did not know yet the oldest state that a later one has.

    What no deployment touched between the two is in the later backup as it was in this one. So
    what only newer releases brought goes, too.
    """
    scope, kept, units = list(saved.scope.paths), list(saved.kept), dict(saved.units)
    for each in later:
        kept += [one for one in each.kept if not is_below(one.entry.path, scope)]
        scope += each.scope.paths
        units |= {unit: state for unit, state in each.units.items() if unit not in units}
    paths = tuple(dict.fromkeys(scope))
    return replace(saved, scope=replace(saved.scope, paths=paths), kept=tuple(kept), units=units)


def within(saved: Saved, roots: tuple[Path, ...], units: Iterable[str]) -> Saved:
    """Only the part of a backup that lies below `roots`, and only these units."""
    return replace(
        saved,
        scope=replace(saved.scope, paths=roots, controller=None, store=None),
        kept=tuple(one for one in saved.kept if is_below(one.entry.path, roots)),
        units={unit: saved.units[unit] for unit in units},
        release=None,
        database=None,
        dump=None,
        golden=None,
    )


def changes(kept: Iterable[Kept], now: Iterable[Entry]) -> list[Change]:
    """What must be done, in this order: folders before what they hold, removals last."""
    wanted = {one.entry.path: one for one in kept}
    found = {entry.path: entry for entry in now}
    writes = [
        Change(path, how, one)
        for path, one in sorted(wanted.items())
        if one.entry.kind != "absent"
        and (how := _difference(one.entry, found.get(path, Entry(path, "absent"))))
    ]
    gone = [
        path
        for path, entry in found.items()
        if entry.kind != "absent" and (path not in wanted or wanted[path].entry.kind == "absent")
    ]
    topmost = [path for path in sorted(gone) if not is_below(path.parent, gone)]
    return writes + [Change(path, "removed", Kept(Entry(path, "absent"))) for path in topmost]


def _difference(wanted: Entry, now: Entry) -> str:
    if (wanted.kind, wanted.sha256, wanted.target) != (now.kind, now.sha256, now.target):
        return "written"
    same = (wanted.mode, wanted.owner, wanted.group) == (
        now.mode,
        now.owner,
        now.group,
    ) and wanted.mtime_ns == now.mtime_ns
    return "" if same else "adjusted"
