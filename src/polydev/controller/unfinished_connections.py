"""Limit open connections without a complete request: in all, and for each address.

At a limit a new connection is still accepted, and the oldest waiting one is closed. So clients that
send incomplete requests cannot lock out others: a client that sends its request at once is served
long before its connection is the oldest.
"""

from __future__ import annotations

from typing import Protocol

from polydev.controller.settings import ConnectionLimits

MOST_EXAMINED = 32


class PendingConnection(Protocol):
    """`place` is the address or network of the client; None: no limit for each address."""

    @property
    def place(self) -> str | None: ...

    def is_arriving(self) -> bool:
        """Whether unread bytes have arrived."""

    def evict(self) -> None:
        """Close the connection, with an answer if possible."""


class UnfinishedConnections:
    """The connections that wait for a complete request, oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._all: dict[PendingConnection, None] = {}
        self._by_place: dict[str | None, dict[PendingConnection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: PendingConnection) -> None:
        """Add a connection, unless it is there already, and evict the oldest at a limit."""
        if connection in self._all:
            return
        here = self._by_place.setdefault(connection.place, {})
        self._all[connection] = here[connection] = None
        if connection.place is not None and len(here) > self._limits.unfinished_per_address:
            self._evict_oldest(here)
        if len(self._all) > self._limits.unfinished:
            self._evict_oldest(self._all)

    def remove(self, connection: PendingConnection) -> None:
        """Remove a connection whose request is complete, or which is closed, if it is there."""
        if connection not in self._all:
            return
        del self._all[connection]
        here = self._by_place[connection.place]
        del here[connection]
        if not here:
            del self._by_place[connection.place]

    def _evict_oldest(self, connections: dict[PendingConnection, None]) -> None:
        for _ in range(min(MOST_EXAMINED, len(connections))):
            oldest = next(iter(connections))
            if not oldest.is_arriving():
                self.remove(oldest)
                oldest.evict()
                return
            # Its request is about to be read: treat it as new.
            del connections[oldest]
            connections[oldest] = None
