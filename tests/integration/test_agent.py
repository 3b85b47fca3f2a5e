"""The agent as a real process, with a fake desktop on loopback sockets.

Waiting is done on what the agent itself says: its READY=1 on a notify socket, its lines on a
console that is a FIFO, its replies. The times that appear only end a test that hangs.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import http.client
import json
import os
import select
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import TypeAdapter

from polydev.agent.health import UNIT_OF
from polydev.agent.reply_types import HealthReply, IndexReply, LoginReply, ProblemReply
from polydev.controller.machines.agent_client import AgentClient
from polydev.errors import AgentUnreachable, LoginRefused, ProtocolError
from tests.guest_services import CredentialsService, FakeServer, Talk
from tests.guest_tools import CREDENTIALS, FILE, provider_data, write_provider
from tests.sessions import wait_for

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "src/polydev/agent"
UNITS = ROOT / "golden/agent/files/etc/systemd/system"
HANGS_AFTER_SECONDS = 60
# Of the agent itself, where a test says nothing else: this machine may be as busy as it likes.
PATIENT = [
    f"--{name}-timeout-seconds={HANGS_AFTER_SECONDS}"
    for name in ("check", "request", "reply", "login-start", "credentials")
]
# The agent is at 127.0.0.1, so requests from there come from inside the guest.
HOST = "127.0.0.2"
REPLY = TypeAdapter(HealthReply)


def exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = client.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def through_empty_line(client: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += exactly(client, 1)
    return data


def vnc(client: socket.socket) -> None:
    """A VNC server without a password."""
    client.sendall(b"RFB 003.008\n")
    assert exactly(client, 12) == b"RFB 003.008\n"
    client.sendall(b"\x01\x01")
    assert exactly(client, 1) == b"\x01"
    client.sendall(bytes(4))
    client.recv(1)


def locked_vnc(client: socket.socket) -> None:
    """A VNC server like TigerVNC after too many failed logins of an address."""
    reason = b"Too many security failures"
    client.sendall(b"RFB 003.003\n" + bytes(4) + struct.pack(">I", len(reason)) + reason)
    client.recv(12)


def ssh(client: socket.socket) -> None:
    client.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
    client.recv(1)


def display(client: socket.socket) -> None:
    assert exactly(client, 12)[:1] == b"l"
    client.sendall(b"\x01\0\x0b\0" + bytes(4))
    client.recv(1)


def accept_and_stay_silent(client: socket.socket) -> None:
    """Read without an answer until the other side closes."""
    while client.recv(4096):
        pass


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port without a listener; it is bound, so that no other process takes it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield int(bound.getsockname()[1])


def websockify(target_port: Callable[[], int]) -> Talk:
    """A relay like websockify: serves the page, upgrades, and wraps a TCP port in frames."""

    def talk(client: socket.socket) -> None:
        head = through_empty_line(client)
        if head.startswith(b"GET /vnc.html "):
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n<!DOCTYPE html><html>noVNC</html>")
            return
        key = head.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        accept = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        client.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n"
        )
        try:
            target = socket.create_connection(("127.0.0.1", target_port()))
        except OSError:
            client.sendall(
                b"\x88\x28" + (1011).to_bytes(2, "big") + b"Failed to connect to downstream server"
            )
            return
        with target:
            relay(client, target)

    return talk


def relay(client: socket.socket, target: socket.socket) -> None:
    while True:
        readable, _, _ = select.select([client, target], [], [])
        if target in readable:
            data = target.recv(100)
            client.sendall(b"\x82" + bytes([len(data)]) + data if data else b"\x88\x00")
            if not data:
                return
        if client in readable:
            opcode, length = exactly(client, 2)
            assert length & 0x80, "clients mask their frames"
            mask, payload = exactly(client, 4), exactly(client, length & 0x7F)
            if opcode & 0x0F == 8:
                return
            target.sendall(bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)))


LOGIN_PAGE = "https://login.example/"


class Desktop:
    """The guest around the agent. Parts are replaced or closed by the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x_socket = folder / "X1"
        self.show = folder / "systemctl-show"
        self.programs = folder / "bin"
        self.proc = folder / "proc"
        self.console = folder / "console"
        self.closing = contextlib.ExitStack()
        self.programs.mkdir()
        self._write_proc()
        os.mkfifo(self.console)
        self.systemctl(f"cat {shlex.quote(str(self.show))}")
        self.units()
        self.vnc = FakeServer(vnc)
        self.novnc = FakeServer(websockify(lambda: self.vnc.port))
        self.display = FakeServer(display, self.x_socket)

    def _write_proc(self) -> None:
        (self.proc / "net").mkdir(parents=True)
        (self.proc / "sys/kernel/random").mkdir(parents=True)
        (self.proc / "cmdline").write_text("quiet polydev.image=0a1b polydev.vm=vm-7\n")
        (self.proc / "uptime").write_text("12.34 20.00\n")
        (self.proc / "net/route").write_text(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
            "eth0\t00000000\t010010AC\t0003\t0\t0\t0\t00000000\n"
        )
        (self.proc / "sys/kernel/random/boot_id").write_text("b007\n")
        (self.proc / "meminfo").write_text("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")
        (self.proc / "loadavg").write_text("0.50 0.25 0.10 1/99 1234\n")

    def systemctl(self, script: str) -> None:
        program = self.programs / "systemctl.new"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        program.replace(self.programs / "systemctl")

    def units(self, **states: str) -> None:
        """Let systemctl say these states, by component; "active/running" for the rest."""
        blocks = []
        for component, unit in UNIT_OF.items():
            active, sub = states.get(component, "active/running").split("/")
            blocks.append(
                f"Id={unit}\nActiveState={active}\nSubState={sub}\nResult=success\nNRestarts=0\n"
            )
        new = self.show.with_suffix(".new")
        new.write_text("\n".join(blocks))
        new.replace(self.show)

    def close(self) -> None:
        self.closing.close()
        for server in (self.vnc, self.novnc, self.display):
            server.close()

    def replace_vnc(self, talk: Talk) -> None:
        self.vnc.close()
        self.vnc = FakeServer(talk)

    def replace_novnc(self, talk: Talk) -> None:
        self.novnc.close()
        self.novnc = FakeServer(talk)

    def replace_display(self, talk: Talk) -> None:
        self.display.close()
        self.x_socket.unlink()
        self.display = FakeServer(talk, self.x_socket)


