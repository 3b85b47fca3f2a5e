"""A real template of the golden image, and clones of it: each with an identity of its own.

By POLYDEV_CLONES=40 so many are compared with each other, in groups that run at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncvnc
import pytest

from polydev.disk import file_sha256
from polydev.errors import VmError
from polydev.http_client import HttpSession
from polydev.image.boot import Boot, wait_until_ready
from polydev.image.guest_shell import GuestShell
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image_layout import KERNEL
from polydev.image_record import ImageRecord
from polydev.settings import Settings
from polydev.vm import template
from polydev.vm.accelerator import choose_accelerator
from polydev.vm.config import NO_PORTS, MemoryFile, VmConfig
from polydev.vm.health import agent_health
from polydev.vm.identity import Receipt, new_identity
from polydev.vm.qemu_process import Machine, start
from polydev.vm.temp_folders import temp_folder
from polydev.vm.template_client import DISK, MEMORY, STATE
from tests.guest_tools import CREDENTIALS, FILE, provider_data
from tests.sessions import PATIENCE_SECONDS, wait_for

BOOT_SECONDS = 240
CLOCK_LIMIT_SECONDS = 0.1
SEALED = (MEMORY, STATE)
FAIL_ONCE = """
mkdir -p /run/systemd/system/polydev-vnc.service.d
cat >/run/systemd/system/polydev-vnc.service.d/once.conf <<'END'
[Service]
ExecStartPre=+/bin/sh -c 'if [ -e /run/failed ]; then exit 0; fi; touch /run/failed; exit 1'
END
systemctl daemon-reload"""
# A share of a core. The best span counts, since other work on the machine slows everything.
IDLE_SHARE, IDLE_SPANS, IDLE_SPAN_SECONDS = 0.04, 6, 10.0
BROWSER_SECONDS = 180
PROFILE_LOCK = "/home/browser/.config/chromium/SingletonLock"
NETWORK_PROCESS = "pgrep -f network.mojom.NetworkService"
CLONES, AT_ONCE = int(os.environ.get("POLYDEV_CLONES", "3")), 4
# Logs in with the right code; as its status command it checks the stored credentials.
TOOL = """#!/bin/sh
if [ "$1" = status ]; then
    grep -q '"a1"' "$HOME/.tool/credentials.json" && exit
    echo Expired; exit 1
fi
umask 077
xdg-open 'https://login.example/?client_id=1'
read code && [ "$code" = "let me in" ] && mkdir -p .tool && echo "$TOKEN" >.tool/credentials.json
"""
STALE: dict[str, Any] = {"token": {"access": "old", "refresh": "old"}}
# The random number of a TLS ClientHello that the running Chromium sends for a new tab.
CLIENT_RANDOM = b64encode(b"""
import socket
with socket.create_server(("127.0.0.1", 4433)) as server, socket.socket(socket.AF_UNIX) as browser:
    browser.connect("/home/browser/.config/chromium/SingletonSocket")
    browser.sendall(b"\\0".join([b"START", b"/", b"chromium", b"https://127.0.0.1:4433/"]))
    browser.shutdown(socket.SHUT_WR)
    client, _ = server.accept()
    hello = client.recv(43, socket.MSG_WAITALL)
    assert (hello[0], hello[5]) == (22, 1), hello
    print(hello[11:].hex())
