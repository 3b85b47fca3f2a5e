"""A VM as a unit of a deployed host, started by the controller's user through D-Bus and polkit.

The controller itself knows of no slots meanwhile: it would end VMs that are not in its database.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest

from tests.hosts import DeployedHost
from tests.quickvm import install_quick_image, make_quick_image

VM, SESSION = "0c0ffee0-vm", "5e5510-2"
SLOT, OTHER_SLOT = 2, 3
ROOT = "/var/lib/microvm"
STORE = "/var/lib/firecracker/snapshots/base"
# A machine without KVM that does other things too takes its time.
BOOT_SECONDS = 900
POLL_SECONDS = 0.2
# Settings of the controller's unit that affect the rights of its user.
CONFINED = (
    *("NoNewPrivileges", "PrivateUsers", "RestrictSUIDSGID", "ProtectSystem", "UMask"),
    *("ReadWritePaths", "SystemCallFilter", "RestrictAddressFamilies"),
)

CALL = """
import asyncio, dataclasses, json, sys
from pathlib import Path
from polydev.controller.machines.hypervisor import Launch
from polydev.controller.machines.systemd_hypervisor import SystemdHypervisor
from polydev.controller.settings import load_settings
from polydev.errors import Error

def plain(value):
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, set):
        return sorted(map(plain, value))
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value

async def answers():
    settings = load_settings(Path("/etc/master-controller/config.yaml"))
    hypervisor = SystemdHypervisor(settings)
    for method, words, named in json.loads(sys.argv[1]):
        if method == "lose the connection":
            hypervisor._bus._bus._sock.shutdown(2)
            continue
        if method == "start":
            words = [Launch(*words)]
        try:
            yield plain(await getattr(hypervisor, method)(*words, **named))
        except Error as error:
            yield error.as_dict()
    await hypervisor.close()

async def main():
    print(json.dumps([each async for each in answers()]))

asyncio.run(main())
"""

TALK = """
import json, socket, sys, urllib.error, urllib.request
address = sys.argv[1]
found = {}
def get(port, path):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
try:
    found["agent"] = get(8080, "/health")
    with socket.create_connection((address, 5901), timeout=60) as vnc:
        found["vnc"] = vnc.recv(12).decode()
    with socket.create_connection((address, 6080), timeout=60) as novnc:
        novnc.sendall(b"echo")
        found["novnc"] = novnc.recv(12).decode()
except OSError as error:
    found["error"] = str(error)