class Gate:
    """Holds noVNC's answer back. Only /health asks for it: the browser that is still starting
    keeps the agent's own watch from looking so far."""

    def __init__(self, desktop: Desktop) -> None:
        self.asked, self.go_on = threading.Event(), threading.Event()
        answer = websockify(lambda: desktop.vnc.port)

        def talk(client: socket.socket) -> None:
            self.asked.set()
            assert self.go_on.wait(HANGS_AFTER_SECONDS)
            answer(client)

        desktop.units(browser="activating/start-post")
        desktop.replace_novnc(talk)


class Agent:
    """A running agent; made by `start_agent`, which also ends it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path, tty: int) -> None:
        self.process = process
        self.port = port
        self.log = log
        self._tty = tty
        self._console = b""

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, source: str = HOST
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, HANGS_AFTER_SECONDS, source_address=(source, 0)
        )
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read(), response.headers

    def health(self) -> tuple[int, HealthReply]:
        status, body, _ = self.ask("/health")
        return status, REPLY.validate_json(body, strict=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), HANGS_AFTER_SECONDS)

    def say(self, data: bytes) -> bytes:
        """Send raw bytes and nothing more; return all that comes back."""
        with self.connect() as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(4096), b""))

    def console_through(self, words: str) -> list[str]:
        """Return the console's lines up to the first with this text."""
        while words.encode() not in self._console or not self._console.endswith(b"\n"):
            assert select.select([self._tty], [], [], HANGS_AFTER_SECONDS)[0], self._console
            self._console += os.read(self._tty, 4096)
        return self._console.decode().splitlines()

    def console_after_end(self) -> list[str]:
        """End the agent; return all of the console's lines."""
        self.end()
        while select.select([self._tty], [], [], 0)[0]:
            self._console += os.read(self._tty, 4096)
        return self._console.decode().splitlines()

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(HANGS_AFTER_SECONDS)


StartAgent = Callable[..., Agent]


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[Desktop]:
    desktop = Desktop(tmp_path)
    yield desktop
    desktop.close()


@pytest.fixture
def start_agent(desktop: Desktop) -> Iterator[StartAgent]:
    with contextlib.ExitStack() as stack:

        def start(
            *settings: str,
            command: tuple[str, ...] = (sys.executable, "-m", "polydev.agent"),
            **popen: object,
        ) -> Agent:
            return stack.enter_context(running_agent(desktop, settings, command, popen))

        yield start


