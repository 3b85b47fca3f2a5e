"""Sessions on a host, for programs that measure them there as root.

A session's start is all that a user waits for: POST /api/auth/start, its news until the VM is
ready, which it is once its guest has given its receipt, and the first bytes of RFB from the relay;
and then the first frame, in which the screen is that of the template.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.bench.bare_on_host import see_first_frame
from tests.bench.screen import Screen

TOOL = "/opt/polydev-ai/bin/polydev-host"
POLL_SECONDS = 0.1
# Nothing takes this long; what hangs is to end.
PATIENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Started:
    """A session that was seen; `kind`: how its VM came up."""

    session_id: str
    vm: dict[str, Any]
    kind: str
    seconds: float
    first_frame_seconds: float | None


@dataclass
class Host:
    """The controller of this host, for an admin who starts sessions for users."""

    http: httpx.Client
    websocket: str
    token: str
    per_user: int
    users: list[str] = field(default_factory=list)
    made: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, method: str, path: str, **words: Any) -> Any:
        answer = self.http.request(method, path, **words)
        answer.raise_for_status()
        return answer.json()

    def users_of(self, count: int) -> list[str]:
        """Return the users of the next `count` sessions."""
        begun = len(self.made)
        while len(self.users) * self.per_user < begun + count:
            self.users.append(_asked("user", "add", "--role", "user", "--name", "bench")["id"])
        return [self.users[number // self.per_user] for number in range(begun, begun + count)]

    def start(self) -> Started | None:
        """Start one more session; return None if the host has no room for it."""
        (user,) = self.users_of(1)
        return self.start_for(user)

    def start_for(self, user: str, *, has_frame: bool = True) -> Started | None:
        """Start a session, and look at its screen; at a whole frame too, or only at its greeting.

        None where there is no room for it.
        """
        began, session = self._started(user)
        if session is None:
            return None
        self.made.append(session)
        if session["status"] != "vm_created":
            self._until_ready(session["id"])
        with self.looking(session["id"]) as screen:
            seconds, first_frame = time.perf_counter() - began, None
            if has_frame:
                see_first_frame(screen)
                first_frame = time.perf_counter() - began
        vm = self.ask("GET", f"/api/vm/{session['vmId']}")
        return Started(session["id"], vm, self._kind(session, vm), seconds, first_frame)

    @contextmanager
    def looking(self, session_id: str) -> Iterator[Screen]:
        """Connect a viewer to a session and wait for the greeting of its screen."""
        with self._websocket(session_id) as socket:

            def receive() -> bytes:
                came = socket.recv(PATIENCE_SECONDS)
                assert isinstance(came, bytes)
                return came

            screen = Screen(receive, socket.send)
            screen.greet()
            yield screen

    def _websocket(self, session_id: str) -> ClientConnection:
        return connect(
            f"{self.websocket}/api/auth/session/{session_id}/novnc/websock",
            additional_headers={"Authorization": f"Bearer {self.token}"},
            subprotocols=[Subprotocol("binary")],
            compression=None,
            proxy=None,
            max_size=None,
            open_timeout=PATIENCE_SECONDS,
        )

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

    def _kind(self, session: dict[str, Any], vm: dict[str, Any]) -> str:
        """Return how a session's VM was made; a resumed VM has a receipt of its identity."""
        boot = self.ask("GET", f"/api/auth/session/{session['id']}")["boot"]
        if boot["template"] is None:
            return "cold"
        assert boot["receipt"]["sessionId"] == session["id"], boot
        made_before = at(vm["createdAt"]) < at(session["createdAt"])
        return "pool" if made_before else "clone"

    def end_all(self) -> None:
        """End its sessions, and wait until nothing of them is left."""
        for session in self.made:
            self.ask("DELETE", f"/api/auth/session/{session['id']}")
        until("the end of VMs", self._is_released)
        self.made.clear()

    def _is_released(self) -> bool:
        vms = [self.ask("GET", f"/api/vm/{session['vmId']}") for session in self.made]
        return all(vm["releasedAt"] for vm in vms)

    def settle(self) -> None:
        """Wait until the pool is as full as it can be; return at once on a host without one."""
        until("the pool", self._has_what_it_can)

    def _has_what_it_can(self) -> bool:
        pool = self.ask("GET", "/api/admin/pool")
        is_filled = pool["primed"] == pool["size"]
        return is_filled or bool(pool["primed"] and not pool["priming"])

    def pool_size(self) -> int:
        return int(self.ask("GET", "/api/admin/pool")["size"])

    def primed(self) -> list[dict[str, Any]]:
        """Return the paused VMs of the pool."""
        vms = self.ask("GET", "/api/vm")["vms"]
        return [vm for vm in vms if vm["pooled"] and vm["status"] == "ready"]


def at(time: str) -> datetime:
    return datetime.fromisoformat(time.replace("Z", "+00:00"))


def until(what: str, look: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {what} did not come within {PATIENCE_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def say(words: str) -> None:
    sys.stderr.write(f"{words}\n")


def _asked(*words: str) -> Any:
    from polydev.processes import run

    return json.loads(run([TOOL, "controller", *words]).stdout)


@contextmanager
def operated(url: str) -> Iterator[Host]:
    """The controller of this host, with users that exist for the block."""
    from polydev.controller.settings import load_settings

    per_user = load_settings(Path("/etc/master-controller/config.yaml")).session.per_user
    admin = _asked("user", "add", "--role", "admin", "--name", "bench")["id"]
    users: list[str] = []
    try:
        made = _asked("token", "create", "--user", admin, "--name", "bench", "--days", "1")
        authorization = {"Authorization": f"Bearer {made['token']}"}
        unlimited = httpx.Limits(max_connections=None)
        with httpx.Client(
            base_url=url,
            headers=authorization,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            limits=unlimited,
        ) as http:
            host = Host(http, url.replace("http", "ws", 1), made["token"], per_user, users)
            try:
                yield host
            finally:
                host.end_all()
    finally:
        for user in (*users, admin):
            _asked("user", "remove", user)
