"""The health gate: its checks, and how it judges their results."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.controller.host import network_watch_report
from polydev.hosttool import (
    golden_link,
    health_gate,
    network_state,
    network_watch,
    slot_network,
    sshd,
)
from polydev.hosttool.errors import HostError
from polydev.hosttool.health_gate import question
from polydev.hosttool.network_facts import Difference
from polydev.hosttool.systemd import RealSystemd, UnitStatus

UNITS = ["polydev-network.service", "polydev-dns.service", "master-controller.service"]
RELEASE = "20250131_120000-abcd"
DIGEST = "a" * 64


class Units(RealSystemd):
    """systemd with every unit active except the named ones."""

    def __init__(self, **states: str) -> None:
        self.states_of = {name.replace("_", "-") + ".service": s for name, s in states.items()}
        self.asked = 0

    def states(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        self.asked += 1
        return {unit: UnitStatus(True, self.states_of.get(unit, "active")) for unit in units}

    def declared_sockets(self, unit: str) -> set[tuple[str, int]]:
        return {("127.0.0.1", 4000)}

    def listens(self, unit: str) -> bool:
        return True


class Names:
    """A fake socket to a DNS server that answers with these bytes."""

    def __init__(self, answer: bytes | Exception) -> None:
        self.answer = answer
        self.sent: list[tuple[bytes, object]] = []

    def __call__(self, family: int, kind: int) -> Names:
        assert kind == socket.SOCK_DGRAM
        return self

    def __enter__(self) -> Names:
        return self

    def __exit__(self, *_: object) -> None: ...

    def settimeout(self, seconds: float) -> None: ...

    def sendto(self, data: bytes, address: object) -> None:
        self.sent.append((data, address))

    def recv(self, size: int) -> bytes:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Controller:
    """A connection to a controller with one fixed answer."""

    def __init__(self, status: int, body: str) -> None:
        self.status, self.body = status, body
        self.asked: list[tuple[str, int, str]] = []

    def __call__(self, host: str, port: int, timeout: float) -> Controller:
        self.asked.append((host, port, ""))
        return self

    def request(self, method: str, path: str) -> None:
        if self.status == 0:
            raise ConnectionRefusedError(111, "Connection refused")
        self.asked[-1] = (*self.asked[-1][:2], f"{method} {path}")

    def getresponse(self) -> Controller:
        return self

    def read(self, size: int) -> bytes:
        return self.body.encode()

    def close(self) -> None: ...


class Host:
    """The host as the gate sees it, as files in a folder."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.patch = root, patch
        self.file, self.store = root / "host.json", root / "store"
        self.current = root / "current"
        self.known: dict[str, Any] = {
            "bridge": {"name": "br-vm", "address": "192.168.100.1/24"},
            "slots": [2, 3],
            "units": UNITS,
            "controllerAddress": "127.0.0.1",
            "controllerPort": 4000,
        }
        self.names = Names(answer_of("192.168.100.2"))
        self.controller = Controller(200, json.dumps({"release": RELEASE}))
        self.systemd = Units()
        self.write()
        self.current.symlink_to(f"releases/{RELEASE}")
        (root / "releases" / RELEASE).mkdir(parents=True)
        self.differences: list[Difference] = []
        self.unread: Exception | None = None
        self.image(DIGEST)

    def write(self) -> None:
        self.file.write_text(json.dumps(self.known))

    def network(self, known: dict[str, Any]) -> list[Difference]:
        assert known == self.known
        if self.unread:
            raise self.unread
        return self.differences

    def image(self, digest: str) -> None:
        folder = self.store / "images" / digest
        folder.mkdir(parents=True)
        (folder / "rootfs.ext4").touch()
        (folder / "record.json").touch()
        golden_link.make_golden(digest, self.store)

    def look(self) -> dict[str, str]:
        """Run the gate; return the details of failed checks by name."""
        patch = self.patch
        patch.setattr(slot_network, "HOST_FILE", self.file)
        patch.setattr(slot_network, "read_host", lambda: json.loads(self.file.read_bytes()))
        patch.setattr(network_state, "check", self.network)
        patch.setattr(health_gate, "STORE", self.store)
        patch.setattr(health_gate, "CURRENT", self.current)
        patch.setattr("polydev.hosttool.health_gate.socket.socket", self.names)
        patch.setattr("polydev.hosttool.health_gate.http.client.HTTPConnection", self.controller)
        self.checks = health_gate.run_checks(self.systemd)
        return {check.name: check.detail for check in self.checks if not check.ok}


