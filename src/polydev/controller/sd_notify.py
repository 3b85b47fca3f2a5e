"""sd_notify and socket activation: messages to systemd, and the sockets that it passes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)

FIRST_INHERITED_SOCKET = 3


def inherited_sockets(
    environ: MutableMapping[str, str] = os.environ, pid: int | None = None
) -> list[socket.socket]:
    """Return the listening sockets that systemd passed to this process; [] if none."""
    count = int(environ.pop("LISTEN_FDS", "0"))
    meant_for = environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(pid or os.getpid()):
        return []
    first = FIRST_INHERITED_SOCKET
    handed = [socket.socket(fileno=number) for number in range(first, first + count)]
    for each in handed:
        each.set_inheritable(False)
        each.setblocking(False)
    return handed


def notify_address(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """Return the address of systemd's notify socket; an abstract one starts with a NUL."""
    address = environ.get("NOTIFY_SOCKET")
    return "\0" + address[1:] if address and address.startswith("@") else address


def notify(message: str) -> None:
    """Send a message as in sd_notify(3); without a notify socket, do nothing."""
    address = notify_address()
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(message.encode(), address)
    except OSError as error:
        log.warning("sd_notify failed for %r: %s", message, error)


def watchdog_seconds(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """Return the pause between watchdog messages, half of systemd's limit; None without one."""
    wanted = environ.get("WATCHDOG_USEC")
    if not wanted or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(wanted) / 2_000_000


async def feed_watchdog() -> None:
    """Send watchdog messages from the event loop until cancelled."""
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
