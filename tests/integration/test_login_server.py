"""The program that runs logins, as a process, with small scripts as tools."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from polydev.agent.errors import CheckFailed
from polydev.agent.login_control import ask_login_server, start_login
from polydev.agent.login_state import keep_state, kept_state
from polydev.agent.settings import AgentSettings
from tests.guest_services import LoginService
from tests.guest_tools import provider_data, write_provider
from tests.sessions import wait_for

HANGS_AFTER_SECONDS = 60
PAGE = "https://login.example/oauth?client_id=1"
WAITS = f"echo $$ >pid; printf '%s\\n' '{PAGE}' >\"$POLYDEV_LOGIN_FIFO\"; exec sleep 1000"


class Guest:
    """A folder as a guest, with the tools `claude` and `codex`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("home", "bin", "groups"):
            (folder / part).mkdir()
        for name in ("claude", "codex"):
            write_provider(folder / "providers", provider_data(name))
            self.has_tool(name, WAITS)
        self.service = LoginService(folder)
        self.settings = AgentSettings(
            logins=f"{folder}/logins",
            logins_socket=str(self.service.path),
            providers=f"{folder}/providers",
            login_start_timeout_seconds=HANGS_AFTER_SECONDS,
            login_url_wait_seconds=0,
        )

    def has_tool(self, name: str, script: str) -> None:
        tool = self.folder / "bin" / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    def ask(self, verb: str, name: str = "claude") -> None:
        ask_login_server(verb, name, self.settings)

    def reaches(self, status: str, name: str = "claude") -> str:
        """Wait for the status of a login and return its detail."""
        folder = f"{self.folder}/logins/{name}"
        wait_for(f"a login that is {status}", lambda: kept_state(folder)["status"] == status)
        return kept_state(folder)["detail"]

    def tool(self) -> Path:
        """The process of the tool that waits; gone once it has ended."""
        return Path("/proc", (self.folder / "home/pid").read_text().strip())


@pytest.fixture
def guest() -> Iterator[Guest]:
    # The path of a socket is short, and that of pytest's folder is not.
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        guest = Guest(Path(name))
        yield guest
        for login in guest.service.logins():
            with suppress(ProcessLookupError):
                os.kill(login, signal.SIGKILL)
        guest.service.close()


def test_two_starts_are_one_login(guest: Guest) -> None:
    assert start_login("claude", guest.settings)["status"] == "starting"
    guest.ask("start")
    guest.reaches("waiting")
    guest.ask("start")
    assert start_login("claude", guest.settings)["url"] == PAGE
    assert guest.service.starts == ["claude"]


def test_start_waits_for_the_url_or_the_end(guest: Guest) -> None:
    guest.settings.login_url_wait_seconds = HANGS_AFTER_SECONDS
    assert start_login("claude", guest.settings)["url"] == PAGE
    guest.has_tool("codex", "echo 'no network'; exit 1")
    ended = start_login("codex", guest.settings)
    assert (ended["status"], ended["detail"]) == (
        "failed",
        "codex exited with status 1: no network",
    )


def test_logins_of_two_providers_run_at_the_same_time(guest: Guest) -> None:
    for name in ("claude", "codex"):
        guest.ask("start", name)
    for name in ("claude", "codex"):
        guest.reaches("waiting", name)
    guest.ask("stop", "codex")
    assert guest.reaches("failed", "codex") == "the login was stopped: got signal 9"
    guest.reaches("waiting", "claude")


def test_stopped_login_has_failed_and_can_start_again(guest: Guest) -> None:
    guest.ask("start")
    guest.reaches("waiting")
    tool = guest.tool()
    guest.ask("stop")
    guest.reaches("failed")
    wait_for("the end of the tool", lambda: not tool.exists())
    guest.ask("stop")  # there is none
    assert start_login("claude", guest.settings)["status"] == "starting"
    guest.reaches("waiting")
    assert guest.service.starts == ["claude"] * 2


def test_login_starts_again_while_the_failed_one_ends(guest: Guest) -> None:
    """Its last state is written a moment before its process ends."""
    guest.ask("start")
    guest.reaches("waiting")
    tool, folder = guest.tool(), f"{guest.folder}/logins/claude"
    keep_state(folder, "failed", PAGE, "access_denied")
    assert start_login("claude", guest.settings)["status"] == "starting"
    guest.reaches("waiting")
    wait_for("the end of the first tool", lambda: not tool.exists())


def test_killed_login_has_failed(guest: Guest) -> None:
    guest.ask("start")
    guest.reaches("waiting")
    (login,) = guest.service.logins()
    os.kill(login, signal.SIGKILL)
    assert guest.reaches("failed") == "the login was stopped: got signal 9"


def test_login_has_a_control_group_that_is_killed_at_its_end(guest: Guest) -> None:
    group = guest.folder / "groups/claude"  # a mere folder here, which no kernel looks at
    guest.has_tool("claude", "exit 3")
    guest.ask("start")
    assert guest.reaches("failed").startswith("claude exited with status 3")
    wait_for("the group's kill", (group / "cgroup.kill").exists)
    assert (group / "cgroup.procs").read_text() == "0"
    assert (group / "cgroup.kill").read_text() == "1"


def test_restarted_server_marks_lost_logins_as_failed(guest: Guest) -> None:
    for name in ("claude", "codex"):
        (guest.folder / "logins" / name).mkdir(parents=True)
    keep_state(f"{guest.folder}/logins/codex", "done", PAGE, "")
    guest.ask("start")
    guest.reaches("waiting")
    (login,) = guest.service.logins()
    guest.service.process.kill()
    guest.service.process.wait()
    os.kill(login, signal.SIGKILL)  # systemd ends all of the unit's processes
    guest.service.start()
    assert guest.reaches("failed") == "the login was stopped: its program has ended"
    guest.reaches("done", "codex")


@pytest.mark.parametrize(
    ("verb", "name", "problem"),
    [
        ("start", "bash", "there is no login of bash; there are claude, codex"),
        ("start", "../claude", "there is no login of ../claude; there are claude, codex"),
        ("end", "claude", "there is no end; there are start, stop"),
    ],
)
def test_unknown_requests_are_refused(guest: Guest, verb: str, name: str, problem: str) -> None:
    with pytest.raises(CheckFailed, match=problem):
        guest.ask(verb, name)


def test_login_that_cannot_be_started_is_refused(guest: Guest) -> None:
    (guest.folder / "logins").mkdir()
    (guest.folder / "logins/claude").touch()
    with pytest.raises(CheckFailed, match=r"cannot start the login of claude.*File exists"):
        guest.ask("start")
    (guest.folder / "providers/claude.json").write_text(json.dumps({"name": "claude"}))
    with pytest.raises(CheckFailed, match="cannot start the login of claude: 'login'"):
        guest.ask("start")


def test_connection_without_a_request_starts_nothing(guest: Guest) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(guest.service.path))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    guest.ask("stop")
    assert guest.service.starts == []
