"""Folders and files of a host; tests place all of them below a folder of their own."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path

from polydev.host_layout import (
    BACKUPS,
    CONTROLLER_CONFIG,
    CONTROLLER_DATABASE,
    CONTROLLER_HOME,
    CONTROLLER_ROOT,
    DEPLOYMENT_ID,
    DEPLOYMENTS,
    HOST_HOME,
    HOST_TOOL,
)
from polydev.hosttool.errors import HostError
from polydev.image_layout import STORE


@dataclass(frozen=True)
class Paths:
    """The folders that the host tool knows besides those that a scope names."""

    home: Path = HOST_HOME
    units: Path = Path("/etc/systemd/system")
    stamps: Path = Path("/run/polydev/config")
    sysctl: Path = Path("/etc/sysctl.d")
    controller: Path = CONTROLLER_ROOT
    controller_config: Path = CONTROLLER_CONFIG
    images: Path = STORE
    dpkg: Path = Path("/var/lib/dpkg")
    apt_lists: Path = Path("/var/lib/apt/lists")
    apt_archives: Path = Path("/var/cache/apt/archives")
    controller_home: Path = CONTROLLER_HOME
    etc: Path = Path("/etc")

    @classmethod
    def below(cls, root: Path) -> Paths:
        return cls(*(root / path.relative_to("/") for path in astuple(cls())))

    @property
    def root(self) -> Path:
        return self.etc.parent

    @property
    def tool(self) -> Path:
        return self.home / HOST_TOOL.relative_to(HOST_HOME)

    @property
    def backups(self) -> Path:
        return self.home / BACKUPS.name

    @property
    def records(self) -> Path:
        return self.home / DEPLOYMENTS.name

    @property
    def sequence(self) -> Path:
        """The file with the last number that this host assigned."""
        return self.home / "sequence.json"

    @property
    def lock(self) -> Path:
        return self.home / "lock.json"

    @property
    def lock_held(self) -> Path:
        return self.home / "lock.held"

    @property
    def deadman(self) -> Path:
        return self.home / "deadman.json"

    @property
    def pending(self) -> Path:
        """Changes by restores that no unit was restarted for yet."""
        return self.home / "restore-pending.json"

    @property
    def restores(self) -> Path:
        """The state of each restore; see `restore_job`."""
        return self.home / "restores"

    @property
    def busy(self) -> Path:
        return self.home / "busy"

    @property
    def permission(self) -> Path:
        """The id of the deployment whose commands may run; a restart of the host removes it."""
        return self.stamps.parent / "operations"

    @property
    def known_schema(self) -> Path:
        """The database schema that a release has checked; a restart of the host removes it."""
        return self.stamps.parent / "schema.json"

    @property
    def database(self) -> Path:
        """The controller's SQLite database."""
        return self.controller_home / CONTROLLER_DATABASE.name

    def slot_queue(self, number: int) -> Path:
        """The lock of the verbs that change a slot."""
        return self.stamps.parent / "slots" / f"{number}.queue"

    @property
    def reserve(self) -> Path:
        return self.home / "reserve"


def require_id(text: str) -> str:
    """Return `text` if it has the form of a deployment id. Raises HostError `bad-id`."""
    if DEPLOYMENT_ID.fullmatch(text) is None:
        raise HostError(
            "bad-id", f"{text!r} is not a deployment id", "an id looks like 20250131_120000-1a2b3c4"
        )
    return text
