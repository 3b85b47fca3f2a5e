"""uvicorn's HTTP/1.1, with limits for incomplete requests and a shutdown that loses no request.

Each connection has deadlines for its headers, for its body and for reading answers. A request that
exceeds a limit gets an error, unless another answer is being sent, and its connection is closed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
import structlog

from polydev.controller.auth.client_address import Networks, place_of
from polydev.controller.metrics import Metrics
from polydev.controller.request_limits import (
    MALFORMED,
    MOST_PARSED_BYTES,
    Refusal,
    RequestLimits,
)
from polydev.controller.settings import ConnectionLimits
from polydev.controller.tcp_or_tls_transport import end_writing, unread_bytes, watch_every_byte
from polydev.controller.unfinished_connections import UnfinishedConnections
from polydev.controller.uvicorn_internals import (
    ASGI3Application,
    HttpToolsProtocol,
    RequestResponseCycle,
    ServerState,
    UvicornConfig,
)

log = structlog.stdlib.get_logger(__name__)

MOST_PIPELINED = 64
LINGER_SECONDS = 2.0
TOO_MANY_PIPELINED = Refusal(
    400, "too_many_pipelined", "too many requests without an answer on one connection"
)
UPGRADE_TOO_EARLY = Refusal(
    400, "upgrade_too_early", "a connection can be upgraded once all its answers were read"
)
TOO_MANY_CONNECTIONS = Refusal(
    503, "too_many_connections", "too many open connections: try again later"
)


class State(ServerState):
    """State that all connections share; `draining_seconds` is set once the server stops.

    `unread` has the connections whose clients do not read their answers, oldest first.
    """

    draining_seconds: float | None = None

    def __init__(
        self, limits: ConnectionLimits, trusted_proxies: Networks, metrics: Metrics
    ) -> None:
        super().__init__()
        self.limits = limits
        self.trusted_proxies = trusted_proxies
        self.unfinished = UnfinishedConnections(limits)
        self.unread: dict[Protocol, None] = {}
        self.refused = metrics.connections_refused
        metrics.connections_unfinished.set_function(lambda: len(self.unfinished))


class Protocol(HttpToolsProtocol):
    """One connection."""

    server_state: State
    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None until the first request

    def __init__(
        self,
        config: UvicornConfig,
        server_state: State,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.place: str | None = None
        self._limits = RequestLimits(self.loop, server_state.limits, self._late)
        self._under_way: RequestResponseCycle | None = None
        self._is_refused = False
        self._is_upgraded = False
        self._lingering: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    # A connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        watch_every_byte(transport)
        self.place = place_of(
            self.client[0] if self.client else None, self.server_state.trusted_proxies
        )
        if self.server_state.draining_seconds is not None:
            self.shutdown()  # accepted before the shutdown began
        else:
            self._await_request()
        self._limits.accepted()
        self.server_state.unfinished.add(self)
        if len(self.connections) > self.server_state.limits.most:
            self._make_room()

    def _make_room(self) -> None:
        """Close a connection whose client does not read its answers; if all do, refuse this one."""
        slowest = next(iter(self.server_state.unread), None)
        if slowest is None:
            self.evict()
        else:
            slowest.give_up()

    def give_up(self) -> None:
        """Close the connection although unsent data is left, which its client does not read."""
        self._tell(TOO_MANY_CONNECTIONS.reason)
        self.server_state.unread.pop(self, None)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        # The base class only notifies the newest request, which may wait behind the current one.
        self.pipeline.clear()
        if self._under_way is not None:
            self._under_way.disconnected = True
            self._under_way.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._let_go()
        self.server_state.unread.pop(self, None)
        for timer in (self._lingering, self._sending):
            if timer is not None:
                timer.cancel()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._under_way = cycle
        super()._start_asgi_task(cycle, app)

    def _let_go(self) -> None:
        """Stop all deadlines: no more is expected from the client."""
        self._limits.close()
        self.server_state.unfinished.remove(self)

    def shutdown(self) -> None:
        """Close the connection after its next answer."""
        grace = self.server_state.draining_seconds
        if grace is not None:
            self.timeout_keep_alive = min(self.timeout_keep_alive, grace)  # type: ignore[assignment]
        if not self._is_answering():
            self._await_request()
        elif self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def timeout_keep_alive_handler(self) -> None:
        # A request that has arrived but was not read yet is served.
        if not self.transport.is_closing() and not unread_bytes(self.transport):
            self.transport.close()

    def _await_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self) -> None:
        """Record whether the connection waits for the rest of a request or for an answer."""
        if self.cycle is not None and self._is_answering() and not self.cycle.more_body:
            self.server_state.unfinished.remove(self)
        else:
            self.server_state.unfinished.add(self)

    # In

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), MOST_PARSED_BYTES):
            if self._is_refused or self._is_upgraded or self.transport.is_closing():
                return
            self._parse(data[start : start + MOST_PARSED_BYTES])

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            self._limits.parsed(len(data))
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except (httptools.HttpParserError, Refusal):
            self._refuse(self._limits.refusal or MALFORMED)
        else:
            self._count()

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()
        self._limits.begun()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._limits.target(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._limits.header(name, value)
        if self._limits.phase == "headers":  # else it is a trailer
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MOST_PIPELINED:
            self._limits.refuse(TOO_MANY_PIPELINED)
        super().on_headers_complete()
        self._limits.headers_complete()
        if self.server_state.draining_seconds is not None and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._limits.ended()
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._limits.ended()

    def on_message_complete(self) -> None:
        self._limits.complete()
        super().on_message_complete()

    def _upgrade(self) -> None:
        if not self._should_upgrade():
            self._end_after_answer()  # the parser has dropped the data after the headers
        elif self._is_answering() or self.flow.write_paused:
            self._refuse(UPGRADE_TOO_EARLY)
        else:
            self._is_upgraded = True
            self._unset_keepalive_if_required()
            self._let_go()
            self.handle_websocket_upgrade()

    # Out

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_refused and not self.transport.is_closing():
            self._count()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.server_state.unread[self] = None
        if self._sending is None:
            self._sending = self.loop.call_later(
                self.server_state.limits.send_seconds, self._abort_sending
            )

    def resume_writing(self) -> None:
        super().resume_writing()
        self.server_state.unread.pop(self, None)
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _abort_sending(self) -> None:
        self._tell("send_timeout")
        self.transport.abort()

    # Refusals

    def is_arriving(self) -> bool:
        return not self.transport.is_closing() and unread_bytes(self.transport) > 0

    def evict(self) -> None:
        is_idle = self._limits.phase == "between" and self.cycle is not None
        if self._is_refused or is_idle:
            self._tell(TOO_MANY_CONNECTIONS.reason)
            self.transport.close()
        else:
            self._refuse(TOO_MANY_CONNECTIONS, lingers=False)

    def _late(self, refusal: Refusal) -> None:
        if self.flow.read_paused:
            self._limits.extend()  # the rest may have arrived, but is read after the current answer
        elif self._limits.phase == "between":
            self._tell(refusal.reason)
            self.transport.close()  # the client sent nothing, so there is nothing to answer
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal, *, lingers: bool = True) -> None:
        """Answer with the refusal, unless another answer has begun, and close."""
        self._tell(refusal.reason, refusal.status.value)
        self._is_refused = True
        self._unset_keepalive_if_required()
        self._limits.close()
        is_own_body = self._limits.phase == "body"
        if self._is_answering() and not is_own_body:
            self._end_after_answer()  # of the requests before this one
            return
        if is_own_body and self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or self.pipeline:
                self.transport.close()
                return
            self.cycle.disconnected = True  # the application need not wait for the rest
            self.cycle.message_event.set()
        if not (is_own_body and self.cycle is not None and self.cycle.response_complete):
            self.transport.write(refusal.answer())
        self._close(lingers=lingers)

    def _end_after_answer(self) -> None:
        """Accept no further request and close after the last answer."""
        self._is_refused = True
        if self.cycle is not None:
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()

    def _close(self, *, lingers: bool) -> None:
        """Close. Lingering lets the client read the answer first: unread bytes would reset it."""
        if not lingers:
            self.transport.close()
            return
        self.flow.resume_reading()
        end_writing(self.transport)
        self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _tell(self, reason: str, status: int | None = None) -> None:
        peer = self.client[0] if self.client else None
        self.server_state.refused.labels(reason).inc()
        log.info("connection_refused", reason=reason, status=status, peer=peer)