@contextlib.contextmanager
def running_agent(
    desktop: Desktop,
    settings: tuple[str, ...],
    command: tuple[str, ...],
    popen: dict[str, object],
) -> Iterator[Agent]:
    notify = desktop.folder / "notify"
    log = desktop.folder / "agent.log"
    tty = os.open(desktop.console, os.O_RDWR)  # both ways, so that no writer's leaving ends it
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
        log.open("wb") as stderr,
    ):
        notified.bind(str(notify))
        notified.settimeout(HANGS_AFTER_SECONDS)
        process = subprocess.Popen(
            [
                *command,
                "--listen-address=127.0.0.1",
                "--listen-port=0",
                "--loopback-prefix=none",
                f"--vnc-port={desktop.vnc.port}",
                f"--novnc-port={desktop.novnc.port}",
                f"--x-socket={desktop.x_socket}",
                f"--proc={desktop.proc}",
                f"--console={desktop.console}",
                "--watch-pause-seconds=0.05",
                *PATIENT,
                *settings,
            ],
            env={
                "PATH": f"{desktop.programs}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT / "src"),
                "NOTIFY_SOCKET": str(notify),
            },
            stderr=stderr,
            **popen,  # type: ignore[call-overload]
        )
        try:
            told = notified.recv(4096).decode()
            assert told.startswith("READY=1\nSTATUS=answers on ")
            yield Agent(process, int(told.rpartition(":")[2]), log, tty)
            assert process.poll() in (None, -15), f"the agent died:\n{log.read_text()}"
        finally:
            process.terminate()
            process.wait(HANGS_AFTER_SECONDS)
            os.close(tty)
            notify.unlink()
    assert "Traceback" not in log.read_text()


def test_working_desktop_reports_ready(start_agent: StartAgent, desktop: Desktop) -> None:
    agent = start_agent()
    status, health = agent.health()
    assert status == 200
    assert (health["status"], health["stage"], health["failing"]) == ("ready", "ready", [])
    assert (health["image_digest"], health["vm_id"], health["boot_id"]) == ("0a1b", "vm-7", "b007")
    assert health["uptime_seconds"] == 12.34
    relay_name = f"ws://127.0.0.1:{desktop.novnc.port}/websockify"
    assert {name: state["detail"] for name, state in health["components"].items()} == {
        "desktop": f"X server answers on {desktop.x_socket}",
        "vnc": f"RFB 003.008 on 127.0.0.1:{desktop.vnc.port}",
        "novnc": f"RFB 003.008 over {relay_name}",
        "browser": "polydev-browser.service is active/running",
    }


def test_stopped_vnc_is_reported_with_cause_and_unit(
    start_agent: StartAgent, desktop: Desktop, closed_port: int
) -> None:
    port = closed_port
    desktop.units(vnc="failed/failed")
    status, health = start_agent(f"--vnc-port={port}").health()
    assert (status, health["status"], health["stage"]) == (503, "failed", "services")
    assert health["failing"] == ["vnc"]
    assert health["components"]["vnc"]["detail"] == (
        f"connection refused on 127.0.0.1:{port} (polydev-vnc.service is failed/failed)"
    )
    assert health["failed_units"] == ["polydev-vnc.service"]


