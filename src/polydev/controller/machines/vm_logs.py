"""Read the logs of VMs, their consoles included. A VM's own process may replace the files."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from polydev.errors import VmError
from polydev.vm.untrusted_files import last_bytes, open_untrusted

CHUNK_BYTES = 256 * 1024
# A reader skips a longer backlog: a guest may write as fast as it likes.
MAX_BACKLOG_BYTES = 1024 * 1024
LAST_BYTES = 64 * 1024


def added_since(file: Path, offset: int, most: int = CHUNK_BYTES) -> tuple[bytes, int]:
    """Return at most so many bytes that were added to a file, and the offset for the next call.

    A long backlog is skipped but for its end; a file that became shorter is read from its
    beginning; a file that does not exist gives nothing. Raises VmError.
    """
    try:
        with open_untrusted(file) as descriptor:
            size = os.fstat(descriptor).st_size
            if size < offset:
                offset = 0
            # The beginning is always read: it shows the boot.
            if offset and size - offset > MAX_BACKLOG_BYTES:
                offset = size - LAST_BYTES
            data = os.pread(descriptor, most, offset)
    except FileNotFoundError:
        return b"", offset
    return data, offset + len(data)


class LogReader:
    """Reads what was added to a log since the last call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """Return at most a chunk of new bytes; nothing from a file that must not be read."""
        data = b""
        with suppress(VmError):
            data, self._offset = added_since(self._path, self._offset)
        return data

    def read_to_end(self) -> bytes:
        """Return the rest, but not without end if the guest keeps writing."""
        return b"".join(islice(iter(self.read, b""), MAX_BACKLOG_BYTES // CHUNK_BYTES + 2))


def last_line(path: Path) -> str:
    """Return the last printable line of a log that is not empty, or an empty text."""
    data = b""
    with suppress(VmError):
        data = last_bytes(path, LAST_BYTES)
    lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
    said = [line for line in lines if line.isprintable() and line]
    return said[-1] if said else ""
