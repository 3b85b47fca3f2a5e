"""The lock that lets one process at a time drive the VMs: during a handover, two serve."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sqlalchemy.engine import make_url

from polydev.controller.settings import ControllerSettings

LEADER_LOCK_FILE = "lead.lock"


class LeaderLock:
    """A file lock: the kernel releases it when the process that holds it ends, in whatever way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def take(self) -> bool:
        """Take the lock; return False if another process has it. Raises OSError if it cannot."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def leader_lock_file(settings: ControllerSettings) -> Path:
    return shared_folder(settings) / LEADER_LOCK_FILE


def shared_folder(settings: ControllerSettings) -> Path:
    """Return the folder that all processes of the service share and may write to.

    That is the folder of an SQLite database; else what systemd made for the service
    (`StateDirectory=`); else that of the VMs, which on a deployed host belongs to root.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(url.database).parent
    made, _, _ = os.environ.get("STATE_DIRECTORY", "").partition(":")
    return Path(made) if made else settings.vm_root
