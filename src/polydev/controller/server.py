"""The server: uvicorn on systemd's sockets, with a health check first and a lossless shutdown.

Two processes share the listening socket while a release hands over to the next. The new process
accepts connections once it is healthy. The old one stops accepting and completes its requests. It
keeps idle connections open for a moment, since their clients may be sending a request, which it
answers with `Connection: close`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI

from polydev.controller.app import create_app
from polydev.controller.app_services import Services
from polydev.controller.entities import now
from polydev.controller.http_connection import LINGER_SECONDS, Protocol, State
from polydev.controller.in_process_request import ask
from polydev.controller.relay.websocket_takeover import RelayProtocol
from polydev.controller.sd_notify import feed_watchdog, inherited_sockets, notify
from polydev.controller.settings import ControllerSettings
from polydev.controller.url_paths import HEALTH_PATH
from polydev.controller.uvicorn_internals import UvicornConfig, UvicornServer
from polydev.errors import ConfigError
from polydev.vm.cancel_on_timeout import limited

log = structlog.stdlib.get_logger(__name__)

BACKLOG = 4096  # as in master-controller.socket, whose value this would replace
TICK_SECONDS = 1.0


class Server(UvicornServer):
    """`refused`: the server did not start, since the application is not healthy."""

    server_state: State

    def __init__(
        self, settings: ControllerSettings, app: FastAPI, *, only_if_healthy: bool
    ) -> None:
        super().__init__(_uvicorn_config(settings, app))
        self.app = app
        self.services: Services = app.state.services
        self.server_state = State(
            settings.connections, settings.trusted_proxies, self.services.metrics
        )
        self.only_if_healthy = only_if_healthy
        self.refused = False
        self._tls = _tls(settings)
        self._handshake_seconds = settings.connections.header_seconds
        self._drain_keep_alive_seconds = settings.drain_keep_alive_seconds
        self._stop = asyncio.Event()
        self._watchdog: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit or not await self._may_serve():
            self.should_exit = self.refused = True
            await self.lifespan.shutdown()
            return
        loop = asyncio.get_running_loop()
        connection = partial(
            Protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self.servers = [
            await loop.create_server(
                connection,
                sock=each,
                backlog=self.config.backlog,
                **self._tls_options(),
            )
            for each in sockets or []
        ]
        self.started = True
        self.services.begin()
        self._watchdog = loop.create_task(feed_watchdog())
        addresses = [_address(each) for each in sockets or []]
        log.info("serving", addresses=addresses, tls=self._tls is not None)
        notify("READY=1")

    def _tls_options(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        return {
            "ssl": self._tls,
            "ssl_handshake_timeout": self._handshake_seconds,
            "ssl_shutdown_timeout": LINGER_SECONDS,
        }

    async def _may_serve(self) -> bool:
        if not self.only_if_healthy:
            return True
        status, body = await ask(self.app, HEALTH_PATH)
        if status != 200:
            log.error("start_refused_unhealthy", report=json.loads(body))
        return status == 200

    async def main_loop(self) -> None:
        # on_tick updates the Date header. The signal to stop must not wait for it.
        while not await self.on_tick(0):
            with suppress(asyncio.TimeoutError):
                await limited(TICK_SECONDS, self._stop.wait())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        log.info("shutdown_begun", connections=len(self.server_state.connections))
        self.server_state.draining_seconds = self._drain_keep_alive_seconds
        ending = asyncio.create_task(self.services.end())
        await super().shutdown(sockets)
        await ending
        if self._watchdog is not None:
            self._watchdog.cancel()
        log.info("shutdown_complete", requests=self.server_state.total_requests)

    def _end(self) -> None:
        self.should_exit = True
        self._stop.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again at its end, so that the exit status is never 0.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield


def _tls(settings: ControllerSettings) -> ssl.SSLContext | None:
    """Return the TLS context; None without a certificate."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    from polydev.controller.tls import server_context, trouble_now  # expensive to import

    certificate = settings.tls_certificate.get_secret_value()
    if trouble := trouble_now(certificate, now()):
        log.warning("tls_certificate_not_valid_now", reason=trouble)
    return server_context(certificate, settings.tls_key.get_secret_value())


def _uvicorn_config(settings: ControllerSettings, app: FastAPI) -> UvicornConfig:
    return UvicornConfig(
        app,
        http=Protocol,
        backlog=BACKLOG,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # auth.client_address reads them, from trusted proxies only
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.drain_seconds,
        ws=RelayProtocol,
    )


def serve(settings: ControllerSettings, *, only_if_healthy: bool) -> int:
    """Serve until SIGTERM, and return the exit status."""
    server = Server(settings, create_app(settings), only_if_healthy=only_if_healthy)
    server.run(sockets=inherited_sockets() or [_own_socket(settings.host, settings.port)])
    return 1 if server.refused else 0


def _own_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error


def _address(listening: socket.socket) -> str:
    name: Any = listening.getsockname()
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
