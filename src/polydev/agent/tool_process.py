"""The process of a tool that logs in, in its own terminal."""

from __future__ import annotations

import os
from fcntl import ioctl
from select import POLLIN, poll
from struct import pack
from termios import TIOCSWINSZ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.providers import GuestProvider

ROWS, COLUMNS = 50, 4096  # wide, since a terminal wraps longer lines
CHUNK_BYTES = 65536
CODE_FIFO = "code"  # in the folder of a login: codes for the tool's terminal
LAST_WORDS_SECONDS = 10.0
SIGKILL, SIGTERM = 9, 15
CANNOT_EXECUTE = 127


class LoginProcess:
    """A running tool: its terminal, and its standard input if that is a pipe."""

    def __init__(self, provider: GuestProvider, environment: Mapping[str, str]) -> None:
        self._pid, self.terminal, self._input = _started(provider, environment)
        self.ended = os.pidfd_open(self._pid)  # readable once the tool has ended
        self._is_hung_up = False
        os.set_blocking(self.terminal, False)

    def wait(self, others: tuple[int, ...], timeout_seconds: float | None) -> set[int]:
        """Return the own and other descriptors that are readable; none if none is in time."""
        poller = poll()
        own = (self.ended,) if self._is_hung_up else (self.ended, self.terminal)
        for descriptor in (*own, *others):
            poller.register(descriptor, POLLIN)
        events = poller.poll(None if timeout_seconds is None else timeout_seconds * 1000)
        return {descriptor for descriptor, _ in events}

    def read(self) -> bytes:
        """Return the new output of the tool; empty if there is none."""
        try:
            data = os.read(self.terminal, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: no process has the terminal open any more
            data = b""
        self._is_hung_up = not data
        return data

    def type(self, data: bytes) -> None:
        """Type into the terminal; input that it has no room for is dropped."""
        try:
            os.write(self.terminal, data)
        except OSError:
            pass

    def end(self) -> int:
        """End the tool, kill it if that takes too long, and return its exit code."""
        if self._input is not None:
            os.close(self._input)
        else:
            os.kill(self._pid, SIGTERM)  # has no effect if the tool has ended
        poller = poll()
        poller.register(self.ended, POLLIN)
        if not poller.poll(LAST_WORDS_SECONDS * 1000):
            os.kill(self._pid, SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _started(
    provider: GuestProvider, environment: Mapping[str, str]
) -> tuple[int, int, int | None]:
    """Start the tool; return its PID, its terminal, and the pipe for its requests, if any."""
    reads, writes = os.pipe() if provider.requests else (None, None)
    pid, terminal = os.forkpty()
    if pid == 0:
        _become(provider, environment, reads)
    ioctl(terminal, TIOCSWINSZ, pack("HHHH", ROWS, COLUMNS, 0, 0))
    if reads is not None and writes is not None:
        os.close(reads)
        os.write(writes, provider.input())
    return pid, terminal, writes


def _become(provider: GuestProvider, environment: Mapping[str, str], reads: int | None) -> None:
    """In the child process: become the tool. Never returns."""
    name = provider.command[0]
    try:
        if reads is not None:
            os.dup2(reads, 0)
        os.chdir(environment["HOME"])
        os.execvpe(name, provider.command, environment)  # noqa: S606 - that is its point
    except OSError as error:
        os.write(2, f"{name} could not be started: {error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_EXECUTE)
