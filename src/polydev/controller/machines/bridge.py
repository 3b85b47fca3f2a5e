"""Whether the bridge of VMs is up. Everybody may ask that, so no privilege is needed."""

from __future__ import annotations

import errno
from pathlib import Path

BRIDGE = "br-vm"
FLAGS = Path(f"/sys/class/net/{BRIDGE}/flags")
IS_UP = 0x1
NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def bridge_trouble(error: BaseException | None) -> str | None:
    """Why a connection to a VM found no way there, if that is the bridge; else None.

    `error` may be wrapped in others. Without the bridge no route leads to VMs, so the kernel
    refuses at once; but it also does so for a VM that does not answer on the bridge.
    """
    while error is not None and getattr(error, "errno", None) not in NO_WAY:
        error = error.__cause__ or error.__context__
    return None if error is None else _trouble()


def _trouble() -> str | None:
    try:
        is_up = int(FLAGS.read_text(), 16) & IS_UP
    except (OSError, ValueError):
        return f"the host's bridge {BRIDGE} is missing"
    return None if is_up else f"the host's bridge {BRIDGE} is down"
