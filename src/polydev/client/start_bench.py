"""How long sessions' starts take on a host: measured there, summed up as medians and ratios."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from polydev.client.on_host import follow
from polydev.errors import CommandError, ConfigError, DeployError
from polydev.ssh import SshTarget

PYTHON = "/opt/master-controller/current/venv/bin/python"
# The program is its first argument: it has to lie somewhere, for it starts itself once more.
RUN = f"""
folder=$(mktemp -d) || exit
trap 'rm -rf "$folder"' EXIT
printf %s "$1" >"$folder/bench.py"
shift
{PYTHON} "$folder/bench.py" measure "$@"
"""
ANSWER = '{"seconds":'
# Of each ratio: what is measured against what.
RATIOS = {
    "pool_start_to_bare_resume": ("pool", "bare"),
    "clone_start_to_bare_resume": ("clone", "bare"),
    "cold_to_pool_start": ("cold", "pool"),
    "cold_to_clone_start": ("cold", "clone"),
}
NAMES = {"bare": "bare_resume", "pool": "pool_start", "clone": "clone_start", "cold": "cold_start"}
WHY_NOT = {"pool": "no VM of a pool was there to be taken", "cold": "no cold boot was asked for"}


def measured(
    target: SshTarget,
    program: Path,
    address: str,
    starts: int,
    colds: int,
    say: Callable[[str], None],
) -> dict[str, list[float]]:
    """Seconds of each kind, measured on the host by its controller's own Python.

    Raises ConfigError and DeployError with what went wrong there.
    """
    found: dict[str, Any] = {}

    def on_line(line: str) -> None:
        if line.startswith(ANSWER):
            found.update(json.loads(line))
        else:
            say(line)

    words = ("sh", "-c", RUN, "bench", program.read_text(), address, str(starts), str(colds))
    try:
        follow(target, words, on_line)
    except CommandError as error:
        raise DeployError(f"{target.name}: {error.stderr_tail}", "./inv doctor") from error
    if not found:
        raise ConfigError(f"{target.name} measured nothing", "./inv templates; ./inv doctor")
    return dict(found["seconds"])


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, 95th percentiles and ratios of medians; null with a reason where there is none."""
    medians = {kind: round(median(all_), 4) for kind, all_ in seconds.items() if all_}
    answer: dict[str, Any] = {}
    for kind, name in NAMES.items():
        answer[f"{name}_seconds"] = medians.get(kind)
        answer[f"{name}_p95_seconds"] = percentile_95(seconds[kind])
    missing = {}
    for name, (kind, other) in RATIOS.items():
        if kind in medians and other in medians:
            answer[name] = round(medians[kind] / medians[other], 3)
        else:
            answer[name] = None
            gone = kind if kind not in medians else other
            missing[name] = WHY_NOT.get(gone, f"no {NAMES[gone]} was measured")
    return {**answer, "missing": missing, "seconds": seconds}


def percentile_95(values: Sequence[float]) -> float | None:
    """None of no values; of one, itself."""
    if len(values) < 2:
        return values[0] if values else None
    return round(quantiles(values, n=20, method="inclusive")[-1], 4)
