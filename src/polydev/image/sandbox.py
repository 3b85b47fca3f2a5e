"""Work inside a layered tree: the argv that runs a command there.

Everything is mounted in a mount namespace of the command's own, so that a build that is
killed at any point leaves no mount behind, and in a PID namespace, so that it leaves no
process either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=off,xino=off"

_MOUNT = """
if [ -n "$1" ]; then mount -t overlay overlay -o "$1" "$2"; else mount --bind "$2" "$2"; fi
if [ -n "$3" ]; then
  mount -t proc proc "$2/proc"
  mount --rbind /dev "$2/dev"
  mount --bind "$3" "$2/var/cache/apt/archives"
fi
shift 3
exec "$@"
"""


@dataclass(frozen=True)
class Overlay:
    """Trees, lowest first, seen as one at `at`; writes go to `upper` (none: read-only).

    With no tree below, `at` itself is the tree.
    """

    lower: tuple[Path, ...]
    at: Path
    upper: Path | None = None
    work: Path | None = None

    def mount_options(self) -> str:
        if not self.lower:
            return ""
        lower = ":".join(str(tree) for tree in reversed(self.lower))
        if self.upper is None:
            return f"lowerdir={lower},{OVERLAY_OPTIONS}"
        return f"lowerdir={lower},upperdir={self.upper},workdir={self.work},{OVERLAY_OPTIONS}"


def contained_argv(command: Sequence[str]) -> list[str]:
    """Run `command` so that none of its mounts and processes outlives the thread that waits."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
        *("--mount-proc", *command),
    ]


def in_overlay_argv(overlay: Overlay, command: Sequence[str], archives: Path | None) -> list[str]:
    """Run `command` with the overlay mounted; with `archives` (packages) ready for chroots."""
    mounted = ["sh", "-eu", "-c", _MOUNT, "sandbox"]
    mounted += [overlay.mount_options(), str(overlay.at), str(archives or "")]
    return contained_argv([*mounted, *command])
