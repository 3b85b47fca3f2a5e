"""Pipes for splice(2): the kernel moves bytes from socket to socket without a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# The most that an unprivileged process may have; each slot of a pipe holds one page at most.
PIPE_BYTES = 1 << 20
MOST_SPARE = 8
WITHOUT_WAITING = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SplicePipe:
    """A pipe; `held` is the number of bytes in it."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with suppress(OSError):  # over the user's limit for pipes: the default size does
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self, source: int) -> int:
        """Move in what the socket has; return 0 at its end. Raises BlockingIOError: nothing yet."""
        count = os.splice(source, self._in, PIPE_BYTES, flags=WITHOUT_WAITING)
        self.held += count
        return count

    def drain(self, target: int) -> None:
        """Move all bytes to the socket. Raises BlockingIOError when it takes no more for now."""
        while self.held:
            self.held -= os.splice(self._out, target, self.held, flags=WITHOUT_WAITING)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class PipePool:
    """Lends pipes: few viewers need one at the same time. They are closed with the last viewer."""

    def __init__(self) -> None:
        self._spare: list[SplicePipe] = []
        self._users = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep spare pipes until the end of the block; take pipes only within one."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            while self._spare and not self._users:
                self._spare.pop().close()

    def take(self) -> SplicePipe:
        return self._spare.pop() if self._spare else SplicePipe()

    def give_back(self, pipe: SplicePipe) -> None:
        if pipe.held or len(self._spare) >= MOST_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)