def test_vnc_server_that_rejects_viewers_is_reported_failing(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    desktop.replace_vnc(locked_vnc)
    status, health = start_agent().health()
    assert (status, health["failing"]) == (503, ["vnc", "novnc"])
    assert "Too many security failures" in health["components"]["vnc"]["detail"]


@pytest.mark.parametrize(
    ("target", "detail"),
    [(None, "1011 Failed to connect to downstream server"), (ssh, "SSH-2.0-Open")],
    ids=["nothing-there", "another-service"],
)
def test_novnc_with_wrong_target_port_is_reported(
    start_agent: StartAgent,
    desktop: Desktop,
    closed_port: int,
    target: Talk | None,
    detail: str,
) -> None:
    with contextlib.ExitStack() as stack:
        wrong = closed_port
        if target:
            server = FakeServer(target)
            stack.callback(server.close)
            wrong = server.port
        desktop.replace_novnc(websockify(lambda: wrong))
        status, health = start_agent().health()
    assert (status, health["failing"]) == (503, ["novnc"])
    assert detail in health["components"]["novnc"]["detail"]


def test_novnc_without_vnc_html_is_reported(start_agent: StartAgent, desktop: Desktop) -> None:
    def no_page(client: socket.socket) -> None:
        through_empty_line(client)
        client.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")

    desktop.replace_novnc(no_page)
    status, health = start_agent().health()
    assert (status, health["failing"]) == (503, ["novnc"])
    assert "GET /vnc.html" in health["components"]["novnc"]["detail"]
    assert "404" in health["components"]["novnc"]["detail"]


def test_browser_without_window_reports_starting(start_agent: StartAgent, desktop: Desktop) -> None:
    desktop.units(browser="activating/start-post")
    status, health = start_agent().health()
    assert (status, health["status"], health["failing"]) == (503, "starting", ["browser"])
    assert health["components"]["browser"]["detail"] == (
        "polydev-browser.service is activating/start-post"
    )


def test_lost_readiness_is_reported(start_agent: StartAgent, desktop: Desktop) -> None:
    agent = start_agent("--keep-seconds=0", "--novnc-keep-seconds=0")
    assert agent.health()[0] == 200
    # A run of the checks that began before a change may be shared by those who ask after it.
    desktop.units(browser="failed/failed")
    wait_for("a failed VM", lambda: agent.health()[1]["status"] == "failed")
    desktop.units()
    wait_for("a VM that is ready", lambda: agent.health()[0] == 200)
    desktop.display.close()
    desktop.x_socket.unlink()
    wait_for("a VM without a desktop", lambda: agent.health()[0] == 503)
    status, health = agent.health()
    assert (status, health["failing"]) == (503, ["desktop"])
    assert f"there is no {desktop.x_socket}" in health["components"]["desktop"]["detail"]


@pytest.mark.parametrize("part", ["display", "vnc", "novnc"])
def test_silent_desktop_component_is_reported_as_timeout(
    start_agent: StartAgent, desktop: Desktop, part: str
) -> None:
    getattr(desktop, f"replace_{part}")(accept_and_stay_silent)
    status, health = start_agent("--check-timeout-seconds=0.2").health()
    name = {"display": "desktop"}.get(part, part)
    assert status == 503
    assert name in health["failing"]
    assert "within 0.2 s" in health["components"][name]["detail"]


def test_hung_systemctl_is_killed_with_its_children(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    alive = desktop.folder / "alive"
    os.mkfifo(alive)
    held = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    desktop.systemctl(f"exec 9>{shlex.quote(str(alive))}; echo x >&9; sleep 1000; true")
    # Without a display the agent's own watch calls no systemctl, so only the check's call hangs.
    agent = start_agent("--x-socket=/nowhere", "--check-timeout-seconds=0.5", "--keep-seconds=0")

    def was_killed_in_its_sleep() -> bool:
        status, health = agent.health()
        assert (status, {"desktop", "browser"} - {*health["failing"]}) == (503, set())
        assert health["components"]["browser"]["detail"] == "systemctl did not end within 0.5 s"
        return bool(select.select([held], [], [], 0)[0])  # else before it had begun

    wait_for("a systemctl that hangs", was_killed_in_its_sleep)
    poller = select.poll()
    poller.register(held, 0)  # no event asked for but the one always told: all writers are gone
    assert poller.poll(HANGS_AFTER_SECONDS * 1000)
    os.close(held)


def test_failing_systemctl_is_quoted_in_health_detail(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    desktop.systemctl("echo 'Failed to connect to bus' >&2; exit 1")
    detail = start_agent().health()[1]["components"]["browser"]["detail"]
    assert detail == "systemctl exited with status 1: Failed to connect to bus"


def test_missing_systemctl_is_reported(start_agent: StartAgent) -> None:
    detail = start_agent("--systemctl=no-such-systemctl").health()[1]["components"]["browser"]
    assert detail == {
        "ok": False,
        "detail": "no-such-systemctl could not be started: No such file or directory",
    }


def test_requests_are_answered_while_a_health_check_waits(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    gate = Gate(desktop)
    agent = start_agent()
    with ThreadPoolExecutor() as pool:
        reports = [pool.submit(agent.health) for _ in range(3)]
        assert gate.asked.wait(HANGS_AFTER_SECONDS)
        assert agent.ask("/")[0] == 200
        assert not any(report.done() for report in reports)
        gate.go_on.set()
        assert [report.result()[1]["failing"] for report in reports] == [["browser"]] * 3


def test_index_head_request_and_unknown_path_or_method(start_agent: StartAgent) -> None:
    agent = start_agent()
    status, body, headers = agent.ask("/")
    assert (status, headers["Connection"]) == (200, "close")
    assert "/health" in TypeAdapter(IndexReply).validate_json(body)["paths"]

    status, nothing, head_headers = agent.ask("/", "HEAD")
    assert (status, nothing) == (200, b"")
    assert head_headers["Content-Length"] == headers["Content-Length"]

    status, body, headers = agent.ask("/nothing")
    assert (status, headers["Content-Type"]) == (404, "application/problem+json")
    assert "/nothing" in TypeAdapter(ProblemReply).validate_json(body)["detail"]

    status, _, headers = agent.ask("/health", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert f"{HOST} POST /health HTTP/1.1 405" in agent.log.read_text()


def state(status: str, url: str | None = None, detail: str = "") -> str:
    return json.dumps({"status": status, "url": url, "device_code": None, "detail": detail})


class Logins:
    """A fake of login server and status unit, with the agent's requests to them."""

    def __init__(self, desktop: Desktop) -> None:
        self.folder = desktop.folder / "logins"
        self.claude = self.folder / "claude/state"
        self.claude.parent.mkdir(parents=True)
        self.problem = ""
        self.connected = threading.Event()
        self._asked: list[str] = []
        self._server = FakeServer(self._talk, desktop.folder / "login-server")
        desktop.closing.callback(self._server.close)
        self.settings = (
            f"--logins={self.folder}",
            f"--logins-socket={desktop.folder}/login-server",
            f"--providers={desktop.folder}/providers",
        )
        write_provider(desktop.folder / "providers", provider_data())
        self._status_asked = desktop.folder / "status-asked"
        self._status_asked.touch()
        self._status = desktop.folder / "status-says"
        says = f"cat {shlex.quote(str(self._status))} >{shlex.quote(str(self.claude))}"
        desktop.systemctl(
            f'case $* in *status@*) echo "$*" >>{shlex.quote(str(self._status_asked))}; {says} ;; '
            f"*) cat {shlex.quote(str(desktop.show))} ;; esac"
        )

    def _talk(self, client: socket.socket) -> None:
        self.connected.set()
        if line := client.makefile().readline().strip():
            self._asked.append(line)
            if not self.problem:
                self.claude.write_text(state("starting"))
            client.sendall(f"{self.problem}\n".encode())

    def status_says(self, state: str) -> None:
        """Write what the unit of the status command writes."""
        self._status.write_text(state)

    def asked(self) -> list[str]:
        """The lines that the agent sent to the server."""
        return self._asked

    def status_asked(self) -> list[str]:
        """The starts of the status unit."""
        return self._status_asked.read_text().splitlines()


def login(agent: Agent, method: str = "GET") -> LoginReply:
    status, body, _ = agent.ask("/login/claude", method)
    assert status == 200
    return TypeAdapter(LoginReply).validate_json(body, strict=True)


def test_login_starts_on_first_request_only(start_agent: StartAgent, desktop: Desktop) -> None:
    logins = Logins(desktop)
    agent = start_agent(*logins.settings)
    assert login(agent)["status"] == "none"
    assert logins.asked() == []
    assert login(agent, "POST")["status"] == "starting"
    logins.claude.write_text(state("waiting", LOGIN_PAGE))
    reply = login(agent, "POST")
    assert (reply["status"], reply["url"]) == ("waiting", LOGIN_PAGE)
    assert login(agent) == reply
    logins.claude.write_text(state("done", LOGIN_PAGE))
    assert login(agent, "POST")["status"] == "done"
    assert logins.asked() == ["start claude"]


def test_failed_login_is_started_again_on_request(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    logins = Logins(desktop)
    logins.claude.write_text(state("failed", None, "claude exited with status 1: no network"))
    agent = start_agent(*logins.settings)
    assert login(agent)["detail"] == "claude exited with status 1: no network"
    assert login(agent, "POST")["status"] == "starting"
    assert logins.asked() == ["start claude"]


def test_login_that_cannot_start_reports_the_reason(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    logins = Logins(desktop)
    logins.problem = "cannot start the login of claude: no space left"
    agent = start_agent(*logins.settings)
    reply = login(agent, "POST")
    assert (reply["status"], reply["url"]) == ("failed", None)
    assert reply["detail"] == logins.problem
    desktop.closing.close()
    (desktop.folder / "login-server").unlink()
    assert f"there is no {desktop.folder}/login-server" in login(agent, "POST")["detail"]


@pytest.fixture
def credentials_service(desktop: Desktop) -> Iterator[CredentialsService]:
    service = CredentialsService(desktop.folder)
    yield service
    service.close()


def test_credentials_are_injected_read_and_wiped(
    start_agent: StartAgent, desktop: Desktop, credentials_service: CredentialsService
) -> None:
    logins, path = Logins(desktop), "/login/claude/credentials"
    agent = start_agent(*logins.settings, f"--credentials-socket={credentials_service.path}")
    body = json.dumps({"credentials": CREDENTIALS}).encode()

    logins.status_says(state("failed", None, "claude exited with status 1: Expired"))
    status, refused, _ = agent.ask(path, "PUT", body)
    assert (status, json.loads(refused)["detail"]) == (422, "claude exited with status 1: Expired")
    assert not (credentials_service.home / FILE).exists()

    logins.status_says(state("done"))
    status, reply, _ = agent.ask(path, "PUT", body)
    assert (status, json.loads(reply)["status"]) == (200, "done")
    assert login(agent)["status"] == "done"
    for _ in range(2):
        status, found, _ = agent.ask(path)
        assert (status, json.loads(found)) == (
            200,
            {"provider": "claude", "credentials": CREDENTIALS},
        )

    assert agent.ask(path, "DELETE")[0] == 204
    assert agent.ask(path)[0] == 404
    assert login(agent)["status"] == "done"
    assert logins.asked() == ["stop claude"] * 2
    unit = "polydev-login-status@claude.service"
    assert logins.status_asked() == [f"start --no-ask-password {unit}"] * 2
    assert "a1" not in agent.log.read_text()


def test_login_without_its_credentials_can_start_again(
    start_agent: StartAgent, desktop: Desktop, credentials_service: CredentialsService
) -> None:
    logins, file = Logins(desktop), credentials_service.home / FILE
    settings = (*logins.settings, f"--credentials-socket={credentials_service.path}")
    agent = start_agent(*settings)
    file.parent.mkdir()
    file.write_text(json.dumps(CREDENTIALS))
    for there, status in ((CREDENTIALS, "done"), ({"no": "token"}, "starting"), (None, "starting")):
        file.write_text(json.dumps(there)) if there else file.unlink()
        logins.claude.write_text(state("done"))
        assert login(agent)["status"] == "done"
        assert login(agent, "POST")["status"] == status
    credentials_service.close()
    logins.claude.write_text(state("done"))
    assert login(agent, "POST")["status"] == "done"  # nobody can say whether they are there


def test_controller_agent_client_works_with_real_agent(
    start_agent: StartAgent, desktop: Desktop, credentials_service: CredentialsService
) -> None:
    logins = Logins(desktop)
    agent = start_agent(*logins.settings, f"--credentials-socket={credentials_service.path}")
    plain = json.dumps(CREDENTIALS, separators=(",", ":")).encode()

    async def talk(client: AgentClient) -> None:
        tool = ("127.0.0.1", "claude")
        assert (await client.login(*tool)).status == "none"
        assert await client.credentials(*tool) is None
        with pytest.raises(LoginRefused, match="waiting"):
            await client.type_code(*tool, "x")
        logins.status_says(state("failed", None, "claude exited with status 1: Expired"))
        with pytest.raises(LoginRefused, match="Expired"):
            await client.inject(*tool, plain)
        with pytest.raises(LoginRefused, match=r"lacks token\.access"):
            await client.inject(*tool, b'{"token":{}}')
        logins.status_says(state("done"))
        assert (await client.inject(*tool, plain)).status == "done"
        for _ in range(2):
            assert await client.credentials(*tool) == plain
        for _ in range(2):
            await client.wipe(*tool)
        assert await client.credentials(*tool) is None
        (credentials_service.home / FILE).write_text("[]")
        with pytest.raises(ProtocolError, match="not a JSON object"):
            await client.credentials(*tool)
        credentials_service.close()
        with pytest.raises(AgentUnreachable, match="503"):
            await client.credentials(*tool)

    async def talking() -> None:
        client = AgentClient(HANGS_AFTER_SECONDS, agent.port)
        # The agent refuses requests from inside the guest.
        client._http._transport = httpx.AsyncHTTPTransport(local_address=HOST)
        try:
            await talk(client)
        finally:
            await client.close()

    asyncio.run(talking())


def test_unsafe_credentials_paths_are_refused(
    start_agent: StartAgent, desktop: Desktop, credentials_service: CredentialsService
) -> None:
    logins, path = Logins(desktop), "/login/claude/credentials"
    logins.claude.write_text(state("done"))
    agent = start_agent(*logins.settings, f"--credentials-socket={credentials_service.path}")
    file = credentials_service.home / FILE
    file.parent.mkdir()
    puts: list[Callable[[], object]] = [
        lambda: file.symlink_to("/etc/passwd"),
        lambda: os.mkfifo(file),
        file.mkdir,
    ]
    for put in puts:
        put()
        status, body, _ = agent.ask(path)
        assert (status, str(FILE) in json.loads(body)["detail"]) == (422, True)
        file.rmdir() if file.is_dir() else file.unlink()
    status, body, _ = agent.ask(path, "PUT", b'{"credentials": {"token": {}}}')
    assert (status, "lacks token.access" in json.loads(body)["detail"]) == (422, True)


def test_login_code_goes_to_the_waiting_login(start_agent: StartAgent, desktop: Desktop) -> None:
    logins, code = Logins(desktop), b'{"code": "x#y"}'
    agent = start_agent(*logins.settings)
    logins.claude.write_text(state("waiting", LOGIN_PAGE))
    fifo = logins.claude.with_name("code")
    for put in (lambda: None, lambda: fifo.symlink_to("/dev/null"), lambda: fifo.write_text("")):
        put()
        assert agent.ask("/login/claude/code", "POST", code)[0] == 409
        fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    assert agent.ask("/login/claude/code", "POST", code)[0] == 409  # nobody reads it
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert agent.ask("/login/claude/code", "POST", code)[0] == 202
    assert os.read(reader, 100) == b"x#y\n"
    os.close(reader)


def test_invalid_login_state_files_are_ignored(start_agent: StartAgent, desktop: Desktop) -> None:
    logins = Logins(desktop)
    agent = start_agent(*logins.settings)
    other = logins.folder / "other"
    other.write_text(state("waiting", LOGIN_PAGE))
    for put in (
        lambda: logins.claude.symlink_to(other),
        lambda: os.mkfifo(logins.claude),
        lambda: logins.claude.write_text(state("failed", None, "x" * 1_000_000)),
    ):
        put()
        reply = login(agent)
        assert (reply["status"], reply["url"]) == ("failed", None)
        assert "not as it is written" in reply["detail"]
        logins.claude.unlink()
    logins.claude.parent.rename(logins.folder / "elsewhere")
    (logins.folder / "elsewhere/state").write_text(state("waiting", LOGIN_PAGE))
    logins.claude.parent.symlink_to(logins.folder / "elsewhere")
    assert "not as it is written" in login(agent)["detail"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /" + b"x" * 70_000, 414),
        (b"GET / HTTP/1.0\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.0\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"PATCH / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"PUT / HTTP/1.1\r\nContent-Length: 131073\r\n\r\n" + b"x" * 131073, 413),
        (b"PUT / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx", 400),
    ],
    ids=[
        *("tls", "long-target", "long-header", "many-headers", "http2", "unknown-method"),
        *("chunked", "no-length", "too-much", "digits", "cut-off"),
    ],
)
def test_malformed_requests_are_refused(start_agent: StartAgent, data: bytes, status: int) -> None:
    agent = start_agent()
    answer = agent.say(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nCache-Control: no-store\r\n" in head
    assert TypeAdapter(ProblemReply).validate_json(body)["status"] == status
    assert agent.health()[0] == 200


def test_slow_request_is_closed_at_request_timeout(start_agent: StartAgent) -> None:
    agent = start_agent("--request-timeout-seconds=0.5")
    with agent.connect() as silent, agent.connect() as slow:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while not select.select([slow], [], [], 0.05)[0]:
                slow.sendall(b"GET / HTTP/1.1\r\nX: y\r\n"[:1])  # never long without a byte
        assert silent.recv(4096) == b""


def test_login_requests_from_inside_the_vm_are_refused(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    """Programs of the VM can neither type codes nor read credentials, from any address of it."""
    logins = Logins(desktop)
    agent = start_agent(*logins.settings)
    assert agent.ask("/login/claude", source="127.0.0.1")[0] == 403
    assert agent.ask("/login/claude")[0] == 200
    assert agent.ask("/health", source="127.0.0.1")[0] == 200


def test_loopback_prefix_counts_as_inside_the_vm(start_agent: StartAgent, desktop: Desktop) -> None:
    agent = start_agent(*Logins(desktop).settings, "--loopback-prefix=127.")
    assert agent.ask("/login/claude")[0] == 403


def test_slow_clients_are_dropped_at_connection_limit(start_agent: StartAgent) -> None:
    agent = start_agent(
        "--max-connections=3", f"--request-timeout-seconds={HANGS_AFTER_SECONDS * 10}"
    )
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(agent.connect()) for _ in range(5)]
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert agent.health()[0] == 200
        assert agent.ask("/")[0] == 200
        with contextlib.suppress(ConnectionResetError):
            slow[0].recv(4096)  # ends: the oldest had to leave


def test_connections_beyond_limit_get_503_while_all_are_busy(
    start_agent: StartAgent, desktop: Desktop
) -> None:
    gate = Gate(desktop)
    agent = start_agent("--max-connections=1")
    with ThreadPoolExecutor() as pool:
        report = pool.submit(agent.health)
        assert gate.asked.wait(HANGS_AFTER_SECONDS)
        assert agent.say(b"").startswith(b"HTTP/1.1 503 ")
        gate.go_on.set()
        assert report.result()[1]["failing"] == ["browser"]


def test_agent_survives_clients_that_disconnect_early(start_agent: StartAgent) -> None:
    agent = start_agent()
    for data in (b"", b"GET /he", b"GET /health HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n" * 99):
        client = agent.connect()
        client.sendall(data)
        # Closing sends a reset at once, even with unsent data.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    assert agent.health()[0] == 200


def test_readiness_is_printed_to_console_once(start_agent: StartAgent, desktop: Desktop) -> None:
    desktop.units(browser="activating/start-post")
    agent = start_agent("--keep-seconds=0", "--novnc-keep-seconds=0")
    assert agent.console_through("answers") == ["polydev: agent answers after 12.34 s"]
    assert agent.health()[0] == 503
    (desktop.proc / "uptime").write_text("45.67 80.00\n")
    desktop.units()
    both = ["polydev: agent answers after 12.34 s", "polydev: ready after 45.67 s"]
    assert agent.console_through("ready") == both
    assert agent.health()[0] == 200
    desktop.units(browser="failed/failed")
    wait_for("a failed VM", lambda: agent.health()[0] == 503)
    desktop.units()
    wait_for("a VM that is ready", lambda: agent.health()[0] == 200)
    assert agent.console_after_end() == both


def test_metrics_are_served(start_agent: StartAgent) -> None:
    status, body, headers = start_agent().ask("/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'polydev_image_info{digest="0a1b",vm="vm-7"} 1.0\n' in body


def test_agent_listens_on_socket_from_systemd(start_agent: StartAgent) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)
        descriptor = listener.fileno()
        script = f'exec 3<&{descriptor}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        agent = start_agent(
            command=("/bin/bash", "-c", script, "sh", sys.executable, "-m", "polydev.agent"),
            pass_fds=(descriptor,),
        )
        assert agent.port == port
        assert agent.health()[0] == 200


@pytest.fixture
def guest_folder(tmp_path: Path) -> Path:
    """The agent as the image has it: sources and unchecked bytecode in a folder of their own."""
    folder = tmp_path / "polydev-agent"
    shutil.copytree(AGENT, folder / "polydev/agent", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(AGENT.parent / "__init__.py", folder / "polydev")
    compiled = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*compiled, str(folder)], check=True)
    return folder


def units_command(name: str, guest_folder: Path) -> list[str]:
    """The command of a unit, with this Python and the agent in `guest_folder`."""
    text = (UNITS / name).read_text()
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    python, *arguments = shlex.split(line.removeprefix("ExecStart="))
    assert python == "/usr/bin/python3"
    arguments = [word.replace("/usr/lib/polydev-agent", str(guest_folder)) for word in arguments]
    return [sys.executable, "-X", "importtime", *arguments]


def test_agent_unit_prepares_logins_once_desktop_is_ready(
    start_agent: StartAgent, desktop: Desktop, guest_folder: Path
) -> None:
    """So its boot does not wait for them, and nor does the first login in a clone.

    Connecting to the login server's socket has systemd start it.
    """
    command = tuple(units_command("polydev-agent.service", guest_folder))
    desktop.units(browser="activating/start-post")
    logins = Logins(desktop)
    agent = start_agent(*logins.settings, command=command)
    assert agent.health()[0] == 503
    assert not logins.connected.is_set()
    assert not {name for name in imported_modules(agent) if name.startswith("polydev.agent.login")}
    desktop.units()
    assert logins.connected.wait(HANGS_AFTER_SECONDS)
    agent.end()
    imported = imported_modules(agent)
    assert {"polydev.agent.health", "polydev.agent.login_control"} <= imported
    assert not imported & {"typing", "subprocess", "polydev.agent.reply_types", "runpy"}


def test_identity_service_imports_few_modules(guest_folder: Path) -> None:
    """The host waits for its start, and each clone's memory holds all of it."""
    command = units_command("polydev-identity.service", guest_folder)
    command = [word.replace("main()", "main") for word in command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    assert "polydev.agent.vm_facts" in imported
    assert not imported & {"http.server", "json", "re", "socket", "threading", "typing"}


def test_login_server_imports_what_a_login_needs_before_one_is_asked_for(
    guest_folder: Path,
) -> None:
    """On an emulated CPU, its imports would take as long as the tool itself."""
    command = units_command("polydev-login.service", guest_folder)
    command = [word.replace("main(sys.argv[1:])", "main") for word in command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = {row.rpartition("|")[2].strip() for row in done.stderr.splitlines()}
    names = ("browser", "login_flow", "login_terminal", "tool_process")
    assert {f"polydev.agent.{name}" for name in names} <= imported
    assert not imported & {"typing", "subprocess", "polydev.agent.reply_types", "runpy"}


def imported_modules(agent: Agent) -> set[str]:
    return {row.rpartition("|")[2].strip() for row in agent.log.read_text().splitlines()}
