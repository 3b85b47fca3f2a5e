"""Listening sockets and their owners: real sockets, and tables as the kernel writes them."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from polydev.hosttool import controller_socket, health_gate
from polydev.hosttool import listeners as host_listeners
from polydev.hosttool.controller_socket import foreign_listeners
from polydev.hosttool.listeners import Listener, declared_addresses, listeners, overlap
from polydev.hosttool.systemd import UnitStatus
from polydev.hosttool.units import MAIN, SOCKET, next_unit

SYSTEMD = Listener("0.0.0.0", 4000, 1, "systemd", "init.scope")
STRANGER = Listener("127.0.0.1", 4000, 12, "nginx", "nginx.service")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (10, "::1")])
def test_listening_socket_of_this_process_is_found(family: int, address: str) -> None:
    def there() -> list[Listener]:  # others may have the same port at other addresses
        return [each for each in listeners() if (each.address, each.port) == (address, port)]

    with closing(socket.socket(family, socket.SOCK_STREAM)) as server:
        server.bind((address, 0))
        port = server.getsockname()[1]
        assert not there(), "bound, not listening"
        server.listen()
        (found,) = there()
        assert found.pid == os.getpid()
        assert found.name == Path("/proc/self/comm").read_text().strip()
    assert not there()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:4000 (Stream)\n", {("0.0.0.0", 4000)}),
        ("[::1]:4000 (Stream)\n127.0.0.1:81 (Stream)", {("::1", 4000), ("127.0.0.1", 81)}),
        ("[::]:4000 (Stream)", {("::", 4000)}),
        ("/run/x.sock (Stream)\n", set()),
        ("0.0.0.0:4000 (Datagram)", set()),
        ("", set()),
    ],
)
def test_declared_addresses_are_parsed(text: str, expected: set[tuple[str, int]]) -> None:
    assert declared_addresses(text) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "::1", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_overlapping_listen_addresses(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is overlap(other, one) is expected


@pytest.mark.parametrize(
    ("listener", "is_other"),
    [
        (SYSTEMD, False),
        (Listener("0.0.0.0", 4000, 9, "python3", MAIN), False),
        (Listener("0.0.0.0", 4000, 9, "python3", next_unit("x")), False),
        (STRANGER, True),
        (Listener("127.0.0.1", 4001, 12, "nginx", "nginx.service"), False),
        # A socket of systemd, but of another unit; ours has another address.
        (Listener("127.0.0.1", 4000, 1, "systemd", "init.scope"), True),
    ],
)
def test_foreign_listeners_of_the_controller_address(listener: Listener, is_other: bool) -> None:
    own = {("0.0.0.0", 4000)}
    assert foreign_listeners([listener], own, "127.0.0.1", 4000) == ([listener] if is_other else [])


def test_has_address_finds_own_addresses_only() -> None:
    assert host_listeners.has_address("127.0.0.1")
    assert host_listeners.has_address("0.0.0.0")
    assert not host_listeners.has_address("192.0.2.7")


class SystemdThatForgot:
    """Its socket unit is active; `holds` says whether it still has the socket."""

    def __init__(self, holds: bool, declared: tuple[str, int] = ("127.0.0.1", 4000)) -> None:
        self.holds, self.declared = holds, declared

    def states(self, units: list[str]) -> dict[str, UnitStatus]:
        return {unit: UnitStatus(True, "active", "enabled") for unit in units}

    def declared_sockets(self, unit: str) -> set[tuple[str, int]]:
        return {self.declared}

    def listens(self, unit: str) -> bool:
        return self.holds


class TestGate:
    def test_socket_check_passes_if_systemd_listens(self) -> None:
        check = health_gate.socket_check(SystemdThatForgot(holds=True))  # type: ignore[arg-type]
        assert (check.name, check.ok) == ("socket", True)
        assert "127.0.0.1 port 4000" in check.detail

    def test_socket_check_names_a_process_that_listens_itself(self) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as server:
            systemd = SystemdThatForgot(False, server.getsockname())
            check = health_gate.socket_check(systemd)  # type: ignore[arg-type]
        assert not check.ok
        assert f"{SOCKET} has no socket" in check.detail
        assert f"pid {os.getpid()}" in check.detail

    def test_socket_check_reports_that_no_process_listens(self) -> None:
        with closing(socket.socket()) as bound:  # so that no other process can listen there
            bound.bind(("127.0.0.1", 0))
            systemd = SystemdThatForgot(False, bound.getsockname())
            check = health_gate.socket_check(systemd)  # type: ignore[arg-type]
        assert "no process listens there" in check.detail


@pytest.mark.parametrize("holds", [True, False])
def test_socket_state_reports_lost_socket_and_other_listeners(holds: bool) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        systemd: Any = SystemdThatForgot(holds)
        found: dict[str, Any] = controller_socket.state(systemd, "127.0.0.1", port)
    assert found["lost"] is not holds
    assert found["hasAddress"] is True
    (other,) = found["others"]
    assert other["pid"] == os.getpid()
