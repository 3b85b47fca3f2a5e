"""Command lines of ssh and rsync that reach a host as pyinfra does: same key, same user.

Every ssh and rsync command is made here. ssh's own configuration decides what the inventory omits.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The exit status of ssh where ssh itself failed: see ssh(1).
SSH_FAILED = 255
# How long a busy host may take to accept a connection and to greet.
GREETING_SECONDS = 30
# Words that ssh and rsync take as they are.
PLAIN = re.compile(r"[\w/.,:+@=-]+", re.ASCII)


def ssh_option(name: str, path: Path | str, tokens: str = "") -> str:
    """Return what follows `-o` for a path, quoted: ssh splits values at blanks and expands %.

    `tokens` follow the path and are expanded by ssh.
    """
    text = str(path).replace("%", "%%") + tokens
    if PLAIN.fullmatch(text.replace("%", "")) is None:
        text = '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f"{name}={text}"


@dataclass(frozen=True)
class SshTarget:
    """How to reach a host, by its name in the inventory. None: ssh's own configuration decides."""

    name: str
    hostname: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    config: Path | None = None

    @classmethod
    def from_data(cls, name: str, data: Mapping[str, Any], folder: Path = Path()) -> SshTarget:
        """Read the inventory's values; relative paths start in `folder`."""

        def path(key: str) -> Path | None:
            value = data.get(key)
            return folder / os.path.expanduser(value) if value else None  # noqa: PTH111  (as pyinfra)

        port = data.get("ssh_port")
        return cls(
            name=name,
            hostname=str(data.get("ssh_hostname") or name),
            user=data.get("ssh_user"),
            port=int(port) if port else None,
            key=path("ssh_key"),
            known_hosts=path("ssh_known_hosts_file"),
            config=path("ssh_config_file"),
        )

    @property
    def destination(self) -> str:
        return self._at(self.hostname)

    def remote(self, path: str) -> str:
        """Return a path on the host in rsync's form, with an IPv6 address in brackets."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{self._at(host)}:{path}"

    def _at(self, host: str) -> str:
        return f"{self.user}@{host}" if self.user else host

    def options(self, *, timeout_seconds: int = GREETING_SECONDS) -> list[str]:
        """Return the options of every connection: no questions, a known host key, timeouts."""
        words = [*self._address_options(), "-o", "BatchMode=yes"]
        words += ["-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={timeout_seconds}"]
        words += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=6"]
        return words

    def _address_options(self) -> list[str]:
        """Return the options that name port, key, known host keys and configuration."""
        words = ["-F", str(self.config)] if self.config else []
        if self.port:
            words += ["-p", str(self.port)]
        if self.key:
            # ssh looks for the file of `-i` before it expands %, for that of the option after it.
            has_token = "%" in str(self.key)
            words += (
                ["-o", ssh_option("IdentityFile", self.key)] if has_token else ["-i", str(self.key)]
            )
            words += ["-o", "IdentitiesOnly=yes"]
        if self.known_hosts:
            words += ["-o", ssh_option("UserKnownHostsFile", self.known_hosts)]
        return words

    def by_hand(self) -> str:
        """Return the command line by which an operator reaches the host in the same way."""
        return shlex.join(["ssh", *self._address_options(), self.destination])

    def ssh_argv(self, *options: str, timeout_seconds: int = GREETING_SECONDS) -> list[str]:
        """Return ssh with these options and our own; a remote command may follow."""
        return ["ssh", *options, *self.options(timeout_seconds=timeout_seconds), self.destination]

    def argv(self, *command: str, timeout_seconds: int = GREETING_SECONDS) -> list[str]:
        """Run a command on the host as root; its words arrive unchanged."""
        remote = f"sudo -n {shlex.join(command)}"
        return [*self.ssh_argv(timeout_seconds=timeout_seconds), "--", remote]

    def shell_argv(self, *, is_terminal: bool) -> list[str]:
        """Open a root shell on the host, with a terminal unless it reads a pipe."""
        terminal = ["-t"] if is_terminal else []
        return [*self.ssh_argv(*terminal), "--", "sudo -n -i"]

    def rsync_shell(self) -> str:
        """Return the value of rsync's `--rsh`; within quotes, rsync knows only a doubled quote."""
        words = ["ssh", *self.options()]
        return " ".join(word if PLAIN.fullmatch(word) else _for_rsync(word) for word in words)


def _for_rsync(word: str) -> str:
    quoted = word.replace("'", "''")
    return f"'{quoted}'"
