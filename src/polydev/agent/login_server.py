"""The program of polydev-login.service: waits in memory, and runs each login as a child process.

    a line of the agent, "start PROVIDER" or "stop PROVIDER" -> a line: empty, or the problem

A login that was started keeps the agent's connection open until it has a URL or has ended.

The agent has it start once the VM is ready, so each clone has it in memory, with everything that a
login imports. Starting systemctl, a unit and Python for each login would take an emulated CPU
longer than the tool itself. Until a login is asked for, it uses no CPU and knows nothing of a user.

Each login has a control group, so that no process of it is left after its end.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from select import POLLIN, poll
from socket import socket

from polydev.agent.login_program import run_login
from polydev.agent.login_state import keep_state, kept_state
from polydev.agent.providers import known_providers, provider_of
from polydev.agent.settings import settings_from_arguments
from polydev.agent.systemd import inherited_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from polydev.agent.settings import AgentSettings

SIGKILL = 9
MAX_LINE_BYTES = 256
# For the agent to send its line.
REQUEST_SECONDS = 5.0
UNFINISHED = ("starting", "waiting")


class RunningLogin:
    """A login's process; `ended` is a descriptor that is readable once it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = os.pidfd_open(pid)


class LoginServer:
    """Starts, stops and reaps logins, at most one of each provider."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._running: dict[str, RunningLogin] = {}
        self._verbs = {"start": self._start, "stop": self._stop}

    def note_lost_logins(self) -> None:
        """Mark logins as failed that an earlier process of this program left unfinished."""
        with suppress(OSError):
            for name in os.listdir(self._settings.logins):
                _note_end(self._folder(name), "its program has ended")

    def serve(self, listener: socket) -> None:
        """Serve until the process is stopped."""
        while True:
            poller = poll()
            poller.register(listener.fileno(), POLLIN)
            for login in self._running.values():
                poller.register(login.ended, POLLIN)
            ready = {descriptor for descriptor, _ in poller.poll()}
            for name, login in list(self._running.items()):
                if login.ended in ready:
                    self._end(name, login)
            if listener.fileno() in ready:
                self._serve_one(listener)

    def answer(self, line: str, client: socket) -> str:
        """Carry out a line of the agent and return the problem, empty if there is none."""
        verb, _, name = line.partition(" ")
        if verb not in self._verbs:
            return f"there is no {verb}; there are {', '.join(self._verbs)}"
        if name not in (known := known_providers(self._settings.providers)):
            return f"there is no login of {name}; there are {', '.join(known)}"
        try:
            self._verbs[verb](name, client)
        except (OSError, ValueError, KeyError) as error:
            return f"cannot {verb} the login of {name}: {error}"
        return ""

    def _serve_one(self, listener: socket) -> None:
        client, _ = listener.accept()
        with client, suppress(OSError):  # the agent has left
            client.settimeout(REQUEST_SECONDS)
            with client.makefile("rb") as file:
                line = file.readline(MAX_LINE_BYTES).decode("utf-8", "replace").strip()
            if line:  # the agent only connects in order to have this program started
                client.sendall(self.answer(line, client).replace("\n", " ").encode() + b"\n")

    def _start(self, name: str, client: socket) -> None:
        """Start a login unless it runs. One that is over, but has not exited yet, is ended."""
        folder = self._folder(name)
        if (login := self._running.get(name)) is not None:
            if kept_state(folder)["status"] in UNFINISHED:
                return
            self._end(name, login)
        provider = provider_of(self._settings.providers, name)
        os.makedirs(folder, exist_ok=True)
        keep_state(folder, "starting", None, "")
        os.write(2, f"starts the login of {name}\n".encode())
        pid = os.fork()
        if pid == 0:
            run = partial(run_login, provider, folder, self._settings, client.close)
            _become(run, self._group(name))
        self._running[name] = RunningLogin(pid)

    def _stop(self, name: str, _client: socket) -> None:
        if (login := self._running.get(name)) is not None:
            self._end(name, login)

    def _end(self, name: str, login: RunningLogin) -> None:
        """End all processes of a login. If it was not over, it has failed."""
        group = self._group(name)
        with suppress(OSError):
            _write(f"{group}/cgroup.kill", "1")
        os.kill(login.pid, SIGKILL)
        _, status = os.waitpid(login.pid, 0)
        os.close(login.ended)
        del self._running[name]
        with suppress(OSError):  # a killed process takes a moment to leave it
            os.rmdir(group)
        code = os.waitstatus_to_exitcode(status)
        how = f"exited with status {code}" if code >= 0 else f"got signal {-code}"
        _note_end(self._folder(name), how)

    def _folder(self, name: str) -> str:
        return f"{self._settings.logins}/{name}"

    def _group(self, name: str) -> str:
        return f"{self._settings.login_groups}/{name}"


def main(arguments: list[str]) -> None:
    """Serve at the socket that systemd passes."""
    inherited = inherited_socket(os.environ, os.getpid())
    if inherited is None:
        raise SystemExit("polydev-login.socket starts this program")
    server = LoginServer(settings_from_arguments(arguments))
    server.note_lost_logins()
    server.serve(socket(fileno=inherited))


def _become(run: Callable[[], None], group: str) -> NoReturn:
    """In the child process: be a login in a control group of its own, then exit."""
    status = 1
    try:
        os.setsid()
        with suppress(OSError):  # without a group, too, the login works
            with suppress(FileExistsError):
                os.mkdir(group)
            _write(f"{group}/cgroup.procs", "0")
        run()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _note_end(folder: str, how: str) -> None:
    """Mark a login as failed if it was still running."""
    reply = kept_state(folder)
    if reply["status"] in UNFINISHED:
        with suppress(OSError):
            keep_state(folder, "failed", reply["url"], f"the login was stopped: {how}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
