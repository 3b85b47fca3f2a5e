"""Where things lie on a host. Tests put all of it below a folder of their own."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass
from pathlib import Path

from polydev.hosttool.errors import HostError

DEPLOYMENT_ID = re.compile(r"\d{8}_\d{6}-[0-9a-f]{4,40}(-dirty)?")


@dataclass(frozen=True)
class Paths:
    """The folders that the host tool knows without being told by a scope."""

    home: Path = Path("/opt/polydev-ai")
    units: Path = Path("/etc/systemd/system")
    stamps: Path = Path("/run/polydev/config")
    sysctl: Path = Path("/etc/sysctl.d")
    controller: Path = Path("/opt/master-controller")
    controller_config: Path = Path("/etc/master-controller")
    images: Path = Path("/var/lib/firecracker/snapshots/base")
    dpkg: Path = Path("/var/lib/dpkg")
    apt_lists: Path = Path("/var/lib/apt/lists")
    apt_archives: Path = Path("/var/cache/apt/archives")
    controller_home: Path = Path("/var/lib/master-controller")
    etc: Path = Path("/etc")

    @classmethod
    def below(cls, root: Path) -> Paths:
        return cls(*(root / path.relative_to("/") for path in astuple(cls())))

    @property
    def root(self) -> Path:
        return self.etc.parent

    @property
    def tool(self) -> Path:
        return self.home / "bin" / "polydev-host"

    @property
    def backups(self) -> Path:
        return self.home / "backups"

    @property
    def records(self) -> Path:
        return self.home / "deployments"

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
        return self.controller_home / "controller.sqlite3"

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
            "bad-id", f"{text!r} is no deployment id", "one looks like 20250131_120000-1a2b3c4"
        )
    return text
