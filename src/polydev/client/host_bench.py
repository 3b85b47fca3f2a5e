"""Run benchmark programs on a host, and summarize numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from polydev.client.controller_cli import follow
from polydev.errors import CommandError, ConfigError, DeployError
from polydev.host_layout import CONTROLLER_ROOT
from polydev.ssh import SshTarget

PYTHON = str(CONTROLLER_ROOT / "current/venv/bin/python")
PACKAGE = "tests.bench"
# Its arguments: names and texts of modules up to --, then the module to run and its arguments.
RUN = f"""
folder=$(mktemp -d) || exit
trap 'rm -rf "$folder"' EXIT
cd "$folder" && mkdir -p {PACKAGE.replace(".", "/")} || exit
while [ "$1" != -- ]; do
    printf %s "$2" >"{PACKAGE.replace(".", "/")}/$1.py"
    shift 2
done
program=$2
shift 2
{PYTHON} -m {PACKAGE}."$program" "$@"
"""


def result_reader(found: dict[str, Any], say: Callable[[str], None]) -> Callable[[str], None]:
    """Return a reader of a program's lines: the result goes into `found`, other lines to `say`."""

    def on_line(line: str) -> None:
        if line.startswith("{"):
            found.update(json.loads(line))
        else:
            say(line)

    return on_line


def measured_there(
    target: SshTarget,
    programs: Sequence[Path],
    words: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the last of these programs on the host with its controller's Python; return its result.

    The others are modules that it imports. Raises ConfigError and DeployError.
    """
    found: dict[str, Any] = {}
    brought = [word for each in programs for word in (each.stem, each.read_text())]
    started = ("sh", "-c", RUN, "bench", *brought, "--", programs[-1].stem, *words)
    try:
        follow(target, started, result_reader(found, say))
    except CommandError as error:
        raise DeployError(f"{target.name}: {error.stderr_tail}", "./inv doctor") from error
    if not found:
        raise ConfigError(
            f"the benchmark on {target.name} returned no result",
            "see ./inv templates and ./inv doctor",
        )
    return found


def median_of(values: Sequence[float]) -> float | None:
    """Return the median; None without values."""
    return round(median(values), 4) if values else None


def ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else round(value / other, 3)


def percentile_95(values: Sequence[float]) -> float | None:
    """Return the 95th percentile; None without values."""
    if len(values) < 2:
        return values[0] if values else None
    return round(quantiles(values, n=20, method="inclusive")[-1], 4)
