"""Debian packages of a host, from its own package sources."""

from __future__ import annotations

import json
import re
import time

from pyinfra import logger
from pyinfra.context import host
from pyinfra.facts.deb import DebPackages
from pyinfra.operations import apt

from polydev.errors import DeployError
from polydev.host_setup.host_files_and_units import TOOL
from polydev.host_setup.pyinfra_operations import run_locally
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.processes import run
from polydev.ssh import SshTarget

# Installed without recommended packages.
PACKAGES = (
    "ca-certificates",
    "dbus",  # the controller talks to systemd through it, and systemd to polkit
    "dnsmasq-base",  # the program without its service: ours has its own unit
    "iproute2",
    "nftables",
    "polkitd",
    "python3",
    "python3-venv",  # releases of the controller
    "qemu-system-x86",
    "qemu-utils",
    "rsync",  # images arrive by differences
)
POSTGRESQL_CLIENT = re.compile(r"postgresql-client(-\d+)?")
LOCK_SECONDS = 600
ASK_EVERY_SECONDS = 2.0
TELL_EVERY_SECONDS = 30.0
# apt itself waits for dpkg's locks only, not for those of its lists and archives.
LOCK_TIMEOUT = f"-o DPkg::Lock::Timeout={LOCK_SECONDS}"


@concern("Packages")
def packages(target: SshTarget) -> None:
    known = host.get_fact(DebPackages)
    missing = [name for name in PACKAGES if name not in known]
    if missing:
        # Only then: an update on every deployment would count as a change.
        _update(target)
    apt.packages(
        name="packages",
        packages=list(PACKAGES),
        no_recommends=True,
        update=False,
        extra_install_args=LOCK_TIMEOUT,
    )


@concern("PostgreSQL client")
def postgresql_client(target: SshTarget) -> None:
    """Install pg_dump for backups of PostgreSQL; any version that is there stays."""
    known = host.get_fact(DebPackages)
    if any(POSTGRESQL_CLIENT.fullmatch(name) for name in known):
        return
    _update(target)
    apt.packages(
        name="postgresql-client",
        packages=["postgresql-client"],
        no_recommends=True,
        update=False,
        extra_install_args=LOCK_TIMEOUT,
    )


def _update(target: SshTarget) -> None:
    """Update the package lists; wait for apt's locks before that and before the installation."""
    apt_is_free(name="apt is free for its lists", target=target)
    apt.update(name="package lists", cache_time=3600)
    apt_is_free(name="apt is free for packages", target=target)


@operation
def apt_is_free(target: SshTarget) -> Commands:
    """Wait until no other process, such as unattended-upgrades, holds a lock of apt or dpkg.

    pyinfra has no operation that waits for all of these locks.
    """
    yield run_locally(wait_for_apt, target, LOCK_SECONDS, ASK_EVERY_SECONDS)


def wait_for_apt(target: SshTarget, seconds: float, every_seconds: float) -> None:
    """Return once apt's and dpkg's locks are free; log who holds them meanwhile.

    Raises DeployError after `seconds`.
    """
    began = time.monotonic()
    shown, shown_at = "", began
    while who := _holders(target):
        now = time.monotonic()
        if now >= began + seconds:
            raise DeployError(
                f"{target.name}: cannot install packages: after {seconds:.0f} s {who}",
                "let it finish or stop it on the host, then run ./inv deploy again",
            )
        if who != shown or now >= shown_at + TELL_EVERY_SECONDS:
            logger.info(f"waiting for {who} ({now - began:.0f} s of at most {seconds:.0f} s)")
            shown, shown_at = who, now
        time.sleep(every_seconds)


def _holders(target: SshTarget) -> str:
    """Return who holds which locks, in words; empty if nobody does."""
    said = run(target.argv(TOOL, "apt", "locks", timeout_seconds=15), timeout_seconds=30).stdout
    locks: dict[str, list[str]] = {}
    for each in json.loads(said)["held"]:
        locks.setdefault(f"{each['name']} (pid {each['pid']})", []).append(each["lock"])
    return "; ".join(f"{who} holds {', '.join(names)}" for who, names in locks.items())
