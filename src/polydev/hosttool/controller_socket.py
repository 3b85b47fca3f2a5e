"""The controller's socket: whether systemd listens on it, and which processes are in the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from polydev.hosttool.listeners import PROC, SYSTEMD_PID, Listener, has_address, listeners, overlap
from polydev.hosttool.systemd import Systemd
from polydev.hosttool.units import MAIN, NEXT, NEXT_PATTERN, SOCKET


def state(systemd: Systemd, address: str, port: int) -> dict[str, object]:
    """Return the state that a deployment needs before the controller listens at an address.

    `lost`: the socket unit is active, but systemd does not listen. `others`: listeners of other
    programs that would keep the controller from listening there.
    """
    own = systemd.declared_sockets(SOCKET)
    is_active = systemd.states([SOCKET])[SOCKET].is_running
    return {
        "lost": is_active and not systemd.listens(SOCKET),
        "hasAddress": has_address(address),
        "others": [asdict(each) for each in foreign_listeners(listeners(PROC), own, address, port)],
    }


def socket_users(systemd: Systemd) -> list[str]:
    """Return the socket, if it runs, and the running units that use it, in the order to stop them.

    systemd refuses to start a socket whose service runs, and a service that had to listen by
    itself keeps the address.
    """
    states = systemd.states([SOCKET, MAIN, *systemd.loaded(NEXT_PATTERN)])
    return [unit for unit, state in states.items() if state.is_running]


def listeners_at(found: Iterable[Listener], address: str, port: int) -> list[Listener]:
    """Return the listeners that keep others from listening at an address."""
    return [each for each in found if each.port == port and overlap(each.address, address)]


def foreign_listeners(
    found: Iterable[Listener], own: set[tuple[str, int]], address: str, port: int
) -> list[Listener]:
    """Return the listeners of other programs at an address; `own` are the socket's addresses."""
    return [
        each
        for each in listeners_at(found, address, port)
        if not each.unit.startswith((MAIN, NEXT))
        and not (each.pid == SYSTEMD_PID and (each.address, each.port) in own)
    ]


def describe_listener(found: Listener) -> str:
    return f"{found.name} (pid {found.pid}{f', {found.unit}' if found.unit else ''})"
