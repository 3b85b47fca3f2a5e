"""A login's runner as a real process, with tools that are scripts and a browser that is a socket.

What it does is awaited on what it itself does: its READY=1, the pages that the browser gets, its
end. The times that appear only end a test that hangs.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.agent.login_state import reply_of_state
from polydev.agent.messages import LoginReply

ROOT = Path(__file__).parents[2]
IN_GUEST = ROOT / "golden/agent/files"
UNIT_FILE = IN_GUEST / "etc/systemd/system/polydev-login@.service"
PROGRAMS = IN_GUEST / "usr/lib/polydev-agent/bin"
HANGS_AFTER_SECONDS = 60
PAGE = "https://login.example/authorize?client_id=1&state=" + "abcdefghij" * 30
OTHER_PAGE = "https://login.example/code?client_id=1&state=2"
NEVER_ENDS = "exec sleep 1000000"


class Guest:
    """The guest around a runner: a home, tools, systemd's socket, and perhaps a browser."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.tools = folder / "tools"
        self.state = folder / "login"
        self.notify = folder / "notify"
        singleton = self.home / ".config/chromium/SingletonSocket"
        for made in (singleton.parent, self.tools, self.state):
            made.mkdir(parents=True)
        self.singleton = singleton
        self.processes: list[subprocess.Popen[bytes]] = []
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.notify))
        self.notified.settimeout(HANGS_AFTER_SECONDS)
        self.browser: socket.socket | None = None

    def open_browser(self) -> None:
        self.browser = socket.socket(socket.AF_UNIX)
        self.browser.bind(str(self.singleton))
        self.browser.listen()
        self.browser.settimeout(HANGS_AFTER_SECONDS)

    def tool(self, name: str, script: str) -> None:
        program = self.tools / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "DISPLAY": ":1",
            "RUNTIME_DIRECTORY": str(self.state),
            "NOTIFY_SOCKET": str(self.notify),
        }

    def start(self, provider: str, *settings: str) -> subprocess.Popen[bytes]:
        """A runner whose state is written."""
        process = subprocess.Popen(
            [
                *unit_command("ExecStart"),
                *(provider, f"--login-programs={PROGRAMS}", *settings),
            ],
            env=self.environment(),
            start_new_session=True,
        )
        self.processes.append(process)
        assert self.notified.recv(100) == b"READY=1"
        return process

    def shown_page(self, answer: bytes = b"ACK") -> str:
        """The next page that the browser is to show."""
        assert self.browser is not None
        client, _ = self.browser.accept()
        with client:
            message = b"".join(iter(lambda: client.recv(4096), b""))
            client.sendall(answer)
        start, _, program, page = message.split(b"\0")
        assert (start, program) == (b"START", b"chromium")
        return page.decode()

    def reply(self) -> LoginReply:
        return reply_of_state("claude", (self.state / "state").read_bytes())

    def ended(self, process: subprocess.Popen[bytes]) -> LoginReply:
        """The state that a runner leaves behind; no runner fails, however its tool ended."""
        assert process.wait(HANGS_AFTER_SECONDS) == 0
        return self.reply()

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(HANGS_AFTER_SECONDS)
        self.notified.close()
        if self.browser is not None:
            self.browser.close()


def unit_command(key: str) -> list[str]:
    """The argv of the unit's own command, with the checkout's agent instead of the guest's."""
    lines = UNIT_FILE.read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{key}="))
    words = shlex.split(line.partition("=")[2])
    assert words.pop(0) == "/usr/bin/python3"
    source = str(ROOT / "src")
    command = [word.replace("/usr/lib/polydev-agent", source) for word in words if word != "%i"]
    return [sys.executable, *command]


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    guest = Guest(tmp_path)
    yield guest
    guest.close()


@pytest.fixture
def held(tmp_path: Path) -> Path:
    """A FIFO that a tool may wait at with `read`; the test lets it go by writing."""
    path = tmp_path / "held"
    os.mkfifo(path)
    return path


def test_the_page_that_a_tool_wants_opened_is_shown_and_told(guest: Guest, held: Path) -> None:
    guest.open_browser()
    opening = f'"$BROWSER" {shlex.quote(PAGE)}'
    printing = f"printf 'visit %s\\n' {shlex.quote(OTHER_PAGE)}"
    guest.tool("claude", f"{printing}; {opening}; read word <{held}; exit 0")
    process = guest.start("claude")
    assert guest.shown_page() == PAGE
    assert (guest.reply()["status"], guest.reply()["url"]) == ("waiting", PAGE)
    held.write_text("go on\n")
    assert guest.ended(process) == {
        "provider": "claude",
        "status": "done",
        "url": PAGE,
        "detail": "",
    }


def test_xdg_open_is_taken_too(guest: Guest) -> None:
    guest.open_browser()
    guest.tool("codex", f"xdg-open {shlex.quote(PAGE)}; {NEVER_ENDS}")
    guest.start("codex")
    assert guest.shown_page() == PAGE


