"""Who drives the VMs of a host: one process at a time, while two serve during a handover."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sqlalchemy.engine import make_url

from polydev.controller.settings import ControllerSettings

LEADER_LOCK_FILE = "lead.lock"


class LeaderLock:
    """A lock that the kernel takes back when its holder ends, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        return self._descriptor is not None

    def take(self) -> bool:
        """Take it unless another process has it. Raises OSError where there can be no lock."""
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
    """What all processes of the service share and may write in.

    Where the database is a file its folder, else what systemd made for the service
    (StateDirectory=), else the VMs' own, which on a deployed host is root's.
    """
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        return Path(url.database).parent
    made, _, _ = os.environ.get("STATE_DIRECTORY", "").partition(":")
    return Path(made) if made else settings.vm_root
