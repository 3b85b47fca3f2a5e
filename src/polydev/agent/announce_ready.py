"""Notices, without being asked, that the VM became ready; says so on the console and ends."""

from __future__ import annotations

import os

from polydev.agent.vm_facts import VmFacts, announce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.health import HealthChecks
    from polydev.agent.settings import AgentSettings

CPU_SHARE = 5  # rest so many times longer than the last look took of the CPU
MAX_PAUSE_SECONDS = 5.0


def pause_seconds(shortest: float, cpu_seconds: float) -> float:
    """How long to rest: the desktop that is just starting needs the CPU more than we do."""
    return min(max(shortest, CPU_SHARE * cpu_seconds), MAX_PAUSE_SECONDS)


def announce_when_ready(
    health: HealthChecks, settings: AgentSettings, log: Callable[[str], None]
) -> None:
    """Announce that the agent answers, look until all is well, announce that."""
    uptime_seconds = VmFacts(settings.proc, settings.identity).uptime_seconds
    _say(settings, f"polydev: agent answers after {uptime_seconds:.2f} s", log)
    pause = 0.0
    while not health.wait_ready(pause):
        before = _cpu_seconds()
        if health.worth_a_report():
            health.report()
        pause = pause_seconds(settings.watch_pause_seconds, _cpu_seconds() - before)
    _say(settings, f"polydev: ready after {health.first_ready_seconds:.2f} s", log)


def _say(settings: AgentSettings, line: str, log: Callable[[str], None]) -> None:
    try:
        announce(settings.console, line)
    except OSError as error:
        log(f"cannot write to {settings.console}: {error.strerror}: {line}")


def _cpu_seconds() -> float:
    """CPU time of this process and of the systemctl calls that it waited for."""
    return sum(os.times()[:4])
