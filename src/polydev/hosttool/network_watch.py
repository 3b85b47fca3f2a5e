"""The watch of the VMs' network: a loop that compares it again and again, and writes a report.

The controller reads the report, since it may not enter the slots' namespaces. The health gate
looks at its age.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from polydev.hosttool import network_state, slot_network
from polydev.hosttool.errors import HostError

REPORT = Path("/run/polydev/network.json")
EVERY_SECONDS = 10.0
# If the last report is older, the watch hangs or does not run.
FRESH_SECONDS = 60.0
# The most that it uses of one core: a host with many slots is read less often, but often enough
# for a fresh report.
MOST_LOAD = 0.1
LONGEST_REST_SECONDS = FRESH_SECONDS / 2


def watch(seconds: float = EVERY_SECONDS) -> None:
    """Check again and again, and write the newest result to REPORT, which everybody can read."""
    while True:
        began, used = time.monotonic(), _cpu_seconds()
        _write(_report())
        left = seconds - (time.monotonic() - began)
        time.sleep(rest_seconds(left, _cpu_seconds() - used))


def rest_seconds(left: float, cpu_seconds: float) -> float:
    """Return how long to rest after a check that took so much CPU time.

    `left` is the time to the next check. On a busy host a check takes long without using a CPU.
    """
    return max(left, min(cpu_seconds / MOST_LOAD, LONGEST_REST_SECONDS))


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of the programs that it has run."""
    return sum(os.times()[:4])


def _report() -> dict[str, object]:
    """Check once; `at` is the time since the machine's start, which nobody can set."""
    try:
        found = network_state.as_document(network_state.check(slot_network.read_host()))
    except (HostError, OSError, ValueError, KeyError) as error:
        found = {"ok": False, "error": getattr(error, "message", str(error)), "differences": []}
    return {"at": time.monotonic(), **found}


def watch_differences() -> list[str]:
    """Return a diff about the age of the watch's report; [] if it is fresh."""
    try:
        age = time.monotonic() - float(json.loads(REPORT.read_bytes())["at"])
    except FileNotFoundError:
        found = "none was written since the host's start"
    except (ValueError, KeyError, TypeError, OSError) as error:
        found = f"it cannot be read: {error}"
    else:
        if 0 <= age <= FRESH_SECONDS:
            return []
        found = f"{age:.0f} s old"
    wanted = f"no more than {FRESH_SECONDS:.0f} s old"
    return [f"- report of the watch: {found}", f"+ report of the watch: {wanted}"]


def _write(report: dict[str, object]) -> None:
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    fresh = REPORT.with_suffix(".new")
    fresh.write_text(json.dumps(report) + "\n")
    fresh.chmod(0o644)
    fresh.replace(REPORT)
