"""What both kinds of copies share."""

from __future__ import annotations

from polydev.errors import Error

STOP_HINT = "stop the controller first: systemctl stop master-controller.service"


class CopyError(Error):
    """A database cannot be copied, or a copy not be put back."""

    code = "database-copy"
