"""Temporary folders of VMs, which are removed with the process that made them.

That process holds a lock on its folder. A folder without a locked process was left by SIGKILL, and
is found and removed later.
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
    """Yield a new folder, whose path is short enough for a socket; remove it at the end."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Another process may remove it as abandoned before it is locked.
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
    """Return the folders whose processes have ended, and remove them if asked to."""
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with suppress(OSError):  # still in use, another user's, or just removed
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
