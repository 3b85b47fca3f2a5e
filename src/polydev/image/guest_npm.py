"""npm packages installed for the guest's platform."""

from __future__ import annotations

import json
from pathlib import Path

from polydev.image.sandbox import contained_argv
from polydev.image.tree_merge import matches
from polydev.image_record import Package
from polydev.npm import clean_install
from polydev.progress import Step

GUEST = ("--os=linux", "--cpu=x64", "--libc=glibc")


def install(folder: Path, to: Path, step: Step) -> None:
    """Install what `folder`/package-lock.json names into `to`/node_modules.

    Raises BuildError if the lock does not match package.json or packages cannot be fetched.
    """
    clean_install(folder, to, step.say, *GUEST, contained=contained_argv)


def installed_packages(folder: Path) -> list[Package]:
    """Return name and version of every package below `folder`/node_modules."""
    packages = []
    for manifest in matches(folder, "node_modules/**/package.json"):
        parent = manifest.parent.parent
        if parent.name == "node_modules" or parent.parent.name == "node_modules":
            data = json.loads(manifest.read_text())
            if "name" in data and "version" in data:
                packages.append(Package(kind="npm", name=data["name"], version=data["version"]))
    return packages
