"""A scope → what lies there now, in a form in which two moments can be compared."""

from __future__ import annotations

from polydev.hosttool.database import content_sha256
from polydev.hosttool.golden import LINK
from polydev.hosttool.scope import Scope
from polydev.hosttool.tree import entries_below, entry_of


def listing(scope: Scope) -> list[dict[str, object]]:
    """Every path of the scope, the golden and the `current` link, sorted by path.

    The database's `sha256` is that of what it says, not of its pages.
    """
    roots = [*scope.paths]
    if scope.controller:
        roots.append(scope.controller.current)
    if scope.store:
        roots.append(scope.store / LINK)
    found = [entry.as_listed() for entry in entries_below(roots) if entry.kind != "absent"]
    if scope.controller and scope.controller.database.exists():
        entry = entry_of(scope.controller.database)
        found.append(entry.as_listed() | {"sha256": content_sha256(entry.path)})
    return sorted(found, key=lambda each: str(each["path"]))
