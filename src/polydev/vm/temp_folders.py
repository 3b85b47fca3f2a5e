"""Folders of VMs that last no longer than the process that made them, below the temporary ones.

Their maker holds a lock on each: what a SIGKILL leaves is found by that, and removed later.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "polydev-vm-"


@contextmanager
def temp_folder() -> Iterator[Path]:
    """A fresh folder, short enough for the path of a socket; it is gone afterwards."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # A removal of abandoned folders may take it before it is locked.
        with suppress(FileNotFoundError):
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def abandoned_temp_folders(*, remove: bool = False) -> list[Path]:
    """Return the scratch folders whose makers have ended; with `remove` they are gone then."""
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with suppress(OSError):  # held by its maker, another user's, or just gone
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptor = os.open(folder, flags)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    found.append(folder)
                    if remove:
                        shutil.rmtree(folder)
            finally:
                os.close(descriptor)
    return found
