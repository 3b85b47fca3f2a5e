"""Fake VMs: their console is a file, their ports are real sockets on loopback.

Each kind is named by how it fails. A VM boots as far as its `boot` goes and then further only
by `reach`, so that a test, and not time, says how fast it is.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

from polydev.agent.login_state import login_reply
from polydev.agent.reply_types import HealthReply, ServiceState, Status
from polydev.controller.machines.hypervisor import Activity, Launch
from polydev.errors import VmError
from polydev.vm.boot_stages import STAGES, Stage
from polydev.vm.cpu_wait_time import ThreadTimes
from polydev.vm.identity import Identity, Receipt

AGENT_PORT, VNC_PORT, NOVNC_PORT = 8080, 5901, 6080
RFB_GREETING = b"RFB 003.008\n"
COMPONENTS = ("desktop", "vnc", "novnc", "browser")
MARKS: dict[Stage, str] = {
    "none": "",
    "kernel": "[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)\n",
    "init": "Welcome to Debian GNU/Linux 12 (bookworm)!\n",
    "network": "[  OK  ] Reached target network.target - Network.\n",
    "services": "[  OK  ] Started polydev-vnc.service - X display :1 seen over VNC.\n",
    "ready": "[  OK  ] Reached target multi-user.target.\npolydev: ready after 22.85 s\n",
}
PANIC = "[   12.886705] Kernel panic - not syncing: Attempted to kill init!\r\n"
BOOT_ID = "0f0f0f0f-0000-4000-8000-000000000000"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class FakeVm:
    """One VM; `folder` holds its logs.

    activity, detail    what the service manager says of its process
    sick                what is wrong with which component; healthy if empty
    is_paused           whether its processors stand
    mute                whether its agent takes requests and answers none
    login               how far its tool is, by its agent; `logins` counts how often it was started
    credentials         what its tool keeps; None where there is nothing
    typed               codes that its tool's terminal got
    asked               requests that its agent has seen
    cpu                 how long its process ran and waited for a CPU
    """

    def __init__(self, launch: Launch, address: str, folder: Path) -> None:
        self.launch = launch
        self.address = address
        self.folder = folder
        # A clone takes itself for its template's VM until it is told.
        self.said_vm_id: str | None = "template" if launch.template else launch.vm_id
        self.stage: Stage = "none"
        self.activity: Activity = "inactive"
        self.detail = ""
        self.sick: dict[str, str] = {}
        self.status_if_sick: Status = "starting"
        self.failed_units: list[str] = []
        self.services: dict[str, ServiceState] = {}
        self.mute = False
        self.is_paused = launch.template is not None
        self.login = login_reply("", "none")
        self.logins = 0
        self.credentials: object = None
        self.typed: list[str] = []
        self.asked = 0
        self.cpu = ThreadTimes()
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def runs(self) -> bool:
        return self.activity == "active"

    async def begin(self) -> None:
        """Start its process; return once that runs."""
        self.activity = "active"
        self.say("")
        if self.launch.template is None:
            await self.boot()

    async def boot(self) -> None:
        """Boot as far as it does by itself."""
        await self.reach("ready")

    def take(self, identity: Identity) -> Receipt:
        """Return the guest's receipt of its identity. Raises VmError."""
        self.said_vm_id = identity.vm_id
        words = asdict(identity)
        secret = words.pop("secret").encode()
        digest = hashlib.sha256(secret).hexdigest()
        return Receipt(**words, secret_sha256=digest, random="00" * 16, guest_time=0.0)

    async def reach(self, stage: Stage) -> None:
        """Go on to `stage`, with what each stage on the way says and opens."""
        for each in STAGES[STAGES.index(self.stage) + 1 : STAGES.index(stage) + 1]:
            self.stage = each
            self.say(MARKS[each])
            if each == "network":
                await self.listen(AGENT_PORT, self.serve_agent)
            if each == "services":
                await self.listen(VNC_PORT, self.serve_rfb)
                await self.listen(NOVNC_PORT, self.serve_novnc)

    def say(self, text: str) -> None:
        """Write to the serial console."""
        with (self.folder / "serial.log").open("a") as console:
            console.write(text)

    def sicken(self, component: str = "vnc", detail: str = "port 5901 is closed") -> None:
        self.sick[component] = detail

    def recover(self) -> None:
        self.sick.clear()

    async def stop(self) -> None:
        """Stop as the hypervisor requests. Raises VmError if the VM does not stop."""
        self.end()

    def die(self, detail: str = "signal 9") -> None:
        """End as if somebody else had ended its process."""
        self.end("failed", detail)

    def end(self, activity: Activity = "inactive", detail: str = "") -> None:
        self.activity, self.detail = activity, detail
        self.hang_up()

    def hang_up(self) -> None:
        """Close all its ports and connections, while its process goes on."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for writer in self._writers:
            writer.transport.abort()

    async def listen(self, port: int, serve: Serve) -> None:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                self._writers.discard(writer)
                writer.close()

        self._servers.append(await asyncio.start_server(served, self.address, port))

    async def serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        sizes = [each.partition(":")[2] for each in headers if each.lower().startswith("content-l")]
        sent = await reader.readexactly(int(sizes[0])) if sizes else b""
        self.asked += 1
        if self.mute:
            await reader.read()  # until the other end hangs up
            return
        method, path, _ = first.split()
        status, reply = await self.answer(method, path, json.loads(sent) if sent else None)
        body = json.dumps(reply).encode() if reply is not None else b""
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        """Return the agent's answer: a status, and a value to write as JSON."""
        if not path.startswith("/login/"):
            health = self.health()
            return (200 if health["status"] == "ready" else 503), health
        _, _, provider, *what = path.split("/")
        if not what:
            return self.login_asked(method, provider)
        if what == ["code"]:
            return self.code_given(body)
        return self.credentials_asked(method, provider, body)

    def login_asked(self, method: str, provider: str) -> tuple[int, object]:
        """Return the state of the tool's login; a POST starts it unless it is under way."""
        if method == "POST" and self.login["status"] in ("none", "failed"):
            self.logins += 1
            self.login = login_reply(provider, "starting")
        return 200, self.login

    def code_given(self, body: Any) -> tuple[int, object]:
        if self.login["status"] != "waiting":
            return 409, {"detail": "no login is waiting for a code"}
        self.typed.append(body["code"])
        return 202, self.login

    def credentials_asked(self, method: str, provider: str, body: Any) -> tuple[int, object]:
        """GET hands its tool's credentials over, DELETE wipes them, PUT logs the tool in."""
        if method == "DELETE":
            self.credentials = None
            return 204, None
        if method == "PUT":
            self.credentials = body["credentials"]
            self.log_in(self.credentials)
            return 200, self.login
        if self.credentials is None:
            return 404, {"detail": "there are no credentials"}
        return 200, {"provider": provider, "credentials": self.credentials}

    def log_in(self, credentials: object) -> None:
        """Complete the login of its tool."""
        self.credentials = credentials
        self.login = login_reply("claude", "done")

    async def serve_rfb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greet as VNC does, then send back all that comes."""
        writer.write(RFB_GREETING)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def serve_novnc(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    def health(self) -> HealthReply:
        is_up = self.stage == "ready"
        status: Status = "ready" if is_up and not self.sick else "starting"
        waiting = () if is_up else COMPONENTS[-1:] if self.stage == "services" else COMPONENTS
        wrong = {**dict.fromkeys(waiting, "is not started yet"), **self.sick}
        return {
            "status": self.status_if_sick if self.sick else status,
            "stage": "network" if self.stage == "none" else self.stage,
            "components": {
                name: {"ok": name not in wrong, "detail": wrong.get(name, "works")}
                for name in COMPONENTS
            },
            "failing": [name for name in COMPONENTS if name in wrong],
            "services": self.services,
            "failed_units": self.failed_units,
            "image_digest": self.launch.image_digest,
            "vm_id": self.said_vm_id,
            "session_id": self.launch.session_id,
            "uptime_seconds": 12.5,
            "boot_id": BOOT_ID,
            "agent_version": "0",
        }


class HealthyVm(FakeVm):
    """Is ready at once."""


class SlowVm(FakeVm):
    """Boots no further than it is told to."""

    async def boot(self) -> None:
        """Not even the kernel."""


class NeverBootsVm(FakeVm):
    """Its kernel starts, and nothing after it."""

    async def boot(self) -> None:
        await self.reach("kernel")


class NoNetworkVm(FakeVm):
    """Says that it is ready, but cannot be reached."""

    async def boot(self) -> None:
        await self.reach("ready")

    async def listen(self, port: int, serve: Serve) -> None:
        """Never."""


class PanicsVm(FakeVm):
    async def boot(self) -> None:
        await self.reach("kernel")
        self.say(PANIC)


class DyingVm(FakeVm):
    """Its process ends as soon as it runs."""

    async def boot(self) -> None:
        (self.folder / "qemu.log").write_text("qemu: could not open disk.qcow2\n")
        self.die("exit-code 1")


class RefusedVm(FakeVm):
    """Cannot be started."""

    async def begin(self) -> None:
        raise VmError(f"microvm@{self.launch.slot} was refused")


class NoSpaceVm(FakeVm):
    """There is no room for its disk."""

    async def begin(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class WrongAgentVm(FakeVm):
    """Another VM answers at its address."""

    async def boot(self) -> None:
        self.said_vm_id = str(uuid.uuid4())
        await self.reach("ready")


class FailedServiceVm(FakeVm):
    """One of its services has failed for good."""

    async def boot(self) -> None:
        self.sicken("browser", "the unit has failed: start-limit-hit")
        self.status_if_sick = "failed"
        self.failed_units = ["polydev-browser.service"]
        await self.reach("services")


class SickVm(FakeVm):
    """Is healthy at its first check and never again."""

    def health(self) -> HealthReply:
        if self.asked > 1:
            self.sicken()
        return super().health()


class UnloadableVm(FakeVm):
    """Boots, but cannot be resumed: its template does not load."""

    async def begin(self) -> None:
        if self.launch.template:
            self.end("failed", "exit-code 1")
            raise VmError(f"microvm@{self.launch.slot} did not start")
        await super().begin()


class NoIdentityVm(FakeVm):
    """Is resumed, but its guest takes no identity."""

    def take(self, identity: Identity) -> Receipt:
        raise VmError("the guest's answer did not end within 45 s")


class SilentScreenVm(FakeVm):
    """Boots, but as a clone its screen is silent."""

    said = b""

    async def serve_rfb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.launch.template:
            writer.write(self.said)
            await reader.read()  # until the other end hangs up
        else:
            await super().serve_rfb(reader, writer)


class GarbledScreenVm(SilentScreenVm):
    """Boots, but as a clone its screen speaks something else."""

    said = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class DiesAsCloneVm(FakeVm):
    """Its process ends as soon as it is resumed; it boots well."""

    async def boot(self) -> None:
        if self.launch.template:
            self.die()
        else:
            await super().boot()


class OldImageVm(FakeVm):
    """Its agent knows no credentials and no codes."""

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        if path.count("/") > 2:
            return 404, {"detail": f"there is no {path}"}
        return await super().answer(method, path, body)


class RefusingToolVm(FakeVm):
    """Its tool takes no credentials."""

    def credentials_asked(self, method: str, provider: str, body: Any) -> tuple[int, object]:
        if method == "PUT":
            return 422, {"detail": "Not logged in: token expired"}
        return super().credentials_asked(method, provider, body)


class FailingCredentialsVm(FakeVm):
    """Its agent fails on every request about credentials."""

    def credentials_asked(self, method: str, provider: str, body: Any) -> tuple[int, object]:
        return 503, {"detail": "credentials cannot be reached"}


class NeverInjectedVm(FakeVm):
    """Its tool never finishes the check of injected credentials."""

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        if method == "PUT":
            self.login = {**self.login, "status": "starting"}
            await asyncio.Event().wait()
        return await super().answer(method, path, body)


class HangingCredentialsVm(FakeVm):
    """Its agent does not answer credentials requests of method `hold`; sets `held` at one."""

    hold = ""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.held = asyncio.Event()

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        if method == self.hold and path.endswith("/credentials"):
            self.held.set()
            await asyncio.Event().wait()
        return await super().answer(method, path, body)


class WrongCredentialsVm(FakeVm):
    """Its agent hands over `lie`, or says that there are no credentials if that is None."""

    lie: object = None

    def credentials_asked(self, method: str, provider: str, body: Any) -> tuple[int, object]:
        if method != "GET":
            return super().credentials_asked(method, provider, body)
        return (404, {"detail": "there are none"}) if self.lie is None else (200, self.lie)


class StubbornVm(FakeVm):
    """Does not end at the first request to stop."""

    has_refused = False

    async def stop(self) -> None:
        if not self.has_refused:
            self.has_refused = True
            raise VmError(f"microvm@{self.launch.slot} did not stop")
        await super().stop()
