"""A real template of the golden image, and clones of it: each with an identity of its own.

By POLYDEV_CLONES=40 so many are compared with each other, in groups that run at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import asyncvnc
import pytest

from polydev.errors import VmError, VmTimeout
from polydev.file_checksum import file_sha256
from polydev.http_client import HttpSession
from polydev.image.store import ImageStore
from polydev.image_record import ImageRecord
from polydev.settings import Settings
from polydev.vm import template
from polydev.vm.health import agent_health
from polydev.vm.identity import new_identity
from polydev.vm.qemu_process import Machine
from polydev.vm.template_client import STATE
from tests.clones import (
    SEALED,
    Clone,
    Clones,
    Saved,
    identified,
    identify_concurrently,
    shell,
    template_clones,
)
from tests.guest_tools import CREDENTIALS, FILE, provider_data
from tests.sessions import PATIENCE_SECONDS, wait_for

CLOCK_LIMIT_SECONDS = 0.1
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
# Logs in once it is told the right code, and looks at what it has when asked for its status.
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


@pytest.fixture(scope="module")
def template_of_image(
    image: ImageRecord, store: ImageStore, settings: Settings
) -> Iterator[Clones]:
    with template_clones(store.path(image.digest), settings) as made:
        yield made


@pytest.fixture(scope="module")
def saved(template_of_image: Clones) -> Saved:
    return template_of_image.saved


@pytest.fixture(scope="module")
def begin(template_of_image: Clones) -> Callable[[int], Machine]:
    """Return a function that starts QEMU for a clone with this state."""
    return template_of_image.begin


@pytest.fixture(scope="module")
def resume(template_of_image: Clones) -> Callable[[], Machine]:
    """Return a function that makes a loaded, still paused clone."""
    return template_of_image.resume


@pytest.fixture(scope="module")
def clones(resume: Callable[[], Machine]) -> list[Clone]:
    """Several running clones, each with its identity."""
    return identify_concurrently([resume() for _ in range(3)], first=0)


def own_values(clone: Clone) -> dict[str, str]:
    """Values that no other clone may have."""
    receipt = vars(clone.receipt)
    names = ("random", "hostname", "machine_id", "boot_id", "secret_sha256")
    return {
        **{name: receipt[name] for name in names},
        # Without new entropy all clones would get the template's next random numbers.
        "drawn": clone.inside("head -c 16 /dev/urandom | base64"),
        "tls": clone.inside(f"echo {CLIENT_RANDOM} | base64 -d | python3 -I"),
    }


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
    with suppress(VmTimeout):
        status, health = agent_health(clone.machine.config.ports, 30)
        return health if status == 200 else None
    return None


def test_clones_share_no_identity_values(
    clones: list[Clone], resume: Callable[[], Machine]
) -> None:
    with ThreadPoolExecutor(len(clones)) as pool:
        found = list(pool.map(own_values, clones))
    while len(found) < CLONES:
        more = identify_concurrently([resume() for _ in range(AT_ONCE)], first=len(found))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found += pool.map(own_values, more)
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

        def has_ended() -> bool:  # it was killed, and may wait for a CPU to end
            return not set(before) & set(console.run(NETWORK_PROCESS).text.split())

        wait_for("the end of the template's network process", has_ended)
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

        def answers(method: str, status: int, **body: Any) -> dict[str, Any]:
            """Ask as the controller does: again if the machine was too busy for an answer."""
            found: list[Any] = []

            def is_answered() -> bool:
                found.append(agent.request(method, "/credentials", **body))
                return bool(found[-1].status_code != 503)

            wait_for("an answer about credentials", is_answered)
            assert found[-1].status_code == status, found[-1].text
            return dict(found[-1].json()) if found[-1].content else {}

        # The tool may have opened its page before the agent looked.
        assert agent.post("").json()["status"] in ("starting", "waiting")
        reaches("waiting")
        answers("GET", 404)
        assert agent.post("/code", json={"code": "let me in"}).status_code == 202
        reaches("done")
        handed_over = {"provider": "tool", "credentials": CREDENTIALS}
        assert answers("GET", 200) == handed_over
        answers("DELETE", 204)
        answers("GET", 404)
        assert clone.inside("grep -rlF '\"a1\"' /home/browser /run/polydev-login") == ""
        refused = answers("PUT", 422, json={"credentials": STALE})
        assert "Expired" in refused["detail"]
        assert clone.inside(f"ls /home/browser/{FILE}") == ""
        injected = answers("PUT", 200, json={"credentials": CREDENTIALS})
        assert injected["status"] == "done"
        assert clone.inside(f"stat -c '%U %a' /home/browser/{FILE}") == "browser 600"
        assert answers("GET", 200) == handed_over
    failed = clone.inside("systemctl list-units --state=failed --plain --no-legend")
    assert failed == "", clone.inside("journalctl --no-pager --unit='polydev-*'")


def test_killed_browser_of_clone_reopens_its_profile(clones: list[Clone]) -> None:
    with shell(clones[2].machine) as console:
        assert console.run(f"readlink {PROFILE_LOCK}").text.startswith("browser-vm-")
        console.run("systemctl kill --kill-whom=main --signal=KILL polydev-browser")
        # The lock says which computer's Chromium has the profile: this one's, under its new name.
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
            asyncio.run(template.load(machine.config.qmp_socket, descriptor, PATIENCE_SECONDS))
    finally:
        os.close(descriptor)


def test_identity_of_silent_guest_times_out(resume: Callable[[], Machine]) -> None:
    machine = resume()  # nobody lets it run
    given = template.give_identity(machine.config.identity_socket, new_identity("x", None), 0.5)
    with pytest.raises(VmError, match=r"the guest's answer did not end within 0\.5 s"):
        asyncio.run(given)
