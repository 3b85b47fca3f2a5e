"""bench.*: measurements of a host in use or of clones, each with a figure to compare it with."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from polydev.cli import answer, edge, require_at_least, task
from verbs.deploy import described_host
from verbs.golden import open_store
from verbs.paths_and_help import (
    HOST_HELP,
    IMAGE_HELP,
    INVENTORY_HELP,
    JSON_HELP,
    LAB_INVENTORY,
    ROOT,
)
from verbs.text_tables import table_text

ROWS = (
    ("bare resume", "bare"),
    ("start from the pool", "pool"),
    ("start of a clone", "clone"),
    ("cold boot", "cold"),
)
CLONE_ROWS = (
    ("memory of a bare resume", "bare_memory_mb", "MB"),
    ("memory of a session's clone", "running_memory_mb", "MB"),
    ("that against a bare resume's", "running_to_bare_memory", ""),
    ("memory of a primed and paused one", "primed_memory_mb", "MB"),
    ("CPU with a viewer", "viewed_cpu_percent", "% of a core"),
    ("CPU once nobody looks", "unviewed_cpu_percent", "% of a core"),
)
COMMON_HELP = {"inventory": INVENTORY_HELP, "host": HOST_HELP, "json": JSON_HELP}


@task(
    name="start",
    help={
        "starts": "how many of each kind but cold boots (default: 20)",
        "cold": "how many cold boots; templates are put aside meanwhile (default: 2)",
        **COMMON_HELP,
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
    """Measure session starts on a host until the screen answers, and bare resumes."""
    from polydev.client.start_bench import summary

    require_at_least(1, "starts", starts)
    require_at_least(0, "cold", cold)
    said = _measured("starts of sessions", inventory, host, ("start_on_host",), starts, cold)
    found = summary(said["seconds"], said["first_frame_seconds"])
    answer(found, as_json=json, text=_start_text(found))


@task(
    name="clones",
    help={"count": "how many VMs of each kind at a time (default: 3)", **COMMON_HELP},
)
@edge
def clones_bench(
    context: Context,
    count: int = 3,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Measure memory and CPU of clones on a host, and of bare resumes."""
    from polydev.client.clone_bench import clone_summary

    require_at_least(1, "count", count)
    found = clone_summary(_measured("clones", inventory, host, ("clones_on_host",), count))
    rows = [
        [words, None if found[name] is None else f"{found[name]:g} {unit}".strip()]
        for words, name, unit in CLONE_ROWS
    ]
    text = "\n".join([table_text(("", "median"), rows), *_limits_text(found["within_limit"])])
    answer(found, as_json=json, text=text)


@task(
    name="burst",
    help={
        "size": "how many sessions start at once (default: 16)",
        "running": "how many then run at once, each with a viewer (default: 0, none)",
        **COMMON_HELP,
    },
)
@edge
def burst_bench(
    context: Context,
    size: int = 16,
    running: int = 0,
    inventory: str = LAB_INVENTORY,
    host: str = "",
    json: bool = False,
) -> None:
    """Measure many session starts at once, from the pool or, without one, from clones."""
    from polydev.client.clone_bench import burst_summary

    require_at_least(1, "size", size)
    require_at_least(0, "running", running)
    programs = ("clones_on_host", "bursts_on_host")
    found = burst_summary(_measured("a burst", inventory, host, programs, size, running))
    answer(found, as_json=json, text=_burst_text(found))


@task(
    name="login",
    help={
        "logins": "how many logins of each tool, and as many bare starts (default: 3)",
        "tools": "which tools, with commas (default: claude,codex,gemini)",
        "image": f"{IMAGE_HELP} (default: golden)",
        "json": JSON_HELP,
    },
)
@edge
def login_bench(
    context: Context,
    logins: int = 3,
    tools: str = "claude,codex,gemini",
    image: str = "golden",
    json: bool = False,
) -> None:
    """Measure in clones on this machine how soon login URLs are known, and bare tools have them."""
    from polydev.client.login_bench import login_summary

    require_at_least(1, "logins", logins)
    found = login_summary(_measured_here(image, str(logins), *tools.split(",")))
    rows = [
        [
            each["tool"],
            _seconds(each["login_seconds"]),
            _seconds(each["bare_seconds"]),
            each["login_to_bare"],
            "within its limit" if each["within_limit"] else "beyond its limit",
        ]
        for each in found
    ]
    answer(found, as_json=json, text=table_text(("", "login URL", "bare", "ratio", ""), rows))


def _measured_here(image: str, *words: str) -> dict[str, Any]:
    import sys

    from polydev.client.host_bench import result_reader
    from polydev.processes import run_lines
    from polydev.progress import Steps

    store = open_store()
    found: dict[str, Any] = {}
    folder = store.path(store.resolve(image))
    program = "tests.bench.logins_in_clones"
    with Steps().step("logins in clones") as step:
        on_line = result_reader(found, step.say)
        run_lines([sys.executable, "-m", program, folder, *words], on_line, cwd=ROOT)
    return found


def _measured(
    what: str, inventory: str, host: str, programs: tuple[str, ...], *words: int
) -> dict[str, Any]:
    from polydev.client.host_bench import measured_there
    from polydev.progress import Steps

    _, described = described_host(inventory, host)
    folder = ROOT / "tests" / "bench"
    names = ("screen", "bare_on_host", "sessions_on_host", *programs)
    brought = [folder / f"{name}.py" for name in names]
    with Steps().step(f"{described.name}: {what}") as step:
        there = [described.controller, *map(str, words)]
        return measured_there(described.target, brought, there, step.say)


def _start_text(found: dict[str, Any]) -> str:
    rows = [
        [
            words,
            _seconds(found[f"{_start_name(kind)}_seconds"]),
            _seconds(found[f"{_start_name(kind)}_p95_seconds"]),
            _seconds(found[f"{kind}_first_frame_seconds"]),
        ]
        for words, kind in ROWS
    ]
    ratios = [
        f"{name.replace('_', ' ')}: "
        + (f"{found[name]:g}" if found[name] is not None else f"none, {found['missing'][name]}")
        for name in found
        if "_to_" in name
    ]
    return "\n".join([table_text(("", "median", "95 %", "first frame"), rows), *ratios])


def _start_name(kind: str) -> str:
    return "bare_resume" if kind == "bare" else f"{kind}_start"


def _burst_text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['size']} sessions at once: {found['refused']} refused, "
        f"the last after {_seconds(found['last_seconds'])}"
    ]
    if found["one_start_seconds"] is not None:
        lines.append(f"one start: {_seconds(found['one_start_seconds'])}")
    if found["bare_resumes_seconds"] is not None:
        lines.append(f"as many bare resumes in turn: {_seconds(found['bare_resumes_seconds'])}")
    if running := found["running"]:
        lines.append(
            f"{running['up']} of {running['vms']} run and answer: {running['all_memory_mb']:g} MB, "
            f"{running['all_cpu_percent']:g} % of a core"
        )
    return "\n".join([*lines, *_limits_text(found["within_limit"])])


def _limits_text(within: dict[str, bool | None]) -> list[str]:
    words = {True: "within its limit", False: "beyond its limit", None: "not measured"}
    return [f"{name.replace('_', ' ')}: {words[is_so]}" for name, is_so in within.items()]


def _seconds(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f} s"
