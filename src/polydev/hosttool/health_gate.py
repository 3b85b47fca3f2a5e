"""The health gate: the checks that a host must pass before a deployment counts as done.

The expected values are on the host: /etc/polydev/host.json, the release that `current` names, and
the golden image.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from polydev.host_layout import CONTROLLER_ROOT
from polydev.hosttool import network_state, network_watch, slot_network, sshd
from polydev.hosttool.controller_socket import describe_listener, listeners_at
from polydev.hosttool.errors import HostError
from polydev.hosttool.golden_link import golden_digest, golden_leads_to
from polydev.hosttool.listeners import listeners
from polydev.hosttool.network_facts import BRIDGE_PART, FIREWALL_PART, KERNEL_PART, Difference
from polydev.hosttool.systemd import Systemd
from polydev.hosttool.units import SOCKET, WATCH
from polydev.image_layout import GOLDEN_LINK, ROOTFS, STORE

CURRENT = CONTROLLER_ROOT / "current"
# Units that run programs of a release of the controller.
OF_RELEASE = ("master-controller", "polydev-accelerator", "polydev-template")
CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
POLL_SECONDS = 0.25
ANSWER_SECONDS = 5.0
HEADER_BYTES, ADDRESS_BYTES = 12, 4  # of a DNS answer


@dataclass(frozen=True)
class HealthCheck:
    """One condition that must hold; `detail` says what was found."""

    name: str
    ok: bool
    detail: str


def wait_until_healthy(systemd: Systemd, seconds: float) -> dict[str, object]:
    """Run the checks until all pass or the time is up; return `ok` and the last checks."""
    deadline = time.monotonic() + seconds
    while True:
        checks = run_checks(systemd)
        ok = all(check.ok for check in checks)
        if ok or time.monotonic() >= deadline:
            return {"ok": ok, "checks": [asdict(check) for check in checks]}
        time.sleep(POLL_SECONDS)


def run_checks(systemd: Systemd) -> list[HealthCheck]:
    if not slot_network.HOST_FILE.exists():
        return [HealthCheck("deployed", True, "nothing is deployed on this host")]
    host = slot_network.read_host()
    known = [str(unit) for unit in _words(host.get("units"))]
    checks = units_checks(systemd, known)
    checks.append(sshd_check(host))
    checks += _network_checks(host)
    if WATCH in known:
        checks.append(watch_check(network_watch.watch_differences()))
    if "polydev-dns.service" in known:
        checks.append(_guarded("names", lambda: names_check(host)))
    checks.append(image_check())
    if CURRENT.exists():
        checks.append(_guarded("socket", lambda: socket_check(systemd)))
        checks.append(_guarded("controller", lambda: controller_check(host)))
    return checks


def _words(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def units_checks(systemd: Systemd, units: list[str]) -> list[HealthCheck]:
    states = systemd.states(units)
    wrong = {unit: state.active for unit, state in states.items() if state.active != "active"}
    # Before the first release, units of a release cannot run.
    if not CURRENT.exists():
        wrong = {n: state for n, state in wrong.items() if not n.startswith(OF_RELEASE)}
    found = ", ".join(f"{unit} is {state}" for unit, state in wrong.items())
    return [HealthCheck("units", not wrong, found or f"{len(states)} active")]


def _network_checks(host: dict[str, object]) -> list[HealthCheck]:
    try:
        return network_checks(network_state.check(host), len(_words(host.get("slots"))))
    except (HostError, OSError) as error:
        return [HealthCheck("bridge", False, getattr(error, "message", str(error)))]


def network_checks(found: list[Difference], slot_count: int) -> list[HealthCheck]:
    """Return the checks of the network from its differences; all slots are one check."""
    parts = (BRIDGE_PART, KERNEL_PART, FIREWALL_PART)
    slots_found = [each for each in found if each.part not in parts]
    return [
        *(_part_check(part, [e for e in found if e.part == part], "as declared") for part in parts),
        _part_check("slots", slots_found, f"{slot_count} as declared"),
    ]


def watch_check(found: list[str]) -> HealthCheck:
    """Whether the watch of the network reports."""
    hint = f": {WATCH} does not run, or hangs"
    detail = found[0].removeprefix("- ") + hint if found else "it has just reported"
    return HealthCheck("watch", not found, detail)


def _part_check(name: str, found: list[Difference], well: str) -> HealthCheck:
    return HealthCheck(name, not found, "; ".join(each.text for each in found) or well)


def sshd_check(host: dict[str, object]) -> HealthCheck:
    """Whether the SSH daemon's effective settings are as declared."""
    declared = host.get("sshd")
    found = sshd.differences(declared if isinstance(declared, dict) else {})
    hint = "; what /etc/ssh/sshd_config and the files in sshd_config.d say before ours wins"
    return HealthCheck("sshd", not found, "; ".join(found) + hint if found else "as declared")


