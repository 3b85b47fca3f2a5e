"""systemd's side of a service: sockets that it hands over, and what it wants to be told."""

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
    """The listening sockets that were handed to this very process; [] if there are none."""
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
    """Where systemd listens for news; an abstract socket's name starts with a NUL."""
    address = environ.get("NOTIFY_SOCKET")
    return "\0" + address[1:] if address and address.startswith("@") else address


def notify(news: str) -> None:
    """Tell systemd, as sd_notify(3) has it; nothing where nobody wants to know."""
    address = notify_address()
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(news.encode(), address)
    except OSError as error:
        log.warning("systemd could not be told %r: %s", news, error)


def watchdog_seconds(environ: MutableMapping[str, str] = os.environ) -> float | None:
    """How often systemd wants a sign of life: half of what it waits; None if it wants none."""
    wanted = environ.get("WATCHDOG_USEC")
    if not wanted or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(wanted) / 2_000_000


async def feed_watchdog() -> None:
    """Tell systemd that the event loop is alive, until cancelled."""
    seconds = watchdog_seconds()
    while seconds is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
