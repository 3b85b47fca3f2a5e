"""Gather the facts of a host in one call over SSH."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.client import host_probe
from polydev.errors import CommandTimeout, ConfigError, DeployError
from polydev.processes import run
from polydev.ssh import SSH_FAILED, SshTarget
from polydev.yaml_files import parse_yaml

PROBE_SECONDS = 300.0


@dataclass(frozen=True)
class HostFacts:
    """The probe's answer; `before` and `after` are the operator's clock around the call, in s."""

    said: dict[str, Any]
    before: float
    after: float

    def part(self, name: str) -> dict[str, Any]:
        """Return one object of the answer; empty if missing."""
        found = self.said.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def is_deployed(self) -> bool:
        return self.said.get("host") is not None

    @property
    def config(self) -> dict[str, Any]:
        """The controller's configuration; empty if it cannot be read."""
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
    """Run the probe on the host. Raises DeployError if that fails."""
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
            f"cannot inspect {target.name}: {words or 'no answer'}",
            "python3 and sudo without a password are needed there",
        ) from None
    return HostFacts(said, before, after)