def image_check() -> HealthCheck:
    golden = golden_digest(STORE)
    if golden is None:
        is_link = os.path.lexists(STORE / GOLDEN_LINK)
        detail = (
            "the golden link does not point to a promotion" if is_link else "no golden image yet"
        )
        return HealthCheck("image", not is_link, detail)
    there = (STORE / "images" / golden / ROOTFS).is_file()
    if there and not golden_leads_to(STORE, golden):
        return HealthCheck("image", False, f"the golden link does not point to image {golden[:12]}")
    return HealthCheck("image", there, f"golden {golden[:12]}" + ("" if there else " is not there"))


def names_check(host: dict[str, object]) -> HealthCheck:
    """Ask the host's own cache for the name of its first VM."""
    number = int(str(_words(host.get("slots"))[0]))
    slot = slot_network.slot_of(number, host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(ANSWER_SECONDS)
        client.sendto(question(f"vm-{number}.vm.internal"), (slot.gateway, 53))
        answer = client.recv(512)
    if len(answer) < HEADER_BYTES + ADDRESS_BYTES:
        raise OSError("the DNS answer is cut short")
    found = socket.inet_ntoa(answer[-ADDRESS_BYTES:]) if answer[3] & 0x0F == 0 else "no address"
    return HealthCheck("names", found == slot.address, f"vm-{number} is {found}")


def question(name: str) -> bytes:
    """A DNS query for an address (RFC 1035, section 4.1)."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


def socket_check(systemd: Systemd) -> HealthCheck:
    """Whether systemd listens for the controller, as the next release needs it."""
    declared = systemd.declared_sockets(SOCKET)
    where = ", ".join(f"{address} port {port}" for address, port in sorted(declared))
    if systemd.listens(SOCKET):
        return HealthCheck("socket", True, f"systemd listens at {where}")
    found = [each for place in sorted(declared) for each in listeners_at(listeners(), *place)]
    holders = ", ".join(map(describe_listener, found)) or "no process"
    detail = f"{SOCKET} has no socket at {where or 'any address'}: {holders} listens there"
    return HealthCheck("socket", False, detail)


def controller_check(host: dict[str, object]) -> HealthCheck:
    """Whether the controller answers 200 and is the release that `current` names."""
    wanted = Path(os.readlink(CURRENT)).name
    address, port = (
        str(host.get("controllerAddress", "127.0.0.1")),
        int(str(host["controllerPort"])),
    )
    certificate = host.get("controllerCertificate")
    connection = _connection(address, port, is_tls=certificate is not None)
    try:
        connection.request("GET", "/api/auth/health")
        if certificate is not None and not _has_certificate(connection, Path(str(certificate))):
            return HealthCheck("controller", False, f"its certificate is not that of {certificate}")
        answer = connection.getresponse()
        said = answer.read(65536).decode(errors="replace")
    finally:
        connection.close()
    try:
        release = json.loads(said).get("release")
    except (ValueError, AttributeError):
        release = None
    ok = answer.status == 200 and release == wanted
    detail = f"{answer.status}, release {release}"
    return HealthCheck(
        "controller", ok, detail if ok else f"{detail}, wanted {wanted}: {said[:500]}"
    )


def _connection(address: str, port: int, *, is_tls: bool) -> http.client.HTTPConnection:
    """Connect to the controller; its certificate has another name, so it is compared as a whole."""
    if not is_tls:
        return http.client.HTTPConnection(address, port, timeout=ANSWER_SECONDS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(address, port, timeout=ANSWER_SECONDS, context=context)


def _has_certificate(connection: http.client.HTTPConnection, file: Path) -> bool:
    """Whether the first certificate of the file is the one that the peer showed."""
    found = CERTIFICATE.search(file.read_text())
    shown = getattr(connection.sock, "getpeercert", lambda _: None)(True)
    return found is not None and ssl.PEM_cert_to_DER_cert(found[0]) == shown


def _guarded(name: str, check: Callable[[], HealthCheck]) -> HealthCheck:
    try:
        return check()
    except (HostError, OSError, http.client.HTTPException) as error:
        return HealthCheck(name, False, f"no answer: {error}")