print(json.dumps(found))
"""

HOLD_TAP = """
import fcntl, os, socket, struct, time
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
time.sleep(1000)
"""

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
    deadline = time.monotonic() + seconds
    while (seen := look()) is None:
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(POLL_SECONDS)
    return seen


@dataclass(frozen=True)
class Hypervisor:
    """The release's own hypervisor, run as the controller's user and confined as its unit."""

    host: DeployedHost
    digest: str
    confinement: tuple[str, ...]

    def call(self, method: str, *words: Any, **named: Any) -> Any:
        return self.calls((method, words, named))[0]

    def calls(self, *calls: Call) -> list[Any]:
        argv = [*self.as_controller(), "/opt/master-controller/current/venv/bin/python", "-c"]
        return list(json.loads(self.host.inside(shlex.join([*argv, CALL, json.dumps(calls)]))))

    def as_controller(self) -> list[str]:
        return ["systemd-run", "--quiet", "--pipe", "--wait", *self.confinement]

    def start(self, vm_id: str = VM, slot: int = SLOT, digest: str = "") -> Any:
        return self.call("start", vm_id, slot, digest or self.digest, SESSION)

    def poll(self, slot: int = SLOT) -> dict[str, Any]:
        found: dict[str, Any] = self.call("poll", slot)
        return found

    def clear(self) -> None:
        for slot in (SLOT, OTHER_SLOT):
            self.call("stop", slot)
        for slot, vm_id in self.call("folders"):
            self.call("discard", slot, vm_id, keep_logs=False)


@pytest.fixture(scope="module")
def hypervisor(
    deployed: DeployedHost, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hypervisor]:
    nothing_starts = {"slots": [], "templates": False}
    idle = replace(deployed, data={**deployed.data, "controller": nothing_starts})
    idle.deploy(target="master-controller")
    shown = idle.inside(f"systemctl show -p {','.join(CONFINED)} master-controller.service")
    lines = dict(line.split("=", 1) for line in shown.splitlines())
    options = [f"--property={name}={lines[name]}" for name in CONFINED]
    quick = make_quick_image(idle.golden_image(), tmp_path_factory.mktemp("quick"))
    found = Hypervisor(
        idle, install_quick_image(idle, quick), ("--property=User=polydev-controller", *options)
    )
    yield found
    found.clear()
    left = idle.inside(f"find {ROOT} -mindepth 2; pgrep -a qemu-system || true")
    units = idle.inside("systemctl list-units --all --plain --no-legend 'microvm@*'")
    deployed.deploy()
    assert (left, units) == ("", "")
    assert deployed.plan().changing == []


@pytest.fixture
def other_slot(hypervisor: Hypervisor) -> Iterator[Hypervisor]:
    """The hypervisor and a slot for VMs that do not start."""
    yield hypervisor
    hypervisor.call("stop", OTHER_SLOT)
    for slot, vm_id in hypervisor.call("folders"):
        if slot == OTHER_SLOT:
            hypervisor.call("discard", slot, vm_id, keep_logs=False)


class TestFailedStart:
    """Every obstacle to QEMU fails the start at once and is reported in the logs."""

    def assert_said(self, hypervisor: Hypervisor, answer: Any, words: str) -> None:
        assert answer["error"] == "vm"
        assert words in answer["message"]
        unit = f"microvm@{OTHER_SLOT}.service"
        assert words in hypervisor.host.inside(f"cat {ROOT}/{OTHER_SLOT}/current/qemu.log")
        assert words in hypervisor.host.journal(f"-n 50 -u {unit}")
        assert hypervisor.poll(OTHER_SLOT)["detail"] == "exit-code 1"

    def test_missing_image_fails_the_start(self, other_slot: Hypervisor) -> None:
        answer = other_slot.start("no-image", OTHER_SLOT, "0" * 64)
        self.assert_said(other_slot, answer, "image 000000000000 is missing")

    def test_invalid_launch_file_fails_the_start(self, other_slot: Hypervisor) -> None:
        folder = f"{ROOT}/{OTHER_SLOT}/no-order"
        script = f"mkdir -m 770 {folder}; echo '{{' >{folder}/launch.json; "
        script += f"chmod 644 {folder}/launch.json; ln -sfn no-order {ROOT}/{OTHER_SLOT}/current"
        other_slot.host.inside(f"runuser -u polydev-controller -- sh -c {shlex.quote(script)}")
        unit = f"microvm@{OTHER_SLOT}.service"
        assert "failed" in other_slot.host.inside(f"systemctl start {unit} 2>&1", check=False)
        self.assert_said(
            other_slot, {"error": "vm", "message": "launch.json is not JSON"}, "is not JSON"
        )

    def test_tap_in_use_fails_the_start(self, other_slot: Hypervisor) -> None:
        words = ["systemd-run", "--quiet", "--unit=tap-holder", "--property=Type=notify"]
        words += [f"--property=NetworkNamespacePath=/run/netns/slot-{OTHER_SLOT}"]
        other_slot.host.inside(shlex.join([*words, "/usr/bin/python3", "-c", HOLD_TAP]))
        try:
            answer = other_slot.start("no-tap", OTHER_SLOT)
        finally:
            other_slot.host.inside("systemctl stop tap-holder.service")
        self.assert_said(other_slot, answer, "could not configure /dev/net/tun (tap0)")

    def test_missing_slot_fails_the_start(self, hypervisor: Hypervisor) -> None:
        answer = hypervisor.start("no-slot", 99)
        assert f"{ROOT}/99/no-slot: No such file or directory" in answer["message"]


class TestRights:
    @pytest.mark.parametrize("verb", ["stop", "restart", "kill", "start"])
    @pytest.mark.parametrize("unit", ["polydev-dns.service", "microvm-slot@2.service"])
    def test_controller_user_may_manage_vm_units_only(
        self, hypervisor: Hypervisor, verb: str, unit: str
    ) -> None:
        before = hypervisor.host.inside(f"systemctl show -P InvocationID {unit}")
        argv = [*hypervisor.as_controller(), "systemctl", verb, "--no-ask-password", unit]
        said = hypervisor.host.inside(f"{shlex.join(argv)} 2>&1; echo status $?", check=False)
        assert "authentication required" in said
        assert not said.endswith("status 0")
        assert hypervisor.host.inside(f"systemctl show -P InvocationID {unit}") == before

    @pytest.mark.parametrize(
        "command",
        [
            f"ls {ROOT}/{SLOT}",
            f"touch {ROOT}/{SLOT}/x",
            f"touch {ROOT}/{OTHER_SLOT}/x",
            f"ln -sfn x {ROOT}/{OTHER_SLOT}/current",
            f"mkdir {ROOT}/x",
            "cat /etc/master-controller/config.yaml",
            "ls /var/lib/master-controller",
        ],
    )
    def test_vm_user_cannot_access_other_vms(self, hypervisor: Hypervisor, command: str) -> None:
        argv = ["runuser", "-u", f"polydev-vm-{OTHER_SLOT}", "--", *command.split()]
        said = hypervisor.host.inside(f"{shlex.join(argv)} 2>&1", check=False)
        assert "Permission denied" in said

    def test_vm_user_cannot_open_tap_of_another_slot(self, hypervisor: Hypervisor) -> None:
        words = ["systemd-run", "--quiet", "--pipe", "--wait", "--property=Type=exec"]
        words += [f"--property=NetworkNamespacePath=/run/netns/slot-{SLOT}"]
        words += [f"--property=User=polydev-vm-{OTHER_SLOT}", "/usr/bin/python3", "-c", HOLD_TAP]
        said = hypervisor.host.inside(f"{shlex.join(words)} 2>&1", check=False)
        assert "PermissionError" in said


@pytest.fixture(scope="module")
def booted(hypervisor: Hypervisor) -> dict[str, Any]:
    """Boot a quick image in the first slot; return the answers of its three ports."""
    address = "192.168.100.2"
    assert hypervisor.start() is None

    def talk() -> dict[str, Any] | None:
        state = hypervisor.host.inside(f"systemctl is-active microvm@{SLOT}", check=False)
        assert state == "active", hypervisor.host.inside(f"tail -n 20 {ROOT}/{SLOT}/current/*.log")
        words = shlex.join(["/usr/bin/python3", "-c", TALK, address])
        found: dict[str, Any] = json.loads(hypervisor.host.inside(words))
        return None if "error" in found else found

    return wait_for("a VM that answers", talk, BOOT_SECONDS)


class TestRunning:
    """These tests share one boot and run in this order."""

    def test_all_three_ports_answer_the_host(self, booted: dict[str, Any]) -> None:
        assert booted["vnc"].startswith("RFB 003.")
        assert booted["novnc"] == "echo"

    def test_agent_knows_vm_and_session(self, booted: dict[str, Any]) -> None:
        health = json.loads(booted["agent"][1])
        assert (health["vm_id"], health["session_id"]) == (VM, SESSION)

    def test_poll_reports_running_vm(self, hypervisor: Hypervisor, booted: dict[str, Any]) -> None:
        state = hypervisor.poll()
        assert (state["activity"], state["vm_id"], state["detail"]) == ("active", VM, "")
        host = hypervisor.host
        assert host.inside(f"ps -o user:20= -p {state['pid']}") == f"polydev-vm-{SLOT}"
        assert list(hypervisor.call("slots")) == [str(SLOT)]

    def test_second_start_does_not_start_another_vm(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        before = hypervisor.poll()
        assert hypervisor.start() is None
        assert "runs another VM" in hypervisor.start("another")["message"]
        assert hypervisor.poll() == before

    def test_lost_dbus_connection_is_reopened(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        poll: Call = ("poll", (SLOT,), {})
        first, second = hypervisor.calls(poll, ("lose the connection", (), {}), poll)
        assert first == second

    def test_running_vm_locks_its_image(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        lock = f"{STORE}/images/{hypervisor.digest}/in-use.lock"
        held = hypervisor.host.inside(f"flock --nonblock {lock} true; echo $?", check=False)
        assert held == "1"
        pid = hypervisor.poll()["pid"]
        assert lock in hypervisor.host.inside(f"readlink /proc/{pid}/fd/*")

    def test_controller_user_can_read_the_console(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        console = f"{ROOT}/{SLOT}/{VM}/serial.log"
        argv = [*hypervisor.as_controller(), "head", "-n", "1", console]
        assert "Linux version" in hypervisor.host.inside(shlex.join(argv))

    def test_deployment_and_rollback_keep_running_vm(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        """A change of all slots' networks, and back: the others get it, this one keeps its own."""
        host = hypervisor.host
        stamps = "cat /run/polydev/config/microvm-slot@{}.service"
        before, pid = host.inside(stamps.format(OTHER_SLOT)), hypervisor.poll()["pid"]
        changed = {**host.data, "resolvers": ["1.1.1.1"], "vm_memory_mib": 1024}
        replace(host, data=changed).deploy()
        assert host.inside(stamps.format(OTHER_SLOT)) != before
        assert host.inside(stamps.format(SLOT)) == before
        host.rollback()
        assert host.inside(stamps.format(OTHER_SLOT)) == before
        assert hypervisor.poll()["pid"] == pid

    def test_killed_vm_is_reported_as_failed(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        hypervisor.host.inside(f"kill -9 {hypervisor.poll()['pid']}")

        def seen() -> dict[str, Any] | None:
            state = hypervisor.poll()
            return state if state["activity"] == "failed" else None

        state = wait_for("its end", seen)
        assert (state["vm_id"], state["pid"], state["detail"]) == (VM, None, "signal 9")

    def test_discard_keeps_logs_only_on_request(
        self, hypervisor: Hypervisor, booted: dict[str, Any]
    ) -> None:
        host = hypervisor.host
        assert hypervisor.start() is None
        assert hypervisor.call("stop", SLOT) is None
        assert host.inside("pgrep -a qemu-system || true") == ""
        assert hypervisor.call("discard", SLOT, VM, keep_logs=True) is None
        assert host.inside(f"find {ROOT}/{SLOT} -type f -printf '%f\\n' | sort").split() == [
            *("qemu.log", "serial.log")
        ]
        assert hypervisor.call("folders") == [[SLOT, VM]]
        assert hypervisor.call("discard", SLOT, VM, keep_logs=False) is None
        assert host.inside(f"ls -A {ROOT}/{SLOT}") == ""
        assert hypervisor.call("slots") == {}
