"""Announce on the guest's console that the VM is ready, then prepare for logins."""

from __future__ import annotations

import os

from polydev.agent.vm_facts import VmFacts, announce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.health import HealthChecks
    from polydev.agent.settings import AgentSettings

CPU_SHARE = 5  # the pause is this many times the CPU time of the last check
MAX_PAUSE_SECONDS = 5.0


def pause_seconds(shortest: float, cpu_seconds: float) -> float:
    """Return the pause before the next check; a starting desktop needs the CPU more."""
    return min(max(shortest, CPU_SHARE * cpu_seconds), MAX_PAUSE_SECONDS)


def announce_when_ready(
    health: HealthChecks, settings: AgentSettings, log: Callable[[str], None]
) -> None:
    """Announce that the agent answers; check until all is well, and announce that."""
    uptime_seconds = VmFacts(settings.proc, settings.identity).uptime_seconds
    _say(settings, f"polydev: agent answers after {uptime_seconds:.2f} s", log)
    pause = 0.0
    while not health.wait_ready(pause):
        before = _cpu_seconds()
        if health.may_be_ready():
            health.report()
        pause = pause_seconds(settings.watch_pause_seconds, _cpu_seconds() - before)
    _say(settings, f"polydev: ready after {health.first_ready_seconds:.2f} s", log)
    _prepare_logins(settings, log)


def _prepare_logins(settings: AgentSettings, log: Callable[[str], None]) -> None:
    """Import what logins need and have their server start, so that clones have both in memory."""
    import polydev.agent.login_routes  # noqa: F401
    from polydev.agent.errors import CheckFailed
    from polydev.agent.outgoing_connection import Stream

    try:
        Stream(settings.logins_socket, settings.check_timeout_seconds).close()
    except CheckFailed as failure:
        log(f"logins cannot be started: {failure}")


def _say(settings: AgentSettings, line: str, log: Callable[[str], None]) -> None:
    try:
        announce(settings.console, line)
    except OSError as error:
        log(f"cannot write to {settings.console}: {error.strerror}: {line}")


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its systemctl calls."""
    return sum(os.times()[:4])
