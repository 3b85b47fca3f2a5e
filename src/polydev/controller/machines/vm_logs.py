"""Read what VMs write into their logs. The files lie where a VM's own process may write."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

from polydev.errors import VmError
from polydev.vm.untrusted_files import last_bytes, open_untrusted

CHUNK_BYTES = 256 * 1024
# Nobody reads on through more: a guest may write as fast as it likes.
MAX_BACKLOG_BYTES = 1024 * 1024
LAST_BYTES = 64 * 1024


def added_since(file: Path, offset: int, most: int = CHUNK_BYTES) -> tuple[bytes, int]:
    """At most so many bytes of what was added to a file, and the offset for the next time.

    Of a long backlog its end; of a file that became shorter, its beginning. Nothing where there is
    no file (yet, or any more). Raises VmError.
    """
    try:
        with open_untrusted(file) as descriptor:
            size = os.fstat(descriptor).st_size
            if size < offset:
                offset = 0
            # The beginning holds the boot, so that is always read.
            if offset and size - offset > MAX_BACKLOG_BYTES:
                offset = size - LAST_BYTES
            data = os.pread(descriptor, most, offset)
    except FileNotFoundError:
        return b"", offset
    return data, offset + len(data)


class LogReader:
    """Reads what was added to a file since the last time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> bytes:
        """At most a chunk of what is new; nothing of a file that must not be read."""
        data = b""
        with suppress(VmError):
            data, self._offset = added_since(self._path, self._offset)
        return data

    def read_to_end(self) -> bytes:
        """What is left, as `read` gives it; not for ever, where a guest writes on meanwhile."""
        return b"".join(islice(iter(self.read, b""), MAX_BACKLOG_BYTES // CHUNK_BYTES + 2))


def last_line(path: Path) -> str:
    """The last line of a log that says something; empty without one."""
    data = b""
    with suppress(VmError):
        data = last_bytes(path, LAST_BYTES)
    lines = [line.strip() for line in data.decode(errors="replace").splitlines()]
    said = [line for line in lines if line.isprintable() and line]
    return said[-1] if said else ""
