"""Debian packages of a host, from its own sources."""

from __future__ import annotations

import re

from pyinfra.context import host
from pyinfra.facts.deb import DebPackages
from pyinfra.operations import apt

from polydev.deploys.typed import concern

# What the host runs, without what the packages recommend.
PACKAGES = (
    "ca-certificates",
    "dbus",  # by which the controller speaks to systemd, and polkit about it
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


@concern("Packages")
def packages() -> None:
    known = host.get_fact(DebPackages)
    missing = [name for name in PACKAGES if name not in known]
    if missing:
        # Only then: asking for news on every deploy would count as a change.
        apt.update(name="package lists", cache_time=3600)
    apt.packages(
        name="packages",
        packages=list(PACKAGES),
        no_recommends=True,
        update=False,
    )


@concern("PostgreSQL client")
def postgresql_client() -> None:
    """What backups of the controller's database are made with; any version that is there stays."""
    known = host.get_fact(DebPackages)
    if any(POSTGRESQL_CLIENT.fullmatch(name) for name in known):
        return
    apt.update(name="package lists", cache_time=3600)
    apt.packages(
        name="postgresql-client", packages=["postgresql-client"], no_recommends=True, update=False
    )
