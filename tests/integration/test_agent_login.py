"""The login runner as a process, with small scripts as tools and a fake browser's socket."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from polydev import processes
from polydev.agent.browser import ACCEPTED, SINGLETON
from polydev.agent.login_state import STATE_FILE, reply_of_state
from polydev.agent.reply_types import LoginReply
from polydev.agent.tool_process import CODE_FIFO, LoginProcess
from tests.guest_tools import CREDENTIALS, FILE, provider, provider_data, write_provider
from tests.xscreen import x_screens

ROOT = Path(__file__).resolve().parents[2]
XDG_OPEN = ROOT / "golden/agent/files/usr/lib/polydev-agent/bin/xdg-open"
STATUS = (
    "import sys; from polydev.agent.login_confirm import keep_status; keep_status(sys.argv[1:])"
)
LOGIN = """
import sys
from polydev.agent.login_program import run_login
from polydev.agent.providers import provider_of
from polydev.agent.settings import settings_from_arguments
name, *words = sys.argv[1:]
settings = settings_from_arguments(words)
run_login(provider_of(settings.providers, name), f"{settings.logins}/{name}", settings)
"""
PAGE = "https://login.example/oauth?client_id=1&redirect_uri=http%3A%2F%2Flocalhost%3A1455"
DEADLINE_SECONDS = 60
POLL_SECONDS = 0.02
LEAVE = f"mkdir -p .tool; echo '{json.dumps(CREDENTIALS)}' >{FILE}; exit 0"


@dataclass(frozen=True)
class Guest:
    """Folders as in the VM: the runner's, the user's home, the programs that tools find."""

    folder: Path

    @property
    def run(self) -> Path:
        """The folder of the login."""
        return self.folder / "logins/claude"

    @property
    def state(self) -> LoginReply:
        file = self.run / STATE_FILE
        return reply_of_state("claude", file.read_bytes() if file.exists() else None)

    @property
    def file(self) -> Path:
        """The tool's credentials."""
        return self.folder / "home" / FILE

    def has_tool(self, login: str, status: str = "exit 0", **words: Any) -> None:
        """Install `claude`, which runs these scripts as its login and status commands."""
        tool = self.folder / "bin/claude"
        tool.write_text(f"#!/bin/sh\nif [ $1 = status ]; then {status}\nfi\n{login}\n")
        tool.chmod(0o755)
        write_provider(self.folder / "providers", provider_data(**words))

    @contextmanager
    def login(
        self, *settings: str, program: str = LOGIN, display: str = ""
    ) -> Iterator[subprocess.Popen[bytes]]:
        env = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT / "src"),
            "HOME": str(self.folder / "home"),
            "DISPLAY": display,
        }
        words = [f"--login-programs={self.folder / 'bin'}", *settings]
        words += [f"--providers={self.folder / 'providers'}", f"--logins={self.folder / 'logins'}"]
        process = processes.spawn([sys.executable, "-c", program, "claude", *words], env=env)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def wait(self, is_so: Callable[[LoginReply], bool]) -> LoginReply:
        """Poll the state file, which has no notification, until the condition holds."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not is_so(state := self.state):
            assert time.monotonic() < deadline, state
            time.sleep(POLL_SECONDS)
        return state


@pytest.fixture
def guest() -> Iterator[Guest]:
    # The path of a socket is short, and that of pytest's folder is not.
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        for part in ("logins/claude", "home", "bin"):
            (folder / part).mkdir(parents=True)
        (folder / "bin/xdg-open").symlink_to(XDG_OPEN)
        write_provider(folder / "providers", provider_data())
        yield Guest(folder)


@contextmanager
def browser(guest: Guest) -> Iterator[list[bytes]]:
    """Chromium's socket, which acknowledges one message; yields the acknowledged ones."""
    told: list[bytes] = []
    path = guest.folder / "home" / SINGLETON
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            while not told:
                with listening.accept()[0] as client, suppress(BrokenPipeError):  # it waits 5 s
                    message = b"".join(iter(lambda: client.recv(4096), b""))
                    client.sendall(ACCEPTED)
                    told.append(message)

        thread = Thread(target=serve)
        thread.start()
        try:
            yield told
        finally:
            thread.join()


def test_login_runs_from_start_to_done(guest: Guest) -> None:
    guest.has_tool(f"xdg-open '{PAGE}'; until [ -e go-on ]; do sleep 0.05; done; {LEAVE}")
    with browser(guest) as told, guest.login() as process:
        guest.wait(lambda _state: bool(told))
        shown = guest.wait(lambda state: state["status"] == "waiting" and not state["detail"])
        assert shown["url"] == PAGE
        (guest.folder / "home/go-on").touch()
        assert process.wait() == 0
    assert told == [b"START\0/\0chromium\0" + PAGE.encode()]
    assert (guest.state["status"], guest.state["url"], guest.state["detail"]) == ("done", PAGE, "")


def test_login_page_waits_for_the_browser(guest: Guest) -> None:
    guest.has_tool(f"xdg-open '{PAGE}'; exec sleep 1000")
    with guest.login():
        waiting = guest.wait(lambda state: "browser" in state["detail"])
        assert (waiting["status"], waiting["url"]) == ("waiting", PAGE)
        with browser(guest):
            guest.wait(lambda state: state["detail"] == "")


