"""The sandbox of a build: command lines that run a command inside stacked trees.

The command has its own mount namespace, so that a killed build leaves no mount behind, and its own
PID namespace, so that it leaves no process behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OVERLAY_OPTIONS = "index=off,metacopy=off,redirect_dir=off,xino=off"

# A build has its own devices, no link of the tree redirects a mount, and the kernel's settings,
# which are the machine's, cannot be written.
_MOUNT = """
if [ -n "$1" ]; then mount -t overlay overlay -o "$1" "$2"; else mount --bind "$2" "$2"; fi
if [ -n "$3" ]; then
  for place in proc dev; do
    if [ -L "$2/$place" ] || [ ! -d "$2/$place" ]; then
      echo "refused: /$place is no folder in the image" >&2
      exit 1
    fi
  done
  mount -t proc proc "$2/proc"
  for place in sys sysrq-trigger; do
    if [ -e "$2/proc/$place" ]; then
      mount --bind "$2/proc/$place" "$2/proc/$place"
      mount -o remount,bind,ro "$2/proc/$place"
    fi
  done
  mount -t tmpfs -o mode=0755 dev "$2/dev"
  for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 0666 "$2/dev/${device%:*}" c 1 "${device#*:}"
  done
  mknod -m 0666 "$2/dev/tty" c 5 0
  mkdir "$2/dev/pts" "$2/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$2/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$2/dev/shm"
  ln -s pts/ptmx "$2/dev/ptmx"
  ln -s /proc/self/fd "$2/dev/fd"
  for stream in stdin:0 stdout:1 stderr:2; do
    ln -s "/proc/self/fd/${stream#*:}" "$2/dev/${stream%:*}"
  done
fi
shift 3
exec "$@"
"""


def build_environment(epoch: int) -> dict[str, str]:
    """Return the complete environment of programs that make an image's files.

    `epoch` (seconds) is the time that they use; https://reproducible-builds.org/specs/
    """
    return {
        "DEBIAN_FRONTEND": "noninteractive",
        "E2FSPROGS_FAKE_TIME": str(epoch),
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        # Modules that package scripts import would be compiled in no fixed order.
        "PYTHONDONTWRITEBYTECODE": "1",
        "SOURCE_DATE_EPOCH": str(epoch),
    }


@dataclass(frozen=True)
class Overlay:
    """Trees, lowest first, mounted as one at `at`; writes go to `upper` (None: read-only).

    Without trees in `lower`, `at` itself is the tree.
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
    """Return argv that runs `command` so that its mounts and processes end with our thread."""
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork"),
        *("--kill-child", "--mount-proc", *command),
    ]


def in_overlay_argv(
    overlay: Overlay, command: Sequence[str], *, for_chroot: bool = False
) -> list[str]:
    """Return argv that runs `command` with the overlay mounted, and what a chroot needs."""
    mounted = ["sh", "-eu", "-c", _MOUNT, "sandbox"]
    mounted += [overlay.mount_options(), str(overlay.at), "chroot" if for_chroot else ""]
    return contained_argv([*mounted, *command])