def test_what_a_tool_prints_is_shown_if_it_opens_nothing(guest: Guest) -> None:
    guest.open_browser()
    written = f"\\033[94m{PAGE.replace('%', '%%')}\\033[0m\\n"
    guest.tool("codex", f"printf {shlex.quote(written)}; {NEVER_ENDS}")
    guest.start("codex", "--login-quiet-seconds=0.01")
    assert guest.shown_page() == PAGE


def test_a_tool_gets_a_wide_terminal(guest: Guest) -> None:
    guest.tool("claude", "test -t 0 && stty size; exit 3")
    reply = guest.ended(guest.start("claude"))
    assert reply["detail"] == "claude exited with status 3: 50 4096"


def test_a_tool_that_fails_is_quoted_without_escapes(guest: Guest) -> None:
    guest.tool("codex", "printf '\\033[31mcannot reach\\033[0m\\r\\n\\r\\nthe server\\n'; exit 7")
    reply = guest.ended(guest.start("codex"))
    assert (reply["status"], reply["url"]) == ("failed", None)
    assert reply["detail"] == "codex exited with status 7: cannot reach\nthe server"


def test_a_tool_that_is_missing(guest: Guest) -> None:
    reply = guest.ended(guest.start("claude", "--login-programs=/nowhere"))
    if not any((Path(folder) / "claude").exists() for folder in os.environ["PATH"].split(":")):
        assert "claude could not be started: No such file" in reply["detail"]
    assert reply["status"] == "failed"


def test_output_without_end_is_bounded(guest: Guest) -> None:
    guest.tool("claude", "head -c 3000000 /dev/zero | tr '\\0' x; exit 1")
    reply = guest.ended(guest.start("claude"))
    assert reply["status"] == "failed"
    assert len(reply["detail"]) == 1024


def test_a_tool_that_left_its_terminal_is_waited_for(guest: Guest, held: Path) -> None:
    guest.tool("claude", f"exec </dev/null >/dev/null 2>&1; read word <{held}; exit 0")
    process = guest.start("claude")
    held.write_text("go on\n")
    assert guest.ended(process)["status"] == "done"


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        ('{"jsonrpc":"2.0","id":1,"result":{}}', "done", ""),
        ('{"id":1,"error":{"message":"denied"}}', "failed", "gemini could not log in: denied"),
    ],
)
def test_a_tool_that_is_asked_is_ended_by_the_end_of_its_input(
    guest: Guest, answer: str, status: str, detail: str
) -> None:
    guest.open_browser()
    guest.tool(
        "gemini",
        f'read first; read second; case $second in *oauth-personal*) "$BROWSER" {PAGE!r};; esac\n'
        f"echo '{answer}'; cat >/dev/null; exit 5",
    )
    process = guest.start("gemini")
    assert guest.shown_page() == PAGE
    reply = guest.ended(process)
    assert (reply["status"], reply["detail"]) == (status, detail)


def test_a_browser_that_is_not_there_yet_is_tried_again(guest: Guest) -> None:
    guest.tool("claude", f"xdg-open {shlex.quote(PAGE)}; {NEVER_ENDS}")
    guest.start("claude")
    guest.open_browser()
    assert guest.shown_page(b"NO") == PAGE
    assert guest.shown_page() == PAGE


def test_an_older_login_is_forgotten_before_a_new_one_counts_as_started(guest: Guest) -> None:
    (guest.state / "state").write_text("failed\n\nlong ago")
    guest.tool("claude", NEVER_ENDS)
    guest.start("claude")
    assert (guest.reply()["status"], guest.reply()["detail"]) == ("starting", "")


@pytest.mark.parametrize(
    ("before", "status", "detail"),
    [
        (None, "failed", "the login was cut off: signal killed KILL"),
        (f"waiting\n{PAGE}\n", "failed", "the login was cut off: signal killed KILL"),
        (f"done\n{PAGE}\n", "done", ""),
        ("failed\n\nwhy", "failed", "why"),
    ],
)
def test_the_units_end_is_noted_if_nothing_else_was(
    guest: Guest, before: str | None, status: str, detail: str
) -> None:
    if before is not None:
        (guest.state / "state").write_text(before)
    told = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}
    environment = guest.environment() | told
    subprocess.run(unit_command("ExecStopPost"), env=environment, check=True)
    assert (guest.reply()["status"], guest.reply()["detail"]) == (status, detail)


def test_the_state_may_be_read_by_all(guest: Guest) -> None:
    guest.tool("claude", NEVER_ENDS)
    old = os.umask(0o077)
    try:
        guest.start("claude")
    finally:
        os.umask(old)
    assert (guest.state / "state").stat().st_mode & 0o777 == 0o644


def test_a_tool_that_waits_costs_nothing(guest: Guest) -> None:
    guest.open_browser()
    guest.tool("claude", f"exec <&- >&- 2>&-; xdg-open {shlex.quote(PAGE)}; {NEVER_ENDS}")
    process = guest.start("claude")
    assert guest.shown_page() == PAGE
    poller = select.poll()
    descriptor = os.pidfd_open(process.pid)
    poller.register(descriptor)
    before = cpu_ticks(process.pid)
    poller.poll(500)  # it does not end; a runner that spins would use most of this
    os.close(descriptor)
    assert cpu_ticks(process.pid) - before < 20


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
