"""The folders of this machine, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polydev.image_layout import STORE


@dataclass(frozen=True)
class Settings:
    """Folders.

    store   images and the golden link      POLYDEV_STORE
    cache   layers, packages, build scratch POLYDEV_CACHE
    state   running VMs of `up`, their logs POLYDEV_STATE
    """

    store: Path
    cache: Path
    state: Path

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        def folder(name: str, otherwise: str) -> Path:
            # An empty variable counts as not set; as a path it would be the current folder.
            return Path(environ.get(name) or otherwise).absolute()

        return cls(
            store=folder("POLYDEV_STORE", str(STORE)),
            cache=folder("POLYDEV_CACHE", "/var/cache/polydev"),
            state=folder("POLYDEV_STATE", "/var/lib/polydev"),
        )
