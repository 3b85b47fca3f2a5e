"""How long it takes until a session's screen answers, beside a bare resume of the same template.

`./inv bench.start` sends it to a host, whose controller's Python runs it as root:

    start_on_host.py measure ADDRESS STARTS COLD    seconds of each kind, as JSON
    start_on_host.py bare                           resumes the template for each line on stdin

A session's start is all that a user waits for: POST /api/auth/start, its news until the VM is
ready, which it is once its guest has given its receipt, and the first bytes of RFB from the relay.
A bare resume is QEMU alone, in a network of its own. Both are measured in turn, in one run.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from socket import create_connection
from subprocess import PIPE, Popen
from typing import Any

import httpx
from websockets.sync.client import connect
from websockets.typing import Subprotocol

CONFIG = Path("/etc/master-controller/config.yaml")
TOOL = "/opt/polydev-ai/bin/polydev-host"
KINDS = ("pool", "clone", "cold")
GREETING = b"RFB 003.008\n"
POLL_SECONDS = 0.1
# Nothing takes this long; what hangs is to end.
PATIENCE_SECONDS = 900.0


def bare() -> None:
    """Resume the golden image's template for each line on stdin; print the seconds until RFB."""
    from polydev.controller.machines.host_templates import wanted_template
    from polydev.controller.machines.template_maker import add_tap
    from polydev.controller.settings import load_settings
    from polydev.vm.holder import fetch
    from polydev.vm.launch import held

    wanted = wanted_template(load_settings(CONFIG))
    add_tap()
    memory, state, disk = fetch(wanted.key)
    with held(wanted.config.rootfs.parent) as image:
        for _ in sys.stdin:
            print(_bare_seconds(wanted.config, memory, state, disk, image), flush=True)


def _bare_seconds(config: Any, memory: int, state: int, disk: int, image: int) -> float:
    from polydev.vm import template
    from polydev.vm.config import GUEST_ADDRESS, VNC_PORT, MemoryFile
    from polydev.vm.files import descriptor_path
    from polydev.vm.machine import start
    from polydev.vm.templates import DISK

    with tempfile.TemporaryDirectory(prefix="polydev-bench-") as folder:
        began = time.perf_counter()
        with Path(folder, DISK).open("wb") as copy:
            template.copy_data(disk, copy.fileno())
        os.lseek(state, 0, os.SEEK_SET)
        private = MemoryFile(descriptor_path(memory), private=True)
        clone = replace(config, vm_id="bare", folder=Path(folder), memory_file=private)
        machine = start(clone, (memory, state, image))
        try:
            asyncio.run(template.load(clone.qmp_socket, state))
            asyncio.run(template.run_on(clone.qmp_socket))
            _greet(GUEST_ADDRESS, VNC_PORT)
            return time.perf_counter() - began
        finally:
            machine.stop()


def _greet(address: str, port: int) -> None:
    while True:
        with suppress(OSError), create_connection((address, port), 5) as screen:
            if screen.recv(len(GREETING)) == GREETING:
                return