def answer_of(address: str, code: int = 0) -> bytes:
    return struct.pack(">HHHHHH", 1, 0x8180 | code, 1, 1, 0, 0) + b"x" + socket.inet_aton(address)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_all_checks_pass_on_a_healthy_host(host: Host) -> None:
    assert host.look() == {}
    names = [check.name for check in host.checks]
    network = ["sshd", "bridge", "kernel", "firewall", "slots"]
    assert names == ["units", *network, "names", "image", "socket", "controller"]
    assert [check.detail for check in host.checks][:2] == ["3 active", "as declared"]
    assert host.checks[5].detail == "2 as declared"


def test_undeclared_sshd_settings_are_reported(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshd, "effective", lambda _: {"passwordauthentication": "yes"})
    host.known["sshd"] = {"passwordauthentication": "no"}
    host.file.write_text(json.dumps(host.known))
    (detail,) = host.look().values()
    assert detail.startswith("- sshd: passwordauthentication yes; + sshd: ")
    assert "/etc/ssh/sshd_config" in detail


def test_host_without_a_deployment_passes(host: Host) -> None:
    host.file.unlink()
    assert host.look() == {}
    assert [check.name for check in host.checks] == ["deployed"]


def test_inactive_units_are_named(host: Host) -> None:
    host.systemd = Units(polydev_network="failed", master_controller="activating")
    assert host.look()["units"] == (
        "polydev-network.service is failed, master-controller.service is activating"
    )


def test_controller_is_not_checked_before_the_first_release(host: Host) -> None:
    host.current.unlink()
    host.known["units"] = [*UNITS, "polydev-templates.service"]
    host.write()
    down = {"master_controller": "inactive", "polydev_templates": "inactive"}
    host.systemd = Units(**down, polydev_network="failed")
    assert host.look() == {"units": "polydev-network.service is failed"}
    assert "controller" not in [check.name for check in host.checks]


def test_network_differences_are_reported_by_part(host: Host) -> None:
    host.differences = [
        Difference("slot-2", "vm-2 isolated", ("off",), ("on",), opens=True),
        Difference("bridge", "br-vm state", ("down",), ("up",), opens=False),
        Difference("slot-3", "tap0", ("missing",), ("there",), opens=False),
        Difference("firewall", "nftables rules", ("accept",), (), opens=True),
    ]
    assert host.look() == {
        "bridge": "bridge: br-vm state: down instead of up",
        "firewall": "firewall: nftables rules: unexpected: accept",
        "slots": "slot-2: vm-2 isolated: off instead of on; slot-3: tap0: missing instead of there",
    }


@pytest.mark.parametrize(
    ("age", "found"),
    [
        (1.0, None),
        (61.0, "61 s old"),
        (-5.0, "-5 s old"),  # from before the machine's start
        (None, "none was written since the host's start"),
        ("x", "cannot be read"),
    ],
)
def test_silent_network_watch_is_reported(
    host: Host, monkeypatch: pytest.MonkeyPatch, age: float | str | None, found: str | None
) -> None:
    """The process may exist and hang, for example after SIGSTOP."""
    monkeypatch.setattr(network_watch, "REPORT", host.root / "network.json")
    now = 1000.0
    monkeypatch.setattr(network_watch, "time", SimpleNamespace(monotonic=lambda: now))
    if age is not None:
        at = now - age if isinstance(age, float) else age
        network_watch.REPORT.write_text(json.dumps({"at": at}))
    assert host.look() == {}, "there is no watch on this host"
    host.known["units"] = [*UNITS, "polydev-network-watch.service"]
    host.write()
    said = host.look()
    assert list(said) == ([] if found is None else ["watch"])
    if found:
        assert found in said["watch"]
        assert "polydev-network-watch.service does not run, or hangs" in said["watch"]
        assert network_watch.watch_differences()[1] == (
            "+ report of the watch: no more than 60 s old"
        )
    assert network_watch.FRESH_SECONDS == network_watch_report.FRESH_SECONDS


@pytest.mark.parametrize(
    "error",
    [HostError("network-unread", "cannot read: no"), FileNotFoundError(2, "cannot read: no")],
)
def test_unreadable_network_fails(host: Host, error: Exception) -> None:
    host.unread = error
    assert "cannot read: no" in host.look()["bridge"]


