"""bench.*: figures of a host that runs, each beside what it is to be measured against."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from verbs.hosts import described_host
from verbs.places import HOST_HELP, INVENTORY_HELP, JSON_HELP, LAB_INVENTORY, ROOT
from verbs.tables import table_text

START_PROGRAM = ROOT / "tests" / "bench" / "start_on_host.py"
ROWS = (
    ("bare resume", "bare_resume"),
    ("start from the pool", "pool_start"),
    ("start of a clone", "clone_start"),
    ("cold boot", "cold_start"),
)


@task(
    name="start",
    help={
        "starts": "how many of each kind but cold boots (default: 20)",
        "cold": "how many cold boots; templates are put aside meanwhile (default: 2)",
        "inventory": INVENTORY_HELP,
        "host": HOST_HELP,
        "json": JSON_HELP,
    },
)
@edge
def start_bench(
    context: Context,
    starts: int = 20,
    cold: int = 2,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Measure sessions' starts on a host until their screen answers, beside a bare resume."""
    from polydev.client.start_bench import measured, summary
    from polydev.progress import Steps

    require_at_least(1, "starts", starts)
    require_at_least(0, "cold", cold)
    _, described = described_host(inventory, host)
    with Steps().step(f"{described.name}: starts of sessions") as step:
        found = summary(
            measured(described.target, START_PROGRAM, described.controller, starts, cold, step.say)
        )
    answer(found, as_json=json, text=_text(found))


def _text(found: dict[str, Any]) -> str:
    rows = [
        [words, _seconds(found[f"{name}_seconds"]), _seconds(found[f"{name}_p95_seconds"])]
        for words, name in ROWS
    ]
    ratios = [
        f"{name.replace('_', ' ')}: "
        + (f"{found[name]:g}" if found[name] is not None else f"none, {found['missing'][name]}")
        for name in found
        if "_to_" in name
    ]
    return "\n".join([table_text(("", "median", "95 %"), rows), *ratios])


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f} s"