""").decode()


@dataclass(frozen=True)
class Saved:
    """A template: its folder, and descriptors of sealed copies of memory and state."""

    folder: Path
    config: VmConfig
    memory: int
    state: int


@contextmanager
def shell(machine: Machine) -> Iterator[GuestShell]:
    """A shell in a guest, with long timeouts for a busy machine."""
    with GuestShell(machine.config.console_socket, PATIENCE_SECONDS) as console:
        console.open_shell(PATIENCE_SECONDS)
        yield console


@dataclass(frozen=True)
class Clone:
    machine: Machine
    receipt: Receipt

    def inside(self, command: str) -> str:
        with shell(self.machine) as console:
            return console.run(command).text.strip()

    def own(self) -> dict[str, str]:
        """Values that no other clone may have."""
        receipt = vars(self.receipt)
        names = ("random", "hostname", "machine_id", "boot_id", "secret_sha256")
        return {
            **{name: receipt[name] for name in names},
            # Without new entropy all clones would get the template's next random numbers.
            "drawn": self.inside("head -c 16 /dev/urandom | base64"),
            "tls": self.inside(f"echo {CLIENT_RANDOM} | base64 -d | python3 -I"),
        }


@pytest.fixture(scope="module")
def saved(image: ImageRecord, store: ImageStore, settings: Settings) -> Iterator[Saved]:
    folder = store.path(image.digest)
    accelerator = choose_accelerator(folder / KERNEL, settings.state / "accelerator.json")
    with temp_folder() as scratch:
        memory = MemoryFile(scratch / MEMORY, private=False)
        config = vm_config(folder, "template", scratch, accelerator)
        machine = start(replace(config, test_console=True, memory_file=memory))
        try:
            wait_until_ready(Boot(machine), BOOT_SECONDS, lambda stage: None)
            template.settle(machine.cpu_sample, machine.alive)
            asyncio.run(template.save(machine.config.qmp_socket, scratch / STATE))
        finally:
            machine.stop()
        descriptors = [template.sealed(scratch / name) for name in (MEMORY, STATE)]
        yield Saved(scratch, machine.config, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.fixture(scope="module")
def begin(saved: Saved) -> Iterator[Callable[[int], Machine]]:
    """Return a function that starts QEMU for a clone with this state."""
    numbers, made = count(1), []

    def make(state: int) -> Machine:
        folder = saved.folder / f"clone-{next(numbers)}"
        folder.mkdir()
        shutil.copy(saved.folder / DISK, folder)
        memory = MemoryFile(Path(f"/proc/self/fd/{saved.memory}"), private=True)
        config = replace(saved.config, folder=folder, memory_file=memory, ports=NO_PORTS)
        os.lseek(state, 0, os.SEEK_SET)
        made.append(start(config, (saved.memory, state)))
        return made[-1]

    yield make
    for machine in made:
        machine.stop()


@pytest.fixture(scope="module")
def resume(saved: Saved, begin: Callable[[int], Machine]) -> Callable[[], Machine]:
    """Return a function that makes a loaded, still paused clone."""

    def make() -> Machine:
        machine = begin(saved.state)
        asyncio.run(template.load(machine.config.qmp_socket, saved.state))
        return machine

    return make


@pytest.fixture(scope="module")
def clones(resume: Callable[[], Machine]) -> list[Clone]:
    """Several running clones, each with its identity."""
    return identify_concurrently([resume() for _ in range(3)], first=0)


def identify_concurrently(machines: list[Machine], first: int) -> list[Clone]:
    """Let clones run on and give them their identities, numbered from `first`, at the same time."""

    def identify(machine: Machine, number: int) -> Clone:
        asyncio.run(template.run_on(machine.config.qmp_socket))
        return Clone(machine, identified(machine, f"vm-{number}", f"session-{number}"))

    with ThreadPoolExecutor(len(machines)) as pool:
        return list(pool.map(identify, machines, count(first)))


def identified(machine: Machine, vm_id: str, session_id: str | None) -> Receipt:
    identity = new_identity(vm_id, session_id)
    return asyncio.run(template.give_identity(machine.config.identity_socket, identity))


def test_each_clone_has_the_identity_given_by_its_host(clones: list[Clone]) -> None:
    for number, clone in enumerate(clones):
        health = wait_for("a VM that is well", partial(ready_health, clone))
        assert (health["vm_id"], health["session_id"]) == (f"vm-{number}", f"session-{number}")
        assert health["boot_id"] == clone.receipt.boot_id
        names = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id"
        receipt = clone.receipt
        expected = [receipt.hostname, receipt.machine_id, receipt.boot_id]
        assert clone.inside(names).split() == expected
        assert clone.inside("getent hosts $(hostname)").split()[0] == "127.0.0.1"


def ready_health(clone: Clone) -> dict[str, object] | None:
    """Return the health of a ready clone, or None: clones resumed together are slow at first."""
    status, health = agent_health(clone.machine.config.ports, 30)
    return health if status == 200 else None


def test_clones_share_no_identity_values(
    clones: list[Clone], resume: Callable[[], Machine]
) -> None:
    with ThreadPoolExecutor(len(clones)) as pool:
        found = list(pool.map(Clone.own, clones))
    while len(found) < CLONES:
        more = identify_concurrently([resume() for _ in range(AT_ONCE)], first=len(found))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found += pool.map(Clone.own, more)
        for clone in more:
            clone.machine.stop()
    for name in found[0]:
        values = {each[name] for each in found}
        assert len(values) == len(found), f"{name}: {len(values)} of {len(found)}"


def test_clone_secret_is_readable_by_root_only(clones: list[Clone]) -> None:
    clone = clones[0]
    assert clone.inside("stat -c '%U %a' /run/polydev/secret") == "root 600"
    digest = clone.inside("tr -d '\\n' </run/polydev/secret | sha256sum").split()[0]
    assert digest == clone.receipt.secret_sha256


def test_clone_has_host_time_after_a_pause(clones: list[Clone]) -> None:
    clone = clones[0]
    socket = clone.machine.config.qmp_socket
    asyncio.run(template.pause(socket))
    before = clone.machine.cpu_sample().ran
    time.sleep(1)  # the guest's clock stands meanwhile: that is what is looked at
    assert clone.machine.cpu_sample().ran - before < 0.01
    asyncio.run(template.run_on(socket))
    identified(clone.machine, "vm-0", "session-0")
    asked = time.time()
    shown = float(clone.inside("date +%s.%N"))
    assert asked - CLOCK_LIMIT_SECONDS < shown < time.time() + CLOCK_LIMIT_SECONDS


def test_clone_restarts_chromium_network_process(
    clones: list[Clone], resume: Callable[[], Machine]
) -> None:
    fresh = resume()
    asyncio.run(template.run_on(fresh.config.qmp_socket))
    with shell(fresh) as console:
        before = console.run(NETWORK_PROCESS).text.split()
    assert before
    identified(fresh, "fresh", None)
    with shell(fresh) as console:
        assert not set(before) & set(console.run(NETWORK_PROCESS).text.split())
        # The desktop's browser goes on.
        assert console.run("systemctl is-active polydev-browser").text.strip() == "active"


def test_desktop_starts_after_failed_first_start_of_vnc(clones: list[Clone]) -> None:
    clone, units = clones[1], "polydev-vnc polydev-desktop polydev-browser"
    clone.inside(f"{FAIL_ONCE}; systemctl stop {units}; systemctl start --no-block {units}")

    def is_up() -> bool:
        screen, *others = clone.inside(f"systemctl is-active {units}").split()
        return screen == "active" and "inactive" not in others

    wait_for("the desktop", is_up)
    assert clone.inside("systemctl show -P NRestarts polydev-vnc") == "1"


def test_idle_clone_with_viewer_uses_little_cpu(clones: list[Clone]) -> None:
    assert asyncio.run(idle_share(clones[0].machine)) < IDLE_SHARE


async def idle_share(machine: Machine) -> float:
    """Return the lowest share of a core that a VM with a viewer uses in a span."""
    shares = []
    async with asyncvnc.connect(machine.config.ports.host, machine.config.ports.vnc) as viewer:
        await viewer.screenshot()
        viewer.video.refresh()  # as viewers do, it asks for what changes from now on
        for _ in range(IDLE_SPANS):
            before = machine.cpu_sample()
            await asyncio.sleep(IDLE_SPAN_SECONDS)
            now = machine.cpu_sample()
            shares.append((now.ran - before.ran) / (now.at - before.at))
            if shares[-1] < IDLE_SHARE:
                break
    return min(shares)


def test_credentials_are_handed_over_wiped_and_injected(clones: list[Clone]) -> None:
    """The whole login in a real guest, with a script as the tool.

    Its page, which there is not, keeps the browser busy: the clone is not idle any more.
    """
    clone = clones[0]
    token = json.dumps(CREDENTIALS)
    for path, text in {
        "/usr/share/polydev/providers/tool.json": json.dumps(
            provider_data("tool", environment={"TOKEN": token})
        ),
        "/usr/local/bin/tool": TOOL,
    }.items():
        clone.inside(f"echo {b64encode(text.encode()).decode()} | base64 -d >{path}")
    clone.inside("chmod +x /usr/local/bin/tool")
    login = f"{clone.machine.config.ports.agent_url}/login/tool"
    with HttpSession(login, timeout_seconds=120) as agent:

        def reaches(status: str) -> None:
            wait_for(f"a login that is {status}", lambda: agent.get("").json()["status"] == status)

        assert agent.post("").json()["status"] == "starting"
        reaches("waiting")
        assert agent.get("/credentials").status_code == 404
        assert agent.post("/code", json={"code": "let me in"}).status_code == 202
        reaches("done")
        handed_over = {"provider": "tool", "credentials": CREDENTIALS}
        assert agent.get("/credentials").json() == handed_over
        assert agent.delete("/credentials").status_code == 204
        assert agent.get("/credentials").status_code == 404
        assert clone.inside("grep -rlF '\"a1\"' /home/browser /run/polydev-login") == ""
        refused = agent.put("/credentials", json={"credentials": STALE})
        assert (refused.status_code, "Expired" in refused.json()["detail"]) == (422, True)
        assert clone.inside(f"ls /home/browser/{FILE}") == ""
        injected = agent.put("/credentials", json={"credentials": CREDENTIALS})
        assert (injected.status_code, injected.json()["status"]) == (200, "done")
        assert clone.inside(f"stat -c '%U %a' /home/browser/{FILE}") == "browser 600"
        assert agent.get("/credentials").json() == handed_over
    failed = clone.inside("systemctl list-units --state=failed --plain --no-legend")
    assert failed == "", clone.inside("journalctl --sync; journalctl --no-pager --unit='polydev-*'")


def test_killed_browser_of_clone_reopens_its_profile(clones: list[Clone]) -> None:
    with shell(clones[2].machine) as console:
        assert console.run(f"readlink {PROFILE_LOCK}").text.startswith("browser-vm-")
        console.run("systemctl kill --kill-whom=main --signal=KILL polydev-browser")
        # The lock names the host whose Chromium uses the profile: this one, by its new name.
        own = f'case "$(readlink {PROFILE_LOCK})" in "$(hostname)"-*) true;; *) false;; esac'
        console.run(f"until {own}; do sleep 0.5; done", BROWSER_SECONDS)


def test_clones_cannot_change_the_template(saved: Saved, clones: list[Clone]) -> None:
    assert all(clone.machine.alive() for clone in clones)
    for descriptor, name in zip((saved.memory, saved.state), SEALED, strict=True):
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 1)
        copy = Path(f"/proc/self/fd/{descriptor}")
        assert file_sha256(copy) == file_sha256(saved.folder / name)


def test_damaged_template_state_is_refused(
    saved: Saved, begin: Callable[[int], Machine], tmp_path: Path
) -> None:
    damaged = tmp_path / STATE
    content = (saved.folder / STATE).read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    descriptor = template.sealed(damaged)
    try:
        machine = begin(descriptor)
        with pytest.raises(VmError, match="QEMU"):
            asyncio.run(template.load(machine.config.qmp_socket, descriptor))
    finally:
        os.close(descriptor)


def test_identity_of_silent_guest_times_out(resume: Callable[[], Machine]) -> None:
    machine = resume()  # nobody lets it run
    given = template.give_identity(machine.config.identity_socket, new_identity("x", None), 0.5)
    with pytest.raises(VmError, match=r"the guest's answer did not end within 0\.5 s"):
        asyncio.run(given)
