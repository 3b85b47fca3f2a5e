"""Checks of the network that VMs need; each one says what it found and what to do about it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import psutil

from polydev.controller.host import network_watch_report
from polydev.controller.host.blocking_call import TIMEOUT_SECONDS, BlockingCall, NoAnswer
from polydev.controller.host.network_watch_report import declared_check, read_report, unread_check
from polydev.controller.host.system_status import NetworkCheck, NetworkHealth, worst
from polydev.controller.machines.bridge_status import BRIDGE

ROUTES = Path("/proc/net/route")
ROUTES_V6 = Path("/proc/net/ipv6_route")
NOWHERE_V6 = "0" * 32
ROUTE_IS_UP = 0x1
ROUTE_REJECTS = 0x200
# Reserved for documentation (RFC 2606), so it always exists.
UPSTREAM_NAME = "example.com"
SLOT_PORT_PREFIX = "vm-"
REDEPLOY = "deploy again with ./inv deploy"


def slot_port(slot: int) -> str:
    """Return the name of the slot's network port in the host's own namespace."""
    return f"{SLOT_PORT_PREFIX}{slot}"


def bridge_check(
    stats: Mapping[str, Any], addresses: Mapping[str, Sequence[Any]], network: IPv4Network
) -> NetworkCheck:
    if BRIDGE not in stats:
        return NetworkCheck(
            name="bridge",
            status="critical",
            detail=f"the bridge {BRIDGE} is missing",
            hint=f"on the host, run systemctl restart polydev-network.service, or {REDEPLOY}",
        )
    # Not `isup`, which also means that a port has a carrier.
    if "up" not in stats[BRIDGE].flags.split(","):
        return NetworkCheck(
            name="bridge",
            status="critical",
            detail=f"the bridge {BRIDGE} is down, so VMs cannot be reached",
            hint=f"on the host, run ip link set {BRIDGE} up, or {REDEPLOY}",
        )
    given = [each.address for each in addresses.get(BRIDGE, ()) if each.family == socket.AF_INET]
    if not any(IPv4Address(each) in network for each in given):
        return NetworkCheck(
            name="bridge",
            status="critical",
            detail=f"the bridge {BRIDGE} has no address in {network}; it has "
            f"{', '.join(given) or 'none'}",
            hint=f"on the host, run networkctl reconfigure {BRIDGE}, or {REDEPLOY}",
        )
    return NetworkCheck(name="bridge", status="healthy", detail=f"{BRIDGE} has {', '.join(given)}")


def slots_check(stats: Mapping[str, Any], slots: Sequence[int]) -> NetworkCheck:
    if not slots:
        return NetworkCheck(
            name="slots",
            status="warning",
            detail="this host has no slots, so no session can start",
            hint="declare slots in the inventory, then run ./inv deploy",
        )
    lost = [each for each in slots if slot_port(each) not in stats]
    down = [each for each in slots if each not in lost and not stats[slot_port(each)].isup]
    if not lost and not down:
        return NetworkCheck(
            name="slots", status="healthy", detail=f"all {len(slots)} slots are connected"
        )
    broken = sorted((*lost, *down))
    said = [_slots_that("are missing", lost), _slots_that("are down", down)]
    return NetworkCheck(
        name="slots",
        status="critical" if len(broken) == len(slots) else "warning",
        detail=f"of {len(slots)} slots " + " and ".join(each for each in said if each),
        hint=f"on the host, run systemctl restart microvm-slot@{broken[0]}.service; it ends its VM",
    )


def _slots_that(verb: str, slots: Iterable[int]) -> str:
    numbers = ", ".join(map(str, slots))
    return f"{numbers} {verb}" if numbers else ""


def default_routes(routes: str, routes_v6: str) -> list[str]:
    """Return the interfaces of default routes, from the texts of /proc/net/{route,ipv6_route}."""
    found = []
    for line in routes.splitlines()[1:]:
        interface, destination, _gateway, flags, *_, mask = line.split()[:8]
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & ROUTE_IS_UP:
            found.append(interface)
    for line in routes_v6.splitlines():
        to, length, *_, flags, interface = line.split()
        usable = int(flags, 16) & ROUTE_IS_UP and not int(flags, 16) & ROUTE_REJECTS
        if to == NOWHERE_V6 and int(length, 16) == 0 and usable and interface != "lo":
            found.append(interface)
    return list(dict.fromkeys(found))


def route_check(interfaces: Sequence[str]) -> NetworkCheck:
    if interfaces:
        return NetworkCheck(
            name="default_route", status="healthy", detail=f"over {', '.join(interfaces)}"
        )
    return NetworkCheck(
        name="default_route",
        status="critical",
        detail="there is no default route, so VMs cannot reach the internet",
        hint="on the host, run ip route and networkctl status; ./inv deploy sets up no uplink",
    )


def dns_check(error: Exception | None) -> NetworkCheck:
    """Check DNS by what became of resolving UPSTREAM_NAME; None: it worked."""
    if error is None:
        return NetworkCheck(name="names", status="healthy", detail=f"{UPSTREAM_NAME} is resolved")
    number = error.errno if isinstance(error, socket.gaierror) else None
    if number in (socket.EAI_NONAME, socket.EAI_NODATA):
        return NetworkCheck(
            name="names",
            status="warning",
            detail=f"the host's DNS resolver answers, but does not know {UPSTREAM_NAME}",
            hint="if this host should reach the internet, check /etc/resolv.conf and its servers",
        )
    return NetworkCheck(
        name="names",
        status="critical",
        detail=f"cannot resolve {UPSTREAM_NAME}: {getattr(error, 'strerror', '') or error}",
        hint="check /etc/resolv.conf, and whether the servers it names answer",
    )


class NetworkChecks:
    def __init__(
        self,
        network: IPv4Network,
        slots: Sequence[int],
        timeout_seconds: float = TIMEOUT_SECONDS,
        report_file: Path = network_watch_report.FILE,
    ) -> None:
        self._network = network
        self._slots = slots
        self._interfaces = BlockingCall(_read_interfaces, timeout_seconds)
        self._declared = BlockingCall(partial(read_report, report_file), timeout_seconds)
        self._routes = BlockingCall(_read_routes, timeout_seconds)
        self._names = BlockingCall(_resolve, timeout_seconds)

    async def report(self) -> NetworkHealth:
        checks = [
            check
            for found in await asyncio.gather(
                self._check_interfaces(),
                self._check_declared(),
                self._check_routes(),
                self._check_names(),
            )
            for check in found
        ]
        return NetworkHealth(status=worst(each.status for each in checks), checks=checks)

    async def _check_interfaces(self) -> list[NetworkCheck]:
        try:
            stats, addresses = await self._interfaces()
        except NoAnswer as error:
            return [_unknown("bridge", error), _unknown("slots", error)]
        return [
            bridge_check(stats, addresses, self._network),
            slots_check(stats, self._slots),
        ]

    async def _check_declared(self) -> list[NetworkCheck]:
        try:
            return [declared_check(await self._declared())]
        except NoAnswer as error:
            return [unread_check(str(error))]

    async def _check_routes(self) -> list[NetworkCheck]:
        try:
            return [route_check(default_routes(*await self._routes()))]
        except NoAnswer as error:
            return [_unknown("default_route", error)]

    async def _check_names(self) -> list[NetworkCheck]:
        try:
            return [dns_check(await self._names())]
        except NoAnswer as error:
            return [dns_check(error)]


def _unknown(name: str, error: NoAnswer) -> NetworkCheck:
    return NetworkCheck(name=name, status="unknown", detail=f"cannot be checked: {error}")


def _read_interfaces() -> tuple[Mapping[str, Any], Mapping[str, Sequence[Any]]]:
    return psutil.net_if_stats(), psutil.net_if_addrs()


def _read_routes() -> tuple[str, str]:
    return ROUTES.read_text(), ROUTES_V6.read_text() if ROUTES_V6.exists() else ""


def _resolve() -> socket.gaierror | None:
    try:
        socket.getaddrinfo(UPSTREAM_NAME, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return error
    return None
