"""The facts of a host, gathered in one call over SSH."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.client import host_probe
from polydev.errors import CommandTimeout, ConfigError, DeployError
from polydev.run import run
from polydev.ssh import SSH_FAILED, SshTarget
from polydev.yaml_files import parse_yaml

PROBE_SECONDS = 120.0


@dataclass(frozen=True)
class HostFacts:
    """What the probe said; `before` and `after` are the operator's clock around it, in s."""

    said: dict[str, Any]
    before: float
    after: float

    def part(self, name: str) -> dict[str, Any]:
        """One of its objects; empty where there is none."""
        found = self.said.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def is_deployed(self) -> bool:
        return self.said.get("host") is not None

    @property
    def config(self) -> dict[str, Any]:
        """The controller's configuration; empty where there is none that can be read."""
        try:
            found = parse_yaml(self.said.get("config") or "")
        except ConfigError:
            found = None
        return found if isinstance(found, dict) else {}

    @property
    def accelerator(self) -> str | None:
        found = self.part("accelerator").get("accelerator")
        return str(found) if found else None


def gather(target: SshTarget) -> HostFacts:
    """Ask the host, once. Raises DeployError where it cannot be asked."""
    script = Path(host_probe.__file__).read_text()
    before = time.time()
    try:
        done = run(
            target.argv("python3", "-"), input=script, check=False, timeout_seconds=PROBE_SECONDS
        )
    except CommandTimeout as error:
        raise DeployError(f"does not answer: {error.message}") from error
    after = time.time()
    words = done.stderr.strip()
    if done.status == SSH_FAILED:
        raise DeployError(f"cannot be reached over SSH: {words}", f"try: {target.by_hand()}")
    try:
        said = json.loads(done.stdout)
    except ValueError:
        raise DeployError(
            f"cannot be looked at: {words or 'it says nothing'}",
            "python3 and sudo without a password are needed there",
        ) from None
    return HostFacts(said, before, after)
