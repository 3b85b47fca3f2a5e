"""Measure clones on an idle host: their own memory, and their CPU time.

`./inv bench.clones` sends it to a host, whose controller's Python runs it as root:

    clones_on_host ADDRESS COUNT    figures of so many VMs of each kind, as JSON

Memory is what a VM's process has of its own: pages that it has written, and none of the template's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tests.bench.bare_on_host import CONFIG, bare_resumes
from tests.bench.screen import Screen
from tests.bench.sessions_on_host import Host, Started, operated, say, until

# A browser that was resumed has something to do at first, and uses up to three times as much.
SETTLE_SECONDS = 40.0
VIEWED_SECONDS = 10.0
SPAN_SECONDS = 30.0


def own_memory_mb(pid: int) -> float:
    """Return the memory that a process has written to, in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, words = line.partition(":")
        if name == "Anonymous":
            return int(words.split()[0]) * 1024 / 1e6
    raise AssertionError(f"smaps_rollup of {pid} says nothing of anonymous pages")


def cpu_percents(pids: Sequence[int], seconds: float) -> list[float]:
    """Return the share of a core that each process uses over this time, in percent."""
    from polydev.vm.cpu_time import cpu_sample

    before = [cpu_sample(pid) for pid in pids]
    time.sleep(seconds)
    after = [cpu_sample(pid) for pid in pids]
    both = zip(before, after, strict=True)
    return [100 * (now.ran - then.ran) / (now.at - then.at) for then, now in both]


def pid_of(vm: dict[str, Any]) -> int:
    argv = ["systemctl", "show", "-P", "MainPID", f"microvm@{vm['slot']}.service"]
    return int(subprocess.check_output(argv, text=True))


@contextmanager
def viewers(host: Host, session_ids: Sequence[str]) -> Iterator[None]:
    """Follow the screen of each session with a viewer for the block."""
    is_over = Event()

    def follow(screen: Screen) -> None:
        try:
            while True:
                screen.ask(is_all=False)
                screen.update()
        except Exception:
            if not is_over.is_set():
                raise

    with ExitStack() as stack:
        for session_id in session_ids:
            screen = stack.enter_context(host.looking(session_id))
            screen.open()
            screen.ask(is_all=True)
            screen.update()
            Thread(target=follow, args=(screen,), daemon=True).start()
        stack.callback(is_over.set)
        yield


def started(host: Host, count: int) -> list[Started]:
    """Start so many sessions one after another; fewer if the host has no room."""
    found: list[Started] = []
    while len(found) < count and (session := host.start()):
        say(f"{session.kind} {session.seconds:.3f} s")
        found.append(session)
    return found


def measured_bare(count: int) -> list[float]:
    """Return the memory of bare resumes that ran as long as the sessions."""
    with ExitStack() as stack:
        alone = [stack.enter_context(bare_resumes()).resume().pid for _ in range(count)]
        time.sleep(SETTLE_SECONDS)
        return [own_memory_mb(pid) for pid in alone]


def measured_sessions(host: Host, count: int, pause_after: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    sessions = started(host, count)
    pids = [pid_of(session.vm) for session in sessions]
    time.sleep(SETTLE_SECONDS)
    found["running_memory_mb"] = [own_memory_mb(pid) for pid in pids]
    with viewers(host, [session.session_id for session in sessions]):
        time.sleep(VIEWED_SECONDS)
        found["viewed_cpu_percent"] = cpu_percents(pids, SPAN_SECONDS)
    say(f"viewers have left: {pause_after:g} s until the pause")
    found["unviewed_cpu_percent"] = []
    if pause_after:
        until("the pause", lambda: all(_is_paused(host, session) for session in sessions))
        found["unviewed_cpu_percent"] = cpu_percents(pids, SPAN_SECONDS)
    return found


def _is_paused(host: Host, session: Started) -> bool:
    return bool(host.ask("GET", f"/api/vm/{session.vm['vmId']}")["pausedAt"])


def measure(url: str, count: int) -> None:
    from polydev.controller.settings import load_settings

    pause_after = load_settings(CONFIG).vm.pause_after_seconds
    with operated(url) as host:
        host.settle()
        pids = [pid_of(vm) for vm in host.primed()][:count]
        found = {
            "primed_memory_mb": [own_memory_mb(pid) for pid in pids],
            "primed_cpu_percent": cpu_percents(pids, SPAN_SECONDS) if pids else [],
            "bare_memory_mb": measured_bare(count),
        }
        found |= measured_sessions(host, count, pause_after)
    print(json.dumps({name: [round(each, 2) for each in all_] for name, all_ in found.items()}))


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]))
