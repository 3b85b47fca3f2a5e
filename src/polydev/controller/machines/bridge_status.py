"""Whether the bridge of the VMs is up. Reading that needs no privilege."""

from __future__ import annotations

import errno
from pathlib import Path

BRIDGE = "br-vm"
FLAGS = Path(f"/sys/class/net/{BRIDGE}/flags")
IS_UP = 0x1
NO_ROUTE = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def bridge_problem(error: BaseException | None) -> str | None:
    """Return what is wrong with the bridge if it explains why a VM could not be reached, or None.

    `error` may be wrapped in others. Without the bridge there is no route to VMs, so the kernel
    refuses a connection at once; it also does that for a VM that does not answer on the bridge.
    """
    while error is not None and getattr(error, "errno", None) not in NO_ROUTE:
        error = error.__cause__ or error.__context__
    return None if error is None else _problem()


def _problem() -> str | None:
    try:
        is_up = int(FLAGS.read_text(), 16) & IS_UP
    except (OSError, ValueError):
        return f"the host's bridge {BRIDGE} is missing"
    return None if is_up else f"the host's bridge {BRIDGE} is down"