def test_failing_tool_is_quoted_in_login_detail(guest: Guest) -> None:
    guest.has_tool("printf 'no \\033[1mdisk\\033[0m\\n'; exit 3")
    with guest.login() as process:
        assert process.wait() == 0
    assert guest.state["status"] == "failed"
    assert guest.state["detail"] == "claude exited with status 3: no disk"


@pytest.mark.parametrize(
    ("login", "status", "detail"),
    [
        ("exit 0", "exit 0", f"Claude has written no credentials: there is no ~/{FILE}"),
        (f"mkdir .tool; echo '{{}}' >{FILE}", "exit 0", f"~/{FILE} lacks token.access"),
        (LEAVE, "echo 'Not logged in'; exit 1", "claude exited with status 1: Not logged in"),
    ],
    ids=["no-file", "no-keys", "status-disagrees"],
)
def test_login_fails_unless_credentials_file_and_status_command_agree(
    guest: Guest, login: str, status: str, detail: str
) -> None:
    guest.has_tool(login, status)
    with guest.login() as process:
        assert process.wait() == 0
    assert guest.state["status"] == "failed"
    assert guest.state["detail"].startswith(detail)


def test_login_code_is_typed_into_the_tool_terminal(guest: Guest) -> None:
    guest.has_tool(
        f"echo 'see {PAGE}'; echo 'code: AB-12'; read code; [ $code = x#y ] && {LEAVE}",
        device_code="code: (.*)",
    )
    with guest.login() as process:
        waiting = guest.wait(lambda state: state["device_code"] is not None)
        assert (waiting["status"], waiting["url"]) == ("waiting", PAGE)
        assert waiting["device_code"] == "AB-12"
        fifo = guest.run / CODE_FIFO
        assert fifo.stat().st_mode & 0o777 == 0o622  # the agent writes as any other user would
        fifo.write_text("x#y\n")
        assert process.wait() == 0
    assert guest.state["status"] == "done", guest.state["detail"]


# Asks the terminal for its cursor position; xterm answers as if the user had typed it.
ASKS_ITS_TERMINAL = f"""
stty -icanon -echo
printf 'in a window\\033[6n'
answer=
until case $answer in *R) true;; *) false;; esac; do
    answer=$answer$(dd bs=1 count=1 2>/dev/null)
done
echo "$answer" >answer
xdg-open '{PAGE}'
exec sleep 1000
"""


def test_tool_runs_in_a_terminal_window_that_can_be_closed(guest: Guest, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with x_screens(tmp_path) as screen:
            with guest.login(display=screen.display) as process:
                guest.wait(lambda state: state["status"] == "waiting")
                answer = (guest.folder / "home/answer").read_text()
                assert answer.endswith("[1;12R\n"), answer  # below nothing, after the 11 letters
                os.kill(child_named("xterm", process.pid), signal.SIGTERM)
                assert await asyncio.to_thread(process.wait) == 0

    guest.has_tool(ASKS_ITS_TERMINAL)
    asyncio.run(scenario())
    assert guest.state["status"] == "failed"
    assert guest.state["detail"] == "the login's terminal was closed"


def child_named(name: str, parent: int) -> int:
    """Return the child process with this name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            pid, command, _, of, *_ = stat.read_text().split()
            if (command, of) == (f"({name})", str(parent)):
                return int(pid)
    raise AssertionError(f"{parent} has no child {name}")


def test_injected_credentials_are_checked_by_status_command(guest: Guest) -> None:
    guest.file.parent.mkdir()
    guest.file.write_text(json.dumps(CREDENTIALS))
    for status, expected in (("[ -s .tool/credentials.json ]; exit", "done"), ("exit 1", "failed")):
        guest.has_tool("exit 1", f'cd "$HOME"; {status}')
        with guest.login(program=STATUS) as process:
            assert process.wait() == 0
        assert guest.state["status"] == expected, guest.state["detail"]


def test_hung_tool_is_ended_and_quoted(guest: Guest) -> None:
    begun = guest.folder / "home/begun"
    guest.has_tool("echo $$ >pid; echo 'waiting for something'; touch begun; exec sleep 1000")
    for seconds in (1, 5, 25, 125):  # on a busy machine a program takes a while to begin
        with guest.login(f"--login-page-seconds={seconds}") as process:
            assert process.wait() == 0
        if begun.exists():
            break
    assert guest.state["status"] == "failed"
    assert guest.state["detail"].endswith(f"within {seconds} s: waiting for something")
    assert not Path("/proc", (guest.folder / "home/pid").read_text().strip()).exists()


def test_missing_tool_is_named(guest: Guest) -> None:
    with guest.login() as process:
        assert process.wait() == 0
    assert guest.state["status"] == "failed"
    assert "claude could not be started" in guest.state["detail"]


def test_login_process_wait_blocks_until_timeout_or_exit(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    process = LoginProcess(provider(command=["sleep", "1000"]), environment)
    began = time.monotonic()
    assert process.wait((), 0.2) == set()
    assert time.monotonic() - began >= 0.2
    process.end()
    assert process.ended in process.wait((), None)
