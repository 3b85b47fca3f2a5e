"""Fake VMs in which everything of a login is real: agent, tool, and the programs between them.

    with login_guests(host, issuer) as kind:        # the image's one provider is `testtool`
        host.hypervisor.kind = kind
        ...                                         # something starts a session and its login
        url = await guest.pages.get()               # the page that its browser shows

Each guest is a folder of this machine. Its health it says itself, since it has no desktop.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx

from polydev import providers
from polydev.agent.browser import ACCEPTED, SINGLETON
from tests.fake_vms import FakeVm
from tests.guest_services import CredentialsService, LoginService
from tests.images import write_record
from tests.oidc.provider import TOOL
from tests.vms import IMAGE_DIGEST, FakeHost

ROOT = Path(__file__).parents[1]
XDG_OPEN = ROOT / "golden/agent/files/usr/lib/polydev-agent/bin/xdg-open"
PYTHONPATH = f"{ROOT}/src:{ROOT}"
HANGS_AFTER_SECONDS = 60
PAUSE_SECONDS = 0.01
NAME = "testtool"


def testtool(issuer: str) -> providers.Provider:
    """The provider of the tests, with its OpenID provider at another address."""
    found = providers.load_providers(ROOT / "tests/oidc/providers")[NAME].model_dump(mode="json")
    for part in ("login", "status"):
        found[part]["environment"]["TESTTOOL_ISSUER"] = issuer
    return providers.Provider.model_validate(found)


def has_login_guests(host: FakeHost, issuer: str) -> None:
    """Have a host's VMs be such guests from now on."""
    tool = testtool(issuer)
    write_record(host.root / "store/images" / IMAGE_DIGEST, {NAME: tool})
    host.hypervisor.kind = type("GuestOfTool", (LoginGuest,), {"tool": tool})


class LoginGuest(FakeVm):
    """`pages`: those that its browser was told to show."""

    tool: providers.Provider

    def __init__(self, *words: Any) -> None:
        self._awake, self._asked_in_vain = asyncio.Event(), asyncio.Event()
        self._ends = ExitStack()
        super().__init__(*words)
        self.pages: asyncio.Queue[str] = asyncio.Queue()
        # The path of a socket is short, and that of a VM's folder is not.
        self.place = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))

    @property
    def is_paused(self) -> bool:
        return not self._awake.is_set()

    @is_paused.setter
    def is_paused(self, paused: bool) -> None:
        """Its processes stand too."""
        for pid in self.processes() if hasattr(self, "place") else ():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGSTOP if paused else signal.SIGCONT)
        (self._awake.clear if paused else self._awake.set)()

    async def begin(self) -> None:
        service = CredentialsService(self.place)
        self._ends.callback(service.close)
        (self.place / "providers").mkdir()
        (self.place / "providers" / f"{NAME}.json").write_bytes(providers.guest_json(self.tool))
        self._lay_programs()
        await self._open_browser()
        self._logins = LoginService(self.place)
        self._ends.callback(self._logins.close)
        self._agent = f"http://{await asyncio.to_thread(self._start_agent)}"
        await super().begin()

    def _lay_programs(self) -> None:
        programs = self.place / "bin"
        programs.mkdir()
        (programs / "xdg-open").symlink_to(XDG_OPEN)
        (programs / NAME).symlink_to(TOOL)

    async def _open_browser(self) -> None:
        """A stand-in for Chromium: it listens at its socket, and shows pages to the test only."""

        async def show(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.pages.put_nowait((await reader.read()).decode().rpartition("\0")[2])
            writer.write(ACCEPTED)
            writer.close()

        path = self.place / "home" / SINGLETON
        path.parent.mkdir(parents=True)
        self._servers.append(await asyncio.start_unix_server(show, path))

    def _start_agent(self) -> str:
        """Return where it listens."""
        settings = {
            "listen-address": self.address,
            "listen-port": 0,
            "loopback-prefix": "none",
            "systemctl": "false",  # only injections ask it
            "providers": self.place / "providers",
            "credentials-socket": self.place / "credentials",
            "logins": self.place / "logins",
            "logins-socket": self._logins.path,
            "login-programs": self.place / "bin",
            "console": os.devnull,
            "x-socket": self.place / "X1",
        }
        argv = [sys.executable, "-m", "polydev.agent", *(f"--{k}={v}" for k, v in settings.items())]
        notify = self.place / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(str(notify))
            notified.settimeout(HANGS_AFTER_SECONDS)
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH}
            env |= {"NOTIFY_SOCKET": str(notify), "HOME": str(self.place / "home")}
            agent = subprocess.Popen(argv, env=env, start_new_session=True)
            self._ends.callback(agent.wait)
            self._ends.callback(agent.kill)
            return notified.recv(4096).decode().rpartition(" ")[2].strip()

    async def until_asked_in_vain(self) -> None:
        """Wait until somebody asks about its login while it stands."""
        self._asked_in_vain.clear()
        await self._asked_in_vain.wait()

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, object]:
        if self.is_paused and path.startswith("/login/"):
            self._asked_in_vain.set()
        await self._awake.wait()
        if not path.startswith("/login/"):
            return await super().answer(method, path, body)
        # From another address than its own, at which it takes nobody for the host.
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.1")
        async with httpx.AsyncClient(transport=transport, timeout=HANGS_AFTER_SECONDS) as http:
            content = None if body is None else json.dumps(body)
            answer = await http.request(method, self._agent + path, content=content)
        return answer.status_code, answer.json() if answer.content else None

    def end(self, activity: Any = "inactive", detail: str = "") -> None:
        super().end(activity, detail)
        deadline = time.monotonic() + HANGS_AFTER_SECONDS
        while pids := self.processes():  # killed ones take a moment to end
            assert time.monotonic() < deadline, f"they live on: {pids}"
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(PAUSE_SECONDS)
        self._ends.close()

    def processes(self) -> list[int]:
        """All that runs in it: its agent, a login and its tool."""
        mark = f"HOME={self.place}/home".encode()
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # of another user, or it has just ended
                if mark in file.read_bytes().split(b"\0"):
                    found.append(int(file.parent.name))
        return found

    @property
    def starts(self) -> int:
        """How often a login was started in it."""
        return len(self._logins.starts)
