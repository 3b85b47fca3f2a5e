"""What restores have changed and no unit was told of yet: it outlives a restore that is killed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from polydev.hosttool.durable import read_json, remove, unfinished, write_json
from polydev.hosttool.paths import Paths
from polydev.hosttool.plan import Change
from polydev.hosttool.tree import is_below


@dataclass
class Pending:
    """`paths` have another content than the units last saw; `reload`: systemd's own files."""

    paths: set[Path] = field(default_factory=set)
    reload: bool = False
    database: bool = False

    def add(self, changes: list[Change], units_folder: Path) -> None:
        self.paths |= {change.path for change in changes if change.how != "adjusted"}
        # An adjusted time counts: systemd compares the times of its files.
        self.reload |= any(is_below(change.path, [units_folder]) for change in changes)

    def write(self, paths: Paths) -> None:
        if not (self.paths or self.reload or self.database):
            remove(unfinished(paths.pending))
            remove(paths.pending)
            return
        document = {
            "paths": sorted(map(str, self.paths)),
            "reload": self.reload,
            "database": self.database,
        }
        write_json(paths.pending, document)


def read_pending(paths: Paths) -> Pending:
    """Empty when the last restore went to its end."""
    try:
        document = read_json(paths.pending) or {}
    except ValueError:
        # Written by one rename, so this is no kill's doing; a restart too many does no harm.
        return Pending(reload=True, database=True)
    return Pending(
        {Path(path) for path in document.get("paths", ())},
        document.get("reload", False),
        document.get("database", False),
    )
