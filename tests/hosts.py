"""The deployed lab that tests share: made once, and changed by one test at a time."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from polydev.deployment import deploy_and_rollback
from polydev.deployment.deploy_and_rollback import DeployOptions
from polydev.deployment.history import records_of
from polydev.deployment.pyinfra_process import DescribedHost, Plan, Project, describe
from polydev.deployment_records import Record, newest_first
from polydev.image_layout import IN_USE, STORE
from polydev.lab import Lab, reset, restart, run_inside, save
from polydev.lab.access import inside_argv
from polydev.lab.container import init_pid
from polydev.processes import spawn
from polydev.progress import Steps
from polydev.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
# The files that a deployment is made from.
PARTS = ("deploy.py", "inventory", "templates", "requirements", "src", "web", "pyproject.toml")
TOOL = "/opt/polydev-ai/bin/polydev-host"
# SSH lets operators in before all units of the host are up.
BOOT_SECONDS = 120
# Until a check of a busy host that gets no answer counts as failed.
ANSWER_SECONDS = 120.0
DATABASE = "/var/lib/master-controller/controller.sqlite3"
TAKE_FILE = 'cp --sparse=always /dev/stdin "$0" && touch --date="@$1" "$0"'


@dataclass(frozen=True)
class DeployedHost:
    """A lab, and the checkout that is deployed to it."""

    lab: Lab
    settings: Settings
    project: Project
    logs: Path
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def host(self) -> DescribedHost:
        return _described(self.project, self.lab)

    def deploy(self, **options: Any) -> Record:
        chosen = DeployOptions(data=self.data, **options)
        return deploy_and_rollback.deploy(self.project, self.host, chosen, Steps(), self.logs)

    def plan(self, **options: Any) -> Plan:
        chosen = DeployOptions(data=self.data, **options)
        return deploy_and_rollback.plan(self.project, self.host, chosen, Steps())

    def rollback(self, to: str | None = None) -> Record:
        return deploy_and_rollback.rollback(self.project, self.host, to, Steps(), self.logs)

    def records(self) -> list[Record]:
        """Newest first."""
        with deploy_and_rollback.connected(self.host) as connection:
            return newest_first(records_of(connection))

    def inside(self, command: str, *, check: bool = True) -> str:
        """Run a line of shell as root in the lab, without SSH and firewall; return its output."""
        return run_inside(self.lab, ["sh", "-c", command], check=check).stdout.strip()

    def journal(self, options: str = "") -> str:
        """The messages of the journal, with all that was written before."""
        return self.inside(f"journalctl --sync; journalctl -q --no-pager -o cat {options}")

    def gate(self) -> dict[str, Any]:
        """Return the result of the health gate now, once every check got its answer in time."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            found: dict[str, Any] = json.loads(self.inside(f"{TOOL} health --seconds 0"))
            late = [each for each in found["checks"] if each["detail"] == "no answer: timed out"]
            if not late or time.monotonic() > deadline:
                return found

    def listing(self) -> list[dict[str, Any]]:
        """Path, mode, owner and hash of all that a deployment may change, but records.

        The database without its hash: a controller that runs writes to it all the time.
        """
        document = json.dumps(dict(self.host.scope))
        said = run_inside(self.lab, [TOOL, "listing"], input=document).stdout
        found: list[dict[str, Any]] = json.loads(said)
        for entry in found:
            if entry["path"] == DATABASE:
                del entry["sha256"]
        return found

    def golden_image(self) -> Path:
        """The folder, on this machine, of the image that a deployment sends."""
        return (Settings.from_environment().store / "golden-rootfs.ext4").resolve().parent

    def release(self) -> str:
        """Id of the release that `current` names."""
        return self.inside("basename $(readlink /opt/master-controller/current)")

    def save(self) -> None:
        """Keep the host as it is for `reset`."""
        self._renew(save(self.lab.name, self.settings))

    def reset(self) -> None:
        """Bring the host back to what it was when it was saved, whatever a test did to it."""
        self._renew(reset(self.lab.name, self.settings))

    def restart(self) -> None:
        self._renew(restart(self.lab.name, self.settings))

    def _renew(self, lab: Lab) -> None:
        # All tests share this value: what they knew of the lab's processes has ended.
        vars(self)["lab"] = lab
        gate = json.loads(self.inside(f"{TOOL} health --seconds {BOOT_SECONDS}"))
        assert gate["ok"], gate

    def ssh_address(self) -> str:
        return f"{self.lab.user}@{self.lab.address}:{self.lab.ssh_port}"


# The hosts that files share, by the names of tests/conftest.py, which resets one after a failure.
SHARED_HOSTS = pytest.StashKey[dict[str, DeployedHost]]()


def bring_image(lab: Lab, image: Path) -> None:
    """Copy an image to the lab's store, so that a deployment need not send it."""
    place, init = f"{STORE}/incoming/{image.name}", init_pid(lab)
    assert init
    run_inside(lab, ["mkdir", "--parents", place])
    for file in image.iterdir():
        if file.name == IN_USE:
            continue
        seconds = f"{file.stat().st_mtime_ns / 1e9:.6f}"
        argv = [*inside_argv(init), "sh", "-c", TAKE_FILE, f"{place}/{file.name}", seconds]
        with file.open("rb") as content:
            assert spawn(argv, stdin=content).wait() == 0


@functools.cache
def _described(project: Project, lab: Lab) -> DescribedHost:
    """The host of the inventory: reading it starts a process, and nobody edits it meanwhile."""
    return describe(project)[0]


@contextmanager
def lab_host(lab: Lab, settings: Settings, logs: Path) -> Iterator[DeployedHost]:
    """The checkout's own inventory, whose host is that lab for the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYDEV_LAB", lab.name)
        patch.setenv("POLYDEV_STORE", str(settings.store))
        patch.setenv("POLYDEV_CACHE", str(settings.cache))
        patch.setenv("POLYDEV_STATE", str(settings.state))
        yield DeployedHost(lab, settings, Project(ROOT, ROOT / "inventory" / "lab.py"), logs)


def variant(
    base: DeployedHost, folder: Path, change: Callable[[Path], None] = lambda root: None
) -> DeployedHost:
    """The same lab deployed from a changed copy of the checkout."""
    copy = folder / "checkout"
    leave = shutil.ignore_patterns("__pycache__", "production.py")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=leave)
        else:
            copy.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy / part)
    change(copy)
    project = Project(copy, copy / "inventory" / "lab.py")
    return replace(base, project=project)
