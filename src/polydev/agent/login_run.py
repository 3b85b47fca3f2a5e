"""The program of polydev-login@PROVIDER.service: runs one tool's login, as the desktop's user.

    tool's terminal, tool's wish for a browser -> Login -> state file, a tab in Chromium

It knows the tool's wishes because it gives it a browser of its own, a script of the image that
only writes the page's address into a FIFO.
"""

from __future__ import annotations

import os
from fcntl import ioctl
from select import POLLIN, poll
from struct import pack
from termios import TIOCSWINSZ

from polydev.agent.browser import show
from polydev.agent.login_course import Login
from polydev.agent.login_state import STATE_FILE, reply_of_state, state_text
from polydev.agent.login_tools import TOOLS, Tool
from polydev.agent.settings import Settings, settings_from_arguments
from polydev.agent.systemd import notify

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.messages import LoginStatus

FIFO = "browser"
ROWS, COLUMNS = 50, 4096  # wide, for a terminal wraps what is longer
CHUNK_BYTES = 65536
SHOW_TIMEOUT_SECONDS = 5.0
LAST_WORDS_SECONDS = 10.0
SIGKILL, SIGTERM = 9, 15
CANNOT_EXECUTE = 127


class Process:
    """A tool that runs: its terminal, and its standard input where that is a pipe."""

    def __init__(self, tool: Tool, environment: Mapping[str, str]) -> None:
        self._pid, self.terminal, self._input = _started(tool, environment)
        self.ended = os.pidfd_open(self._pid)  # to be read once it has ended
        self._is_hung_up = False
        os.set_blocking(self.terminal, False)

    def wait(self, others: tuple[int, ...], timeout_seconds: float | None) -> set[int]:
        """Which of its own descriptors, and of others, can be read; none if none in time."""
        poller = poll()
        own = (self.ended,) if self._is_hung_up else (self.ended, self.terminal)
        for descriptor in (*own, *others):
            poller.register(descriptor, POLLIN)
        events = poller.poll(None if timeout_seconds is None else timeout_seconds * 1000)
        return {descriptor for descriptor, _ in events}

    def read(self) -> bytes:
        """What it wrote since; empty if nothing."""
        try:
            data = os.read(self.terminal, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        self._is_hung_up = not data
        return data

    def end(self) -> int:
        """Have it end, if it has not; wait for that, and bring it about if that takes long."""
        if self._input is not None:
            os.close(self._input)
        else:
            os.kill(self._pid, SIGTERM)  # lost on what has ended: its status is kept
        poller = poll()
        poller.register(self.ended, POLLIN)
        if not poller.poll(LAST_WORDS_SECONDS * 1000):
            os.kill(self._pid, SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def main(arguments: list[str]) -> None:
    """Run the login of the provider that is named first; settings may follow."""
    tool, settings = TOOLS[arguments[0]], settings_from_arguments(arguments[1:])
    folder, home = os.environ["RUNTIME_DIRECTORY"], os.environ["HOME"]
    login = Login(
        tool,
        keep=lambda status, url, detail: keep_state(folder, status, url, detail),
        show=lambda page: show(page, home, SHOW_TIMEOUT_SECONDS),
        page_seconds=settings.login_page_seconds,
        quiet_seconds=settings.login_quiet_seconds,
    )
    login.begin()
    notify(os.environ, "READY=1")
    _follow(tool, login, f"{folder}/{FIFO}", settings)


def note_end(environ: Mapping[str, str]) -> None:
    """After the unit's end: a login that was still under way was cut off (ExecStopPost=)."""
    folder = environ["RUNTIME_DIRECTORY"]
    try:
        with open(f"{folder}/{STATE_FILE}", "rb") as file:
            reply = reply_of_state("", file.read())
    except FileNotFoundError:
        reply = reply_of_state("", None)
    if reply["status"] in ("none", "starting", "waiting"):
        words = [environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS")]
        keep_state(folder, "failed", reply["url"], f"the login was cut off: {' '.join(words)}")


def keep_state(folder: str, status: LoginStatus, url: str | None, detail: str) -> None:
    """Write the state; whoever reads sees the whole of it, or of the one before."""
    new = f"{folder}/{STATE_FILE}.new"
    with open(new, "wb") as file:
        file.write(state_text(status, url, detail).encode())
    os.chmod(new, 0o644)
    os.rename(new, f"{folder}/{STATE_FILE}")


def _follow(tool: Tool, login: Login, fifo_path: str, settings: Settings) -> None:
    """Run the tool to its end, to its answer, or until its page is too late."""
    fifo = _opened_fifo(fifo_path)
    process = Process(tool, _environment(tool, fifo_path, settings))
    has_ended = False
    while not (has_ended or login.is_over()):
        readable = process.wait((fifo,), login.pause_seconds())
        if process.terminal in readable:
            login.take_output(process.read())
        if fifo in readable:
            login.take_wishes(os.read(fifo, CHUNK_BYTES))
        login.look_again()
        has_ended = process.ended in readable
    exit_code = process.end()
    while data := process.read():
        login.take_output(data)
    login.end(exit_code)


def _opened_fifo(path: str) -> int:
    """A FIFO that stays open while its writers come and go."""
    if os.path.lexists(path):
        os.unlink(path)
    os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR)


def _environment(tool: Tool, fifo_path: str, settings: Settings) -> dict[str, str]:
    programs = settings.login_programs
    kept = {name: os.environ[name] for name in ("HOME", "DISPLAY", "USER") if name in os.environ}
    return {
        **kept,
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "BROWSER": f"{programs}/xdg-open",
        "POLYDEV_LOGIN_FIFO": fifo_path,
        **tool.environment,
    }


def _started(tool: Tool, environment: Mapping[str, str]) -> tuple[int, int, int | None]:
    """The tool's process, its terminal, and the pipe that it is told its requests by, if any."""
    reads, writes = os.pipe() if tool.requests else (None, None)
    pid, terminal = os.forkpty()
    if pid == 0:
        _become(tool, environment, reads)
    ioctl(terminal, TIOCSWINSZ, pack("HHHH", ROWS, COLUMNS, 0, 0))
    if reads is not None and writes is not None:
        os.close(reads)
        os.write(writes, tool.input())
    return pid, terminal, writes


def _become(tool: Tool, environment: Mapping[str, str], reads: int | None) -> None:
    """In the child: be the tool. Never returns."""
    try:
        if reads is not None:
            os.dup2(reads, 0)
        os.chdir(environment["HOME"])
        os.execvpe(tool.argv[0], tool.argv, environment)  # noqa: S606 - that is its point
    except OSError as error:
        os.write(2, f"{tool.argv[0]} could not be started: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_EXECUTE)
