"""Settings of pyinfra's SSH connection: patient at first, no delays, its loss soon noticed."""

from __future__ import annotations

import socket
from typing import Any

from pyinfra.context import host

# The SSH daemon of a busy host greets late. Paramiko waits 15 s by default.
GREETING_SECONDS = 60
OF_ALL_HOSTS = {
    "ssh_paramiko_connect_kwargs": {
        "banner_timeout": GREETING_SECONDS,
        "auth_timeout": GREETING_SECONDS,
    }
}
KEEPALIVE_SECONDS = 5
CUT_AFTER_MS = 20_000


def tune_connection() -> None:
    """Send small packets at once, and notice a lost connection within seconds.

    By default each small packet of a command waits for the one before it, and TCP gives up on a
    peer that is gone only after a quarter of an hour.
    """
    client: Any = getattr(host.connector, "client", None)
    if client is not None:
        transport = client.get_transport()
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CUT_AFTER_MS)
        transport.set_keepalive(KEEPALIVE_SECONDS)
