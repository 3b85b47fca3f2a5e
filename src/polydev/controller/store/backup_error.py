"""What both kinds of copies share."""

from __future__ import annotations

from polydev.errors import Error

# The socket too: it would start the service again for the next request.
STOP_HINT = (
    "stop the controller first: systemctl stop master-controller.socket master-controller.service"
)


class BackupError(Error):
    """A database cannot be copied, or a copy not be put back."""

    code = "database-copy"