@dataclass
class Host:
    """The controller of this host, for an admin who starts sessions for users."""

    http: httpx.Client
    websocket: str
    token: str
    users: list[str]
    made: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, path: str, **words: Any) -> Any:
        answer = self.http.request(method, path, **words)
        answer.raise_for_status()
        return answer.json()

    def start(self) -> tuple[str, float] | None:
        """Start one more session; how its VM came up, and after how many seconds it was seen.

        None where there is no room for it.
        """
        # A user has two at most.
        if len(self.made) >= 2 * len(self.users):
            self.users.append(_asked("user", "add", "--role", "user", "--name", "bench")["id"])
        began, session = self._started(self.users[len(self.made) // 2])
        if session is None:
            return None
        self.made.append(session)
        if session["status"] != "vm_created":
            self._until_ready(session["id"])
        path = f"{self.websocket}/api/auth/session/{session['id']}/novnc/websock"
        authorization = {"Authorization": f"Bearer {self.token}"}
        with connect(
            path,
            additional_headers=authorization,
            subprotocols=[Subprotocol("binary")],
            compression=None,
            proxy=None,
        ) as screen:
            assert screen.recv() == GREETING
            seconds = time.perf_counter() - began
        return self._kind(session), seconds

    def _started(self, user: str) -> tuple[float, dict[str, Any] | None]:
        body = {"userId": user, "provider": "claude"}
        while True:
            began = time.perf_counter()
            answer = self.http.post("/api/auth/start", json=body)
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and self.made:
                return began, None
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                answer.raise_for_status()
                return began, answer.json()
            time.sleep(float(answer.headers["Retry-After"]))

    def _until_ready(self, session_id: str) -> None:
        with self.http.stream("GET", f"/api/auth/session/{session_id}/events") as news:
            for line in news.iter_lines():
                state = json.loads(line[5:]).get("state") if line.startswith("data:") else None
                if state == "vm_created":
                    return
                if state in ("failed", "terminated", "expired"):
                    break
        raise SystemExit(f"error: {self.ask('GET', f'/api/auth/session/{session_id}')['reason']}")

    def _kind(self, session: dict[str, Any]) -> str:
        """Of what a session's VM was made; one that was resumed has a receipt of its identity."""
        boot = self.ask("GET", f"/api/auth/session/{session['id']}")["boot"]
        vm = self.ask("GET", f"/api/vm/{session['vmId']}")
        if boot["template"] is None:
            return "cold"
        assert boot["receipt"]["sessionId"] == session["id"], boot
        made_before = _at(vm["createdAt"]) < _at(session["createdAt"])
        return "pool" if made_before else "clone"

    def end_all(self) -> None:
        """End its sessions, and wait until nothing of them is left."""
        for session in self.made:
            self.ask("DELETE", f"/api/auth/session/{session['id']}")
        _until("the end of VMs", self._is_released)
        self.made.clear()

    def _is_released(self) -> bool:
        vms = [self.ask("GET", f"/api/vm/{session['vmId']}") for session in self.made]
        return all(vm["releasedAt"] for vm in vms)

    def settle(self) -> None:
        """Wait until the pool has what it can have; a host without one is ready at once."""
        _until("the pool", self._has_what_it_can)

    def _has_what_it_can(self) -> bool:
        pool = self.ask("GET", "/api/admin/pool")
        is_filled = pool["primed"] == pool["size"]
        return is_filled or bool(pool["primed"] and not pool["priming"])

    def has_pool(self) -> bool:
        return bool(self.ask("GET", "/api/admin/pool")["size"])


def _at(time: str) -> datetime:
    return datetime.fromisoformat(time.replace("Z", "+00:00"))


def _until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} did not come within {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _asked(*words: str) -> Any:
    from polydev.run import run

    return json.loads(run([TOOL, "controller", *words]).stdout)


@contextmanager
def operated(address: str) -> Iterator[Host]:
    """The controller, with users of ours as long as this lasts."""
    admin = _asked("user", "add", "--role", "admin", "--name", "bench")["id"]
    users: list[str] = []
    try:
        made = _asked("token", "create", "--user", admin, "--name", "bench", "--days", "1")
        authorization = {"Authorization": f"Bearer {made['token']}"}
        url = f"http://{address}"
        with httpx.Client(
            base_url=url, headers=authorization, timeout=PATIENCE_SECONDS, trust_env=False
        ) as http:
            host = Host(http, f"ws://{address}", made["token"], users)
            try:
                yield host
            finally:
                host.end_all()
    finally:
        for user in (*users, admin):
            _asked("user", "remove", user)


class Bare:
    """The other half of this program, in a network namespace of its own."""

    def __init__(self, process: Popen[str]) -> None:
        self._process = process

    def seconds(self) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: the template could not be resumed without the controller")
        return float(line)


@contextmanager
def resuming() -> Iterator[Bare]:
    argv = ["unshare", "--net", sys.executable, __file__, "bare"]
    with Popen(argv, stdin=PIPE, stdout=PIPE, text=True) as process:
        yield Bare(process)
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def without_templates() -> Iterator[None]:
    """While this lasts, VMs have nothing to be resumed from."""
    from polydev.controller.machines.host_templates import templates_of
    from polydev.controller.settings import load_settings

    templates = templates_of(load_settings(CONFIG))
    with ExitStack() as stack:
        for each in templates.all():
            place = templates.place(each.key)
            aside = place.rename(place.with_name(f".{each.key}.bench"))
            stack.callback(aside.rename, place)
        yield


class Measured:
    """Seconds of each kind, noted as they come."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.seconds: dict[str, list[float]] = {kind: [] for kind in ("bare", *KINDS)}

    def note(self, kind: str, value: float) -> None:
        self.seconds[kind].append(round(value, 4))
        sys.stderr.write(f"{kind} {value:.3f} s\n")

    def start_until(self, kind: str, *, is_all_noted: bool = True) -> None:
        """Start sessions until one is of this kind: those that the pool has come first."""
        while started := self._host.start():
            if is_all_noted or started[0] == kind:
                self.note(*started)
            if started[0] == kind:
                break
        self._host.end_all()


def measure(address: str, starts: int, colds: int) -> None:
    with operated(address) as host:
        measured = Measured(host)
        with resuming() as alone:
            alone.seconds()  # the first one after a template was made has it read from the disk
            for _ in range(starts):
                measured.note("bare", alone.seconds())
                host.settle()
                measured.start_until("clone")
            while host.has_pool() and len(measured.seconds["pool"]) < starts:
                host.settle()
                measured.start_until("pool")
        if colds:
            with without_templates():
                for _ in range(colds):
                    measured.start_until("cold", is_all_noted=False)
    print(json.dumps({"seconds": measured.seconds}))


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        bare()
    else:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
