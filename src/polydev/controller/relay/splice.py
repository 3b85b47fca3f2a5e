"""PipePool through which the kernel moves bytes from socket to socket without a copy."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# As much as an unprivileged process may have; a slot of a pipe holds no more than a page.
PIPE_BYTES = 1 << 20
MOST_SPARE = 8
WITHOUT_WAITING = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SplicePipe:
    """`held` is how many bytes are in it."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        with suppress(OSError):  # the user has many already: a smaller one does
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def fill(self, source: int) -> int:
        """Take what the socket has; 0 at its end. Raises BlockingIOError if it has nothing."""
        count = os.splice(source, self._in, PIPE_BYTES, flags=WITHOUT_WAITING)
        self.held += count
        return count

    def drain(self, target: int) -> None:
        """Give the socket what it takes. Raises BlockingIOError before all is given."""
        while self.held:
            self.held -= os.splice(self._out, target, self.held, flags=WITHOUT_WAITING)

    def close(self) -> None:
        os.close(self._in)
        os.close(self._out)


class PipePool:
    """Lends pipes: few viewers need one at the same time. Without viewers there are none."""

    def __init__(self) -> None:
        self._spare: list[SplicePipe] = []
        self._users = 0

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whoever may take pipes does so within this."""
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
