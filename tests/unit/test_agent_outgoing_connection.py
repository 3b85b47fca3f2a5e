"""Connections of the agent's checks: how much is read, how long, and the messages of failures."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.agent.errors import CheckFailed
from polydev.agent.outgoing_connection import Stream


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


@pytest.fixture
def ends(listener: socket.socket) -> Iterator[tuple[Stream, socket.socket]]:
    """Both ends of a connection, that of the check first."""
    with Stream(listener.getsockname(), 60) as stream:
        other, _ = listener.accept()
        with other:
            yield stream, other


Ends = tuple[Stream, socket.socket]


def test_bytes_read_early_are_kept(ends: Ends) -> None:
    stream, other = ends
    other.sendall(b"head\r\n\r\nbody and more")
    assert stream.read_through(b"\r\n\r\n", 100, "a head") == b"head\r\n\r\n"
    assert stream.read_exactly(4, "a body") == b"body"
    assert stream.read_exactly(9, "the rest") == b" and more"


def test_stream_sends_bytes(ends: Ends) -> None:
    stream, other = ends
    stream.send(b"hello")
    assert other.recv(5) == b"hello"


def test_text_without_an_end_is_refused(ends: Ends) -> None:
    stream, other = ends
    other.sendall(b"x" * 101)
    with pytest.raises(CheckFailed, match="sent something else than a head"):
        stream.read_through(b"\n", 100, "a head")


def test_reading_stops_at_the_size_limit(ends: Ends) -> None:
    stream, other = ends
    other.sendall(b"x" * 100)
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(CheckFailed, match="closed the connection before a head"):
        stream.read_through(b"\n", 100, "a head")


def test_connection_closed_early_is_reported(ends: Ends) -> None:
    stream, other = ends
    other.sendall(b"abc")
    other.shutdown(socket.SHUT_WR)
    with pytest.raises(CheckFailed, match="closed the connection before 4 bytes"):
        stream.read_exactly(4, "4 bytes")


def test_one_deadline_covers_sending_and_reading(listener: socket.socket) -> None:
    with Stream(listener.getsockname(), 60) as stream:
        stream._ends = 0.0
        for talk in (lambda: stream.send(b"x"), lambda: stream.read_exactly(1, "a byte")):
            with pytest.raises(CheckFailed, match=r"did not give .* within 60 s$"):
                talk()


def test_reading_ends_at_the_deadline(ends: Ends) -> None:
    stream, _ = ends
    stream._ends += 0.05 - 60
    with pytest.raises(CheckFailed, match=r"did not give a byte within 60 s$"):
        stream.read_exactly(1, "a byte")


def test_missing_socket_and_closed_port_are_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=f"there is no {tmp_path}/none$"):
        Stream(f"{tmp_path}/none", 60)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(CheckFailed, match=f"connection refused on 127.0.0.1:{port}$"):
            Stream(("127.0.0.1", port), 60)


def test_other_os_errors_are_reported(ends: Ends) -> None:
    stream, _ = ends
    error = OSError(errno.ENETUNREACH, "Network is unreachable")
    assert stream._words(error, "x") == f"{stream.name}: network is unreachable"
    assert stream._words(OSError(), "x") == f"{stream.name}: oserror"