class TestImage:
    def test_host_without_a_golden_image_passes(self, host: Host) -> None:
        (host.store / "golden-rootfs.ext4").unlink()
        assert host.look() == {}

    def test_missing_golden_image_fails(self, host: Host) -> None:
        (host.store / "images" / DIGEST / "rootfs.ext4").unlink()
        assert host.look() == {"image": f"golden {DIGEST[:12]} is not there"}


class TestDns:
    def test_dns_check_asks_the_host_for_its_first_vm(self, host: Host) -> None:
        host.look()
        assert host.names.sent == [(question("vm-2.vm.internal"), ("192.168.100.1", 53))]

    @pytest.mark.parametrize(
        ("answer", "detail"),
        [
            (answer_of("192.168.100.3"), "vm-2 is 192.168.100.3"),
            (answer_of("192.168.100.2", code=3), "vm-2 is no address"),
            (answer_of("192.168.100.2", code=2), "vm-2 is no address"),
            (TimeoutError("timed out"), "no answer: timed out"),
            (b"", "no answer: the DNS answer is cut short"),
            (b"\0\1\x81", "no answer: the DNS answer is cut short"),
        ],
    )
    def test_wrong_dns_answers_fail(
        self, host: Host, answer: bytes | Exception, detail: str
    ) -> None:
        host.names = Names(answer)
        assert host.look() == {"names": detail}

    def test_dns_is_not_checked_without_dnsmasq(self, host: Host) -> None:
        host.known["units"] = ["polydev-network.service"]
        host.write()
        host.names = Names(TimeoutError("timed out"))
        assert host.look() == {}

    def test_dns_question_has_the_standard_format(self) -> None:
        assert question("vm-2.vm.internal") == (
            b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
            b"\x04vm-2\x02vm\x08internal\x00"
            b"\x00\x01\x00\x01"
        )


class TestController:
    def test_controller_is_asked_at_its_listen_address(self, host: Host) -> None:
        host.known["controllerAddress"], host.known["controllerPort"] = "10.0.0.7", 81
        host.write()
        host.look()
        assert host.controller.asked == [("10.0.0.7", 81, "GET /api/auth/health")]

    @pytest.mark.parametrize(
        ("status", "body", "words"),
        [
            (503, json.dumps({"release": RELEASE, "why": "x"}), "503, release 20250131"),
            (200, json.dumps({"release": "old"}), f"200, release old, wanted {RELEASE}"),
            (200, "no json", "200, release None"),
            (200, "[]", "200, release None"),
            (200, "null", "200, release None"),
            (0, "", "no answer: .*Connection refused"),
        ],
    )
    def test_answer_of_another_release_fails(
        self, host: Host, status: int, body: str, words: str
    ) -> None:
        host.controller = Controller(status, body)
        (wrong,) = host.look().items()
        assert wrong[0] == "controller"
        with pytest.raises(ValueError, match=words):
            raise ValueError(wrong[1])

    def test_controller_answer_is_shortened(self, host: Host) -> None:
        host.controller = Controller(503, "x" * 60000)
        assert len(host.look()["controller"]) < 1000


class TestWaiting:
    def seconds(self, patch: pytest.MonkeyPatch, looks: list[bool]) -> Callable[[], float]:
        """Install a clock that advances by sleeping, and these results of the checks."""
        clock = [0.0]

        def sleep(seconds: float) -> None:
            clock[0] += seconds

        patch.setattr("polydev.hosttool.health_gate.time.monotonic", lambda: clock[0])
        patch.setattr("polydev.hosttool.health_gate.time.sleep", sleep)
        rest = iter(looks)
        patch.setattr(
            health_gate,
            "run_checks",
            lambda systemd: [health_gate.HealthCheck("x", next(rest, looks[-1]), "found")],
        )
        return lambda: clock[0]

    def test_waiting_ends_when_all_checks_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self.seconds(monkeypatch, [False, False, True])
        found = health_gate.wait_until_healthy(Units(), 60)
        assert found == {"ok": True, "checks": [{"name": "x", "ok": True, "detail": "found"}]}
        assert clock() == 2 * health_gate.POLL_SECONDS

    def test_waiting_ends_after_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self.seconds(monkeypatch, [False])
        assert health_gate.wait_until_healthy(Units(), 3)["ok"] is False
        assert 3 <= clock() <= 3 + health_gate.POLL_SECONDS

    def test_checks_run_once_without_waiting_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self.seconds(monkeypatch, [False, True])
        assert health_gate.wait_until_healthy(Units(), 0)["ok"] is False
        assert clock() == 0
