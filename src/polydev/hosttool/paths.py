"""Where things lie on a host. Tests put all of it below a folder of their own."""

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
    """The folders that the host tool knows without being told by a scope."""

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
        """The last number that this host gave."""
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
        """What restores have changed that no unit was restarted for yet."""
        return self.home / "restore-pending.json"

    @property
    def restores(self) -> Path:
        """How far each restore is, or how it ended; see `restore_job`."""
        return self.home / "restores"

    @property
    def busy(self) -> Path:
        return self.home / "busy"

    @property
    def permission(self) -> Path:
        """The id of the deployment whose operations may run; a restart of the host forgets it."""
        return self.stamps.parent / "operations"

    @property
    def known_schema(self) -> Path:
        """Which schema of the database a release found right; a restart of the host forgets it."""
        return self.stamps.parent / "schema.json"

    @property
    def database(self) -> Path:
        """The controller's SQLite database."""
        return self.controller_home / CONTROLLER_DATABASE.name

    def slot_queue(self, number: int) -> Path:
        """Whose turn it is to change a slot."""
        return self.stamps.parent / "slots" / f"{number}.queue"

    @property
    def reserve(self) -> Path:
        return self.home / "reserve"


def require_id(text: str) -> str:
    """`text`, if it has the form of a deployment id. Raises HostError `bad-id`."""
    if DEPLOYMENT_ID.fullmatch(text) is None:
        raise HostError(
            "bad-id", f"{text!r} is not a deployment id", "an id looks like 20250131_120000-1a2b3c4"
        )
    return text
