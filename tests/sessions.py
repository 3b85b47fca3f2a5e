"""Sessions of a deployed host as users and operators use them: over HTTP, with tokens."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncvnc
import numpy
import requests

from polydev.http_client import HttpSession
from tests.hosts import DeployedHost
from tests.viewer import rfb_viewer

CONTROLLER = (
    "runuser -u polydev-controller --"
    " /opt/master-controller/current/venv/bin/master-controller {words}"
    " --config /etc/master-controller/config.yaml"
)
# Until a VM on a busy machine without KVM counts as dead.
PATIENCE_SECONDS = 600
REQUEST_SECONDS = 120
START_PAGE_COLOUR = (0x16, 0x32, 0x4F)
# Each look costs the host's two cores something that its VMs then do not have.
POLL_SECONDS = 0.25

# States to wait for: the first that is seen will do.
FROM_HERE_ON = (("vm_creating", "vm_starting", "vm_created"), ("vm_starting", "vm_created"))

T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """Poll until the result is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        assert time.monotonic() < deadline, f"{what} did not come within {seconds} s"
        time.sleep(POLL_SECONDS)


@dataclass(frozen=True)
class Api:
    """The controller of a host, for one caller."""

    http: HttpSession
    token: str
    user_id: str

    def call(self, method: str, path: str, *, status: int = 200, **words: Any) -> Any:
        """Return the body of an answer that must have this status."""
        answer = self.http.request(method, path, headers=self.headers, **words)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def start(self, provider: str = "claude", *, status: int = 201, **words: Any) -> dict[str, Any]:
        body = {"userId": self.user_id, "provider": provider}
        found: dict[str, Any] = self.call(
            "POST", "/api/auth/start", status=status, json=body, **words
        )
        return found

    def session(self, session_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/api/auth/session/{session_id}")
        return found

    def wait(self, session_id: str, *states: str) -> dict[str, Any]:
        """Wait until the session has one of these states; it must not end before."""

        def look() -> dict[str, Any] | None:
            found = self.session(session_id)
            if found["status"] in states:
                return found
            assert found["endedAt"] is None, f"it ended: {found}"
            return None

        return wait_for(f"{' or '.join(states)} of {session_id}", look)

    def vm(self, session_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/api/auth/session/{session_id}/vm")
        return found

    def end(self, session_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("DELETE", f"/api/auth/session/{session_id}")
        return found


@dataclass(frozen=True)
class Operated:
    """A deployed host with a user and an admin."""

    host: DeployedHost
    admin: Api
    user: Api

    def nothing_held(self) -> bool:
        """Return whether no VM runs and nothing but kept logs is left of any."""
        units = self.host.inside("systemctl list-units --all --plain --no-legend 'microvm@*'")
        qemu = self.host.inside("pgrep -c qemu-system || true")
        sockets = self.host.inside("find /var/lib/microvm -name '*.sock' -o -name '*.qcow2'")
        vms = self.admin.call("GET", "/api/vm")["vms"]
        return not units and qemu == "0" and not sockets and not vms

    def wait_until_nothing_held(self) -> None:
        wait_for("an empty host", lambda: self.nothing_held() or None)

    def wait_until_released(self, vm_id: str) -> None:
        wait_for(
            f"the end of {vm_id}",
            lambda: self.admin.call("GET", f"/api/vm/{vm_id}")["releasedAt"],
        )

    def another_user(self) -> Api:
        return caller(self.host, self.admin.http, "user")

    def kill_controller(self) -> None:
        """Kill the controller as a crash would; return once the next one answers."""
        self.host.inside(
            "systemctl reset-failed master-controller;"  # so often is too often for systemd
            " systemctl kill --kill-who=main --signal=KILL master-controller"
        )
        wait_for("a controller", self._answers)

    def _answers(self) -> bool | None:
        try:
            return self.admin.http.get("/api/auth/health").status_code == 200 or None
        except requests.RequestException:
            return None

    def leftovers(self) -> dict[str, str]:
        """Count everything that sessions must not leave on the host."""
        counted = {
            "units": "systemctl list-units --all --plain --no-legend 'microvm*' | wc -l",
            "processes": "pgrep -c qemu || true",
            # Without the report that the watch of the network writes just now.
            "files": "find /var/lib/microvm /run/polydev ! -name network.new | sort",
            "namespaces": "ip netns list | sort",
            "links": "ls /sys/class/net | sort",
        }
        return {what: self.host.inside(command) for what, command in counted.items()}


def controller(host: DeployedHost, words: str) -> Any:
    """Return the answer of `master-controller WORDS` on the host."""
    return json.loads(host.inside(CONTROLLER.format(words=words)))


def caller(host: DeployedHost, http: HttpSession, role: str) -> Api:
    """A new user of this role, with a token."""
    user = controller(host, f"user add --role {role} --name test-{role}")
    token = controller(host, f"token create --user {user['id']} --name tests")
    return Api(http, token["token"], user["id"])


@contextmanager
def operated(host: DeployedHost) -> Iterator[Operated]:
    base = f"http://{host.lab.address}:4000"
    with HttpSession(base, REQUEST_SECONDS) as http:
        yield Operated(host, caller(host, http, "admin"), caller(host, http, "user"))


def primed(service: Operated, count: int) -> list[dict[str, Any]]:
    """Wait until the pool has so many VMs, and return them."""

    def look() -> list[dict[str, Any]] | None:
        vms = service.admin.call("GET", "/api/vm")["vms"]
        found = [vm for vm in vms if vm["pooled"] and vm["status"] == "ready"]
        return found if len(found) == count else None

    return wait_for(f"{count} primed VMs", look)


# One whose parts are not all well says who it is too, with 503.
ASK_HEALTH = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 8080)
connection.request("GET", "/health")
print(connection.getresponse().read().decode())
"""


def inside_vm(service: Operated, address: str) -> dict[str, Any]:
    """Return the answer of the agent at `address` to its host."""
    said = service.host.inside(shlex.join(["python3", "-c", ASK_HEALTH, address]))
    found: dict[str, Any] = json.loads(said)
    return found


def news_until(api: Api, session_id: str, state: str) -> list[dict[str, Any]]:
    """Return the events of a session's stream up to the one with `state`."""
    path = f"/api/auth/session/{session_id}/events"
    found: list[dict[str, Any]] = []
    with api.http.get(path, headers=api.headers, timeout=300, stream=True) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith(b"data:"):
                found.append(json.loads(line[5:]))
                assert found[-1].get("state") != "failed", api.session(session_id)
                if found[-1].get("state") == state:
                    break
    return found


async def start_page_share(client: asyncvnc.Client) -> float:
    pixels = (await client.screenshot())[:, :, :3]
    near = numpy.abs(pixels.astype(int) - START_PAGE_COLOUR) <= 6
    return float(numpy.all(near, axis=2).mean())


async def see_start_page(url: str, token: str) -> None:
    async with rfb_viewer(url, token) as client:
        while await start_page_share(client) <= 0.4:
            client.video.refresh()
            await client.read()
