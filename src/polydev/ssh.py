"""Programs of the operator's machine that reach a host as pyinfra does: same key, same user."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SshTarget:
    """How a host is reached; `name` is what the inventory calls it."""

    name: str
    hostname: str
    user: str | None = None
    port: int = 22
    key: Path | None = None
    known_hosts: Path | None = None

    @classmethod
    def from_data(cls, name: str, data: Mapping[str, Any]) -> SshTarget:
        key, known = data.get("ssh_key"), data.get("ssh_known_hosts_file")
        return cls(
            name=name,
            hostname=str(data.get("ssh_hostname") or name),
            user=data.get("ssh_user"),
            port=int(data.get("ssh_port") or 22),
            key=Path(os.path.expanduser(key)) if key else None,  # noqa: PTH111  (as pyinfra)
            known_hosts=Path(os.path.expanduser(known)) if known else None,  # noqa: PTH111
        )

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.hostname}" if self.user else self.hostname

    def options(self, *, timeout_seconds: int = 10) -> list[str]:
        words = ["-p", str(self.port), "-o", "BatchMode=yes"]
        words += ["-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={timeout_seconds}"]
        words += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        if self.key:
            words += ["-i", str(self.key), "-o", "IdentitiesOnly=yes"]
        if self.known_hosts:
            words += ["-o", f"UserKnownHostsFile={self.known_hosts}"]
        return words

    def argv(self, *command: str, timeout_seconds: int = 10) -> list[str]:
        """Run a command on the host as root; its words arrive as they are."""
        remote = f"sudo -n {shlex.join(command)}"
        options = self.options(timeout_seconds=timeout_seconds)
        return ["ssh", *options, self.destination, "--", remote]

    def rsync_shell(self) -> str:
        return shlex.join(["ssh", *self.options()])
