"""The process of a tool that logs in, in a terminal of its own."""

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

ROWS, COLUMNS = 50, 4096  # wide, for a terminal wraps what is longer
CHUNK_BYTES = 65536
LAST_WORDS_SECONDS = 10.0
SIGKILL, SIGTERM = 9, 15
CANNOT_EXECUTE = 127


class LoginProcess:
    """A tool that runs: its terminal, and its standard input where that is a pipe."""

    def __init__(self, provider: GuestProvider, environment: Mapping[str, str]) -> None:
        self._pid, self.terminal, self._input = _started(provider, environment)
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
        """Return the new output of the tool; empty if there is none."""
        try:
            data = os.read(self.terminal, CHUNK_BYTES)
        except BlockingIOError:
            return b""
        except OSError:  # EIO: nobody has the terminal open any more
            data = b""
        self._is_hung_up = not data
        return data

    def type(self, data: bytes) -> None:
        """Type into its terminal; what a tool that reads nothing has no room for is lost."""
        try:
            os.write(self.terminal, data)
        except OSError:
            pass

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


def _started(
    provider: GuestProvider, environment: Mapping[str, str]
) -> tuple[int, int, int | None]:
    """The tool's process, its terminal, and the pipe that it is told its requests by, if any."""
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
    """In the child: be the tool. Never returns."""
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
