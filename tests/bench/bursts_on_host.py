"""Measure many sessions that start at once: the last start, and the cost while they run.

`./inv bench.burst` sends it to a host, whose controller's Python runs it as root:

    bursts_on_host ADDRESS BURST RUNNING    a burst of so many, and then so many that run, as JSON

A host with a pool has a burst of what waits in its pool, against one start of the same kind; one
without a pool has a burst of clones, against as many bare resumes one after another.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.bench.bare_on_host import bare_resumes
from tests.bench.clones_on_host import (
    SETTLE_SECONDS,
    SPAN_SECONDS,
    cpu_percents,
    own_memory_mb,
    pid_of,
    viewers,
)
from tests.bench.sessions_on_host import Host, Started, at, operated, say, until

ALONE = 5


def burst_of(host: Host, count: int) -> dict[str, Any]:
    """Start so many sessions at once."""
    users = host.users_of(count)
    with ThreadPoolExecutor(count) as pool:
        began = time.perf_counter()
        both = list(pool.map(lambda user: _start(host, user, began), users))
    seen = [(started, seconds) for started, seconds in both if started]
    for started, seconds in seen:
        say(f"{started.kind} {started.seconds:.3f} s, {seconds:.3f} s after the first")
    vms = sorted((at(started.vm["createdAt"]), at(started.vm["readyAt"])) for started, _ in seen)
    ready = [is_ready for _, is_ready in vms]
    return {
        "size": count,
        "refused": count - len(seen),
        "kinds": sorted(started.kind for started, _ in seen),
        "in_order": ready == sorted(ready),
        "seconds": sorted(round(seconds, 4) for _, seconds in seen),
    }


def _start(host: Host, user: str, began: float) -> tuple[Started | None, float]:
    """Start one session; return it and its seconds since the burst began."""
    late = time.perf_counter() - began
    started = host.start_for(user, has_frame=False)
    return started, late + (started.seconds if started else 0)


def pool_burst(host: Host, count: int) -> dict[str, Any]:
    """Measure single starts from the pool, then a burst of all that the pool has."""
    alone = []
    for _ in range(ALONE):
        host.settle()
        (user,) = host.users_of(1)
        if (started := host.start_for(user, has_frame=False)) and started.kind == "pool":
            say(f"one start: {started.seconds:.3f} s")
            alone.append(round(started.seconds, 4))
        host.end_all()
    count = min(count, host.pool_size())
    until(f"a pool of {count}", lambda: len(host.primed()) >= count)
    burst = burst_of(host, count)
    return {"one_seconds": alone, **burst}


def clone_burst(host: Host, count: int) -> dict[str, Any]:
    """Measure bare resumes, then a burst of as many clones."""
    with bare_resumes() as bare:
        bare.timed()
        alone = [round(bare.timed().seconds, 4) for _ in range(count)]
    say(f"bare resumes one after another: {sum(alone):.3f} s")
    return {"bare_seconds": alone, **burst_of(host, count)}


def measured_running(host: Host, count: int) -> dict[str, Any]:
    """Measure so many concurrent sessions with a viewer each, including those of the burst."""
    while len(host.made) < count and (started := host.start()):
        say(f"{started.kind} {started.seconds:.3f} s")
    sessions = [session["id"] for session in host.made]
    vms = [host.ask("GET", f"/api/vm/{session['vmId']}") for session in host.made]
    pids = [pid_of(vm) for vm in vms]
    with viewers(host, sessions):
        say(f"{len(pids)} VMs run, each with a viewer that was answered")
        time.sleep(SETTLE_SECONDS)
        percents = cpu_percents(pids, SPAN_SECONDS)
        memory = [own_memory_mb(pid) for pid in pids]
    states = [host.ask("GET", f"/api/auth/session/{session}")["status"] for session in sessions]
    return {
        "vms": len(pids),
        "up": states.count("vm_created"),
        "memory_mb": [round(each, 1) for each in memory],
        "cpu_percent": [round(each, 2) for each in percents],
    }


def measure(url: str, count: int, running: int) -> None:
    with operated(url) as host:
        found = (pool_burst if host.pool_size() else clone_burst)(host, count)
        found["running"] = measured_running(host, running) if running else None
    print(json.dumps(found))


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
