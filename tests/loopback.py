"""A web server on loopback, for tests of clients; the test chooses its answers."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

# How soon the server notices that it is to end.
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Asked:
    """A request; `target` is its path with the query."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path


@dataclass(frozen=True)
class Answer:
    """An answer: with `parts` their chunks, each as soon as it is there, as the body.

    `raw` is sent as it is, in place of everything else, and the connection ends after it.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Iterable[bytes] | None = None
    raw: Iterable[bytes] | None = None


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


Answerer = Callable[[Asked], Answer]


@dataclass(frozen=True)
class Served:
    url: str
    asked: list[Asked]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, answer: Answerer) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.answer = answer
        self.asked: list[Asked] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, ssl.SSLError):  # a client may leave at any time
            super().handle_one_request()
            return
        self.close_connection = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, dict(self.headers), body)
        self.server.asked.append(asked)
        self._send(self.server.answer(asked))

    do_GET = do_POST = do_DELETE = do_CONNECT = _answer  # noqa: N815  # names of http.server

    def _send(self, answer: Answer) -> None:
        if answer.raw is not None:
            for part in answer.raw:
                self.wfile.write(part)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.parts is None:
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in answer.parts:
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *words: object) -> None:
        """Say nothing: a test says what went wrong."""


@contextmanager
def served(
    answer: Answerer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> Iterator[Served]:
    with _Server(host, answer) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(POLL_SECONDS,))
        thread.start()
        name = f"[{host}]" if ":" in host else host
        scheme = "https" if tls else "http"
        try:
            yield Served(f"{scheme}://{name}:{server.server_port}", server.asked)
        finally:
            server.shutdown()
            thread.join()
