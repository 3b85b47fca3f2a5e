"""Everything that the controller uses of uvicorn beyond its documented interface.

No other module imports uvicorn; an import contract keeps it so. The tables name what our subclasses
override, call and read. uvicorn promises none of it, so pyproject.toml has an upper bound, and
tests/unit/test_uvicorn_internals.py compares the tables with the installed version. When that test
fails after an update: adapt the subclass that it names, then the table, then the upper bound.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import uvicorn
from uvicorn import Config as UvicornConfig
from uvicorn import Server as UvicornServer
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

__all__ = [
    "ASGI3Application",
    "HttpToolsProtocol",
    "RequestResponseCycle",
    "ServerState",
    "UvicornConfig",
    "UvicornServer",
    "WebSocketsSansIOProtocol",
]


@dataclass(frozen=True)
class Internals:
    """The parts of one class of uvicorn that we rely on.

    subclass    module and name of our class; None if we use the class without deriving from it
    base        uvicorn's class
    methods     names and parameters of methods that are overridden or called
    attributes  names of attributes that are read or set
    """

    subclass: tuple[str, str] | None
    base: type
    methods: Mapping[str, str]
    attributes: frozenset[str]

    def changes(self) -> Iterator[str]:
        """Say in words how the installed uvicorn differs from the table."""
        name = f"uvicorn {uvicorn.__version__}: {self.base.__name__}"
        for method, parameters in self.methods.items():
            found = getattr(self.base, method, None)
            if found is None:
                yield f"{name} has no method {method} any more"
            elif (now := ", ".join(inspect.signature(found).parameters)) != parameters:
                yield f"{name}.{method} has the parameters ({now}) instead of ({parameters})"
        source = inspect.getsource(self.base)
        for attribute in sorted(self.attributes):
            if f"self.{attribute}" not in source and attribute not in self.base.__annotations__:
                yield f"{name} has no attribute {attribute} any more"


INTERNALS = (
    Internals(
        ("polydev.controller.http_connection", "Protocol"),
        HttpToolsProtocol,
        {
            "__init__": "self, config, server_state, app_state, _loop",
            "_should_upgrade": "self",
            "_start_asgi_task": "self, cycle, app",
            "_unset_keepalive_if_required": "self",
            "connection_lost": "self, exc",
            "connection_made": "self, transport",
            "data_received": "self, data",
            "handle_websocket_upgrade": "self",
            "on_body": "self, body",
            "on_header": "self, name, value",
            "on_headers_complete": "self",
            "on_message_begin": "self",
            "on_message_complete": "self",
            "on_response_complete": "self",
            "on_url": "self, url",
            "pause_writing": "self",
            "resume_writing": "self",
            "shutdown": "self",
            "timeout_keep_alive_handler": "self",
        },
        frozenset(
            {
                "client",
                "connections",
                "cycle",
                "flow",
                "loop",
                "parser",
                "pipeline",
                "server_state",
                "timeout_keep_alive",
                "timeout_keep_alive_task",
                "transport",
            }
        ),
    ),
    Internals(
        None,
        RequestResponseCycle,
        {},
        frozenset(
            {
                "disconnected",
                "keep_alive",
                "message_event",
                "more_body",
                "response_complete",
                "response_started",
            }
        ),
    ),
    Internals(
        ("polydev.controller.relay.websocket_takeover", "RelayProtocol"),
        WebSocketsSansIOProtocol,
        {
            "__init__": "self, config, server_state, app_state, _loop",
            "connection_lost": "self, exc",
            "connection_made": "self, transport",
            "data_received": "self, data",
            "handle_connect": "self, event",
            "pause_writing": "self",
            "resume_writing": "self",
            "shutdown": "self",
            "stop_keepalive": "self",
        },
        frozenset(
            {
                "conn",
                "frames",
                "handshake_complete",
                "logger",
                "loop",
                "queue",
                "response",
                "scope",
                "transport",
                "writable",
            }
        ),
    ),
    Internals(
        ("polydev.controller.server", "Server"),
        UvicornServer,
        {
            "__init__": "self, config",
            "capture_signals": "self",
            "main_loop": "self",
            "on_tick": "self, counter",
            "run": "self, sockets",
            "shutdown": "self, sockets",
            "startup": "self, sockets",
        },
        frozenset(
            {
                "config",
                "lifespan",
                "server_state",
                "servers",
                "should_exit",
                "started",
            }
        ),
    ),
)
