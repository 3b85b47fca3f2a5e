"""Reads what VMs write into their logs. The files lie where a VM's own process may write."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from itertools import islice
from pathlib import Path

CHUNK_BYTES = 256 * 1024
# Nobody reads on through more: a guest may write as fast as it likes.
MAX_BACKLOG_BYTES = 1024 * 1024
LAST_BYTES = 64 * 1024


class LogReader:
    """Gives what was added to a file since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """At most a chunk of what is new; of a long backlog, its end. Empty without a file."""
        descriptor = _open(self._path)
        if descriptor is None:
            return b""
        try:
            size = os.fstat(descriptor).st_size
            if size < self._offset:
                self._offset = 0
            # The beginning holds the boot, so that is always read.
            if self._offset and size - self._offset > MAX_BACKLOG_BYTES:
                self._offset = size - LAST_BYTES
            data = os.pread(descriptor, CHUNK_BYTES, self._offset)
            self._offset += len(data)
            return data
        finally:
            os.close(descriptor)

    def read_to_end(self) -> bytes:
        """What is left, as `read` gives it; not for ever, where a guest writes on meanwhile."""
        return b"".join(islice(iter(self.read, b""), MAX_BACKLOG_BYTES // CHUNK_BYTES + 2))


def last_line(path: Path) -> str:
    """The last line of a log that says something; empty without one."""
    descriptor = _open(path)
    if descriptor is None:
        return ""
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, LAST_BYTES, max(0, size - LAST_BYTES))
    finally:
        os.close(descriptor)
    lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
    said = [line for line in lines if line.isprintable() and line]
    return said[-1] if said else ""


def _open(path: Path) -> int | None:
    """A regular file only: a link or a pipe would lead the controller elsewhere, or hold it."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    return None
