"""The error of backup and restore."""

from __future__ import annotations

from polydev.errors import Error

# The socket too: it would start the service again at the next request.
STOP_HINT = (
    "stop the controller first: systemctl stop master-controller.socket master-controller.service"
)


class BackupError(Error):
    """A database cannot be backed up, or a backup cannot be restored."""

    code = "database-copy"
