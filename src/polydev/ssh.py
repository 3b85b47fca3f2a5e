"""Programs of the operator's machine that reach a host as pyinfra does: same key, same user.

What the inventory does not say is left to ssh and its configuration, `~/.ssh/config`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What ssh takes as one word, without a meaning of its own.
# ssh(1): the status where it is ssh itself that failed.
SSH_FAILED = 255
PLAIN = re.compile(r"[\w/.,:+@=-]+", re.ASCII)


def ssh_option(name: str, path: Path | str, tokens: str = "") -> str:
    """Return what follows `-o` for a path: ssh parts values at blanks and expands % in them.

    `tokens` are those that ssh is to expand, after the path.
    """
    text = str(path).replace("%", "%%") + tokens
    if PLAIN.fullmatch(text.replace("%", "")) is None:
        text = '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
    return f"{name}={text}"


@dataclass(frozen=True)
class SshTarget:
    """How a host is reached; `name` is what the inventory calls it. None: as ssh is configured."""

    name: str
    hostname: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    config: Path | None = None

    @classmethod
    def from_data(cls, name: str, data: Mapping[str, Any], folder: Path = Path()) -> SshTarget:
        """Read the inventory's values; paths that are not absolute begin in `folder`."""

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
        """A place on the host, as rsync reads it: the colons of IPv6 stand in brackets."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{self._at(host)}:{path}"

    def _at(self, host: str) -> str:
        return f"{self.user}@{host}" if self.user else host

    def options(self, *, timeout_seconds: int = 10) -> list[str]:
        words = [*self._way(), "-o", "BatchMode=yes"]
        words += ["-o", "StrictHostKeyChecking=yes", "-o", f"ConnectTimeout={timeout_seconds}"]
        words += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"]
        return words

    def _way(self) -> list[str]:
        """Options that say which host this is, and as whom."""
        words = ["-F", str(self.config)] if self.config else []
        if self.port:
            words += ["-p", str(self.port)]
        if self.key:
            # `-i` looks for the file before it expands %, the option after that.
            has_token = "%" in str(self.key)
            words += (
                ["-o", ssh_option("IdentityFile", self.key)] if has_token else ["-i", str(self.key)]
            )
            words += ["-o", "IdentitiesOnly=yes"]
        if self.known_hosts:
            words += ["-o", ssh_option("UserKnownHostsFile", self.known_hosts)]
        return words

    def by_hand(self) -> str:
        """The line by which an operator reaches the host as this does."""
        return shlex.join(["ssh", *self._way(), self.destination])

    def argv(self, *command: str, timeout_seconds: int = 10) -> list[str]:
        """Run a command on the host as root; its words arrive as they are."""
        remote = f"sudo -n {shlex.join(command)}"
        options = self.options(timeout_seconds=timeout_seconds)
        return ["ssh", *options, self.destination, "--", remote]

    def shell_argv(self, *, is_terminal: bool) -> list[str]:
        """Open a shell of root on the host; one that reads a pipe has no terminal."""
        terminal = ["-t"] if is_terminal else []
        return ["ssh", *terminal, *self.options(), self.destination, "--", "sudo -n -i"]

    def rsync_shell(self) -> str:
        """The value of rsync's `--rsh`, which knows quotes, a doubled one within, and no more."""
        words = ["ssh", *self.options()]
        return " ".join(word if PLAIN.fullmatch(word) else _for_rsync(word) for word in words)


def _for_rsync(word: str) -> str:
    quoted = word.replace("'", "''")
    return f"'{quoted}'"
