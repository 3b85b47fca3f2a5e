"""A port that stays a test's own, also while nobody listens there."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port for the block, on which the test's own servers may listen.

    While a socket is bound to it, the kernel chooses it for nobody. Servers may listen on it all
    the same: they set SO_REUSEADDR as well, and this socket does not listen.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", 0))
        yield int(reserved.getsockname()[1])
