"""The description of a lab: a frozen value, kept as `lab.json` in its folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from polydev.errors import ConfigError
from polydev.settings import Settings
from polydev.vm.qemu_process import process_runs

LAB_FILE = "lab.json"
# A name of an interface has at most 15 characters, and systemd on this machine would serve
# addresses and add NAT to one called `ve-…`.
VETH_PREFIX = "lab-"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?")


class Lab(BaseModel):
    """A throw-away host.

    pid      of the process that is the parent of all others (0: never started)
    suite    its Debian release; records without one mean bookworm
    root     tree that the lab's files lie over
    address  of the lab; `gateway` is this machine's end of the link
    """

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    suite: str = "bookworm"
    root: Path
    address: str
    gateway: str
    ssh_port: int = 22
    user: str = "deploy"
    pid: int = 0

    @property
    def key(self) -> Path:
        """Private key that `user` logs in with."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def console_log(self) -> Path:
        return self.folder / "console.log"

    @property
    def upper(self) -> Path:
        """The lab's own files, as an overlay over `root`."""
        return self.folder / "upper"

    @property
    def saved(self) -> Path:
        """The files that `reset` returns to, between `upper` and `root`; not there unless saved."""
        return self.folder / "saved"

    @property
    def lower(self) -> list[Path]:
        """The trees that `upper` lies over, the highest first."""
        return [self.saved, self.root] if self.saved.is_dir() else [self.root]

    @property
    def veth(self) -> str:
        """This machine's end of the link, the only thing of the lab in its network."""
        return f"{VETH_PREFIX}{self.name}"

    def running(self) -> bool:
        """Return whether the container runs; reap it if it is a dead child of ours."""
        if self.pid == 0:
            return False
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return process_runs(self.pid, str(self.folder))

    def write(self) -> None:
        """Write the record in one step."""
        written = self.folder / f"{LAB_FILE}.new"
        written.write_text(self.model_dump_json(indent=1))
        written.replace(self.folder / LAB_FILE)


def checked_name(name: str) -> str:
    """Return `name` if it is a valid name of a lab. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} is not a valid name of a lab",
            "use 1 to 11 lowercase letters, digits and hyphens, a letter first",
        )
    return name


def labs_folder(settings: Settings) -> Path:
    return settings.state.absolute() / "labs"


def lab_folder(name: str, settings: Settings) -> Path:
    return labs_folder(settings) / checked_name(name)


def read_lab(folder: Path) -> Lab | None:
    """Return the lab in a folder, running or not; None if none was made completely."""
    try:
        return Lab.model_validate_json((folder / LAB_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def recorded_labs(settings: Settings) -> list[Lab]:
    """Return all labs with files under these settings, by name."""
    folder = labs_folder(settings)
    found = [read_lab(each) for each in sorted(folder.iterdir())] if folder.is_dir() else []
    return [lab for lab in found if lab is not None]
