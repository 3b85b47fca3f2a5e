"""A plan as text: in full if it is short, by concern if it is long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polydev.deployment.pyinfra_process import Operation, Plan

DIFF_HELP = "show each difference, however long the plan is"
# A longer plan, such as the first one of a host, is shown by concern.
MOST_LINES = 60
WIDEST = 100


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON: each operation that would change something, with its diff."""
    changing = [
        {"name": operation.name, "diff": list(operation.diff)} for operation in plan.changing
    ]
    return {"changes": len(changing), "operations": changing, "warnings": list(plan.warnings)}


def plan_text(plan: Plan, *, show_diff: bool = False) -> str:
    """Return what a plan would change, its warnings, and how many operations that is."""
    lines = [line for each in plan.changing for line in _in_full(each)]
    is_long = len(lines) > MOST_LINES and not show_diff
    if is_long:
        lines = _by_concern(plan.changing)
    lines += [f"warning: {each}" for each in plan.warnings]
    count = f"{len(plan.changing)} of {len(plan.operations)} operations would change the host"
    return "\n".join([*lines, f"{count}; --diff shows each difference" if is_long else count])


def _in_full(operation: Operation) -> list[str]:
    return [operation.name, *(f"    {line}" for line in operation.diff)]


def _by_concern(operations: list[Operation]) -> list[str]:
    """Return one line for each concern: how many operations it has, and as many names as fit."""
    concerns: dict[str, list[str]] = {}
    for operation in operations:
        concern, _, name = operation.name.rpartition(" | ")
        concerns.setdefault(concern, []).append(name)
    width = max(map(len, concerns))
    return [
        _shortened(f"{concern:<{width}}  {len(names):>3}  {', '.join(names)}")
        for concern, names in concerns.items()
    ]


def _shortened(line: str) -> str:
    return line if len(line) <= WIDEST else f"{line[: WIDEST - 2].rpartition(',')[0]}, …"
