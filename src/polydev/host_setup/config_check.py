"""Check the controller's configuration with the controller that will be deployed.

The rules are in `polydev.controller.settings` of the sources that are deployed, which may differ
from those of this process. So they run in a process of their own. It reads secrets from stdin.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from polydev.errors import ConfigError
from polydev.processes import run

CHECK_SECONDS = 120.0
SHOWN_LINES = 5


def check_controller_config(
    host: str,
    source: Path,
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    secrets: Mapping[str, str],
) -> None:
    """Raise ConfigError with each key of the inventory that the controller would reject."""
    document = {"config": dict(config), "given": dict(given), "secrets": dict(secrets)}
    try:
        text = json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"inventory: {host}: controller: {error}") from None
    problems = _problems(text, source.resolve())
    if problems:
        words = "; ".join(f"{each['key']}: {each['message']}" for each in problems)
        raise ConfigError(
            f"inventory: {host}: {words}",
            "docs/controller.md has every key, docs/hosts.md every secret",
        )


@cache
def _problems(document: str, source: Path) -> list[dict[str, str]]:
    argv = [sys.executable, "-m", "polydev.controller", "check-config"]
    done = run(
        argv,
        input=document,
        cwd=source,
        env={"PYTHONPATH": str(source / "src")},
        check=False,
        timeout_seconds=CHECK_SECONDS,
    )
    try:
        found: list[dict[str, str]] = json.loads(done.stdout)["problems"]
    except (ValueError, KeyError):
        last = "\n".join(done.stderr.strip().splitlines()[-SHOWN_LINES:])
        raise ConfigError(
            f"cannot run the controller of {source} to check its configuration:\n{last}",
            "correct its sources",
        ) from None
    return found
