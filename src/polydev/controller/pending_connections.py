"""How many connections may be open without a complete request: overall, and for each address.

A connection above a limit is accepted, and the one that has waited longest for its request is
closed instead. So half a request, however often it is sent, keeps nobody out: a client that sends
its request at once is served before its connection is the oldest.
"""

from __future__ import annotations

from typing import Protocol

from polydev.controller.settings import ConnectionLimits

MOST_EXAMINED = 32


class PendingConnection(Protocol):
    """`place` is the address or network that it comes from; None: no limit of its own."""

    @property
    def place(self) -> str | None: ...

    def is_arriving(self) -> bool:
        """Whether bytes that it has not read yet are here."""

    def evict(self) -> None:
        """Close it, and say why where that is possible."""


class PendingConnections:
    """The connections without a complete request, in the order in which they began to wait."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._all: dict[PendingConnection, None] = {}
        self._by_place: dict[str | None, dict[PendingConnection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: PendingConnection) -> None:
        """It waits for a request, unless it does so already. What exceeds a limit is evicted."""
        if connection in self._all:
            return
        here = self._by_place.setdefault(connection.place, {})
        self._all[connection] = here[connection] = None
        if connection.place is not None and len(here) > self._limits.unfinished_per_address:
            self._evict_oldest(here)
        if len(self._all) > self._limits.unfinished:
            self._evict_oldest(self._all)

    def remove(self, connection: PendingConnection) -> None:
        """Its request is complete, or it is closed; again is nothing."""
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
            # It is about to be read, so it is as good as new.
            del connections[oldest]
            connections[oldest] = None
