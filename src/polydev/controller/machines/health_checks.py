"""The health checks of one VM that is up, and what follows from those that fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog

from polydev.controller.entities import Vm
from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.agent_poller import AgentPoller
from polydev.controller.machines.boot_follower import CpuWaitTracker
from polydev.controller.machines.boot_progress import with_wait
from polydev.controller.machines.hypervisor import SlotState
from polydev.controller.machines.login_monitor import LoginMonitor
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_next_step import (
    Answer,
    agent_problem,
    check_verdict,
    has_live_heartbeat,
    is_starting_again,
    is_well,
    with_details,
    wrong_vm,
)
from polydev.vm.cpu_wait_time import verdict

LogOf = Callable[[Vm], structlog.stdlib.BoundLogger]


class VmHealthChecks:
    """Asks a VM's agent now and then; `fail` ends a VM for a reason."""

    def __init__(
        self,
        deps: Dependencies,
        agent: AgentPoller[AgentHealth],
        login: LoginMonitor,
        cpu: CpuWaitTracker,
        log_of: LogOf,
        fail: Callable[[Vm, str], Awaitable[None]],
        pause_if_idle: Callable[[Vm], Awaitable[bool]],
    ) -> None:
        self._deps = deps
        self._agent = agent
        self._login = login
        self._cpu = cpu
        self._log_of = log_of
        self._fail = fail
        self._pause_if_idle = pause_if_idle
        self._starting_since: datetime | None = None

    async def check(self, vm: Vm, slot: SlotState) -> bool:
        """Ask the agent, or judge its answer. Return whether something has changed."""
        answer = self._agent.answer()
        if answer is None:
            self._agent.ask(self._deps.settings.vm_check.every_seconds)
            # Credentials go to a VM, and are read from it, only once it has said which one it is.
            is_known = isinstance(self._agent.latest, AgentHealth)
            return is_known and self._login.check(after_health_check=False)
        other = wrong_vm(vm, answer)
        if other:
            await self._fail(vm, other)
            return True
        has_changed = isinstance(answer, AgentHealth) and self._login.check(after_health_check=True)
        self._cpu.update(vm, slot)
        is_fine = self._is_restarting(answer) or is_well(answer)
        if is_fine:
            self._cpu.restart(vm, slot)
        count = await self._deps.vms.checked(vm.id, is_fine)
        if count == vm.failed_checks == 0:
            return await self._pause_if_idle(vm) or has_changed
        await self._act(vm, count, answer)
        return True

    def _is_restarting(self, answer: Answer) -> bool:
        """Whether services start again, as after a closed browser; for as long as at boot."""
        if is_well(answer):
            self._starting_since = None
        if not is_starting_again(answer):
            return False
        now = self._deps.clock()
        self._starting_since = self._starting_since or now
        limit = self._deps.settings.boot_deadline_seconds.ready
        return (now - self._starting_since).total_seconds() < limit

    async def _act(self, vm: Vm, count: int, answer: Answer) -> None:
        """End the VM after too many failed checks, or tell its session about its health."""
        settings = self._deps.settings
        session = await self._deps.sessions.live_of_vm(vm.id)
        live = settings.session.heartbeat_live_seconds
        is_in_use = has_live_heartbeat(session, self._deps.clock(), live)
        limit = settings.vm_check.failures
        is_protected = is_in_use or settings.debug_preserve_vms
        wait = self._cpu.last
        judged = check_verdict(vm.failed_checks, count, limit, protected=is_protected, wait=wait)
        late = verdict(wait.over(count), limit)
        words = with_wait(f"{count} health checks in a row failed", wait, late)
        reason = with_details(words, agent_problem(answer))
        self._log_of(vm).info("vm_checked", verdict=judged, failed=count, why=agent_problem(answer))
        if judged == "fail":
            await self._fail(vm, reason)
        elif judged == "unhealthy" and session:
            await self._deps.sessions.add_news(session.id, "unhealthy", {"reason": reason})
        elif judged == "recovered" and session:
            await self._deps.sessions.add_news(session.id, "healthy", {})
