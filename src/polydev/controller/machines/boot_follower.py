"""Follow the boot of one VM: what its console and its agent say, and by which deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polydev.controller.entities import Vm
from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.agent_poller import AgentPoller
from polydev.controller.machines.boot_progress import ConsoleParser, new_stages, overdue
from polydev.controller.machines.hypervisor import SlotState
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_logs import LogReader
from polydev.controller.machines.vm_next_step import (
    Answer,
    agent_problem,
    stage_by_agent,
    with_details,
    wrong_vm,
)
from polydev.vm.boot_stages import Stage
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait_time import NO_WAIT, CpuSample


class CpuWaitTracker:
    """The time that a VM waited for a CPU: since its stage began or, once up, since `restart`.

    last    what `update` found
    """

    def __init__(self, deps: Dependencies) -> None:
        self._deps = deps
        self._watch: CpuWatch | None = None
        self._stage: Stage | None = None
        self.last = NO_WAIT

    def update(self, vm: Vm, slot: SlotState) -> None:
        if slot.pid is not None:
            self.last = self._watch_of(vm, slot.pid).total()

    def restart(self, vm: Vm, slot: SlotState) -> None:
        """Count from now on."""
        self._stage = None
        if slot.pid is not None:
            self._watch_of(vm, slot.pid).total()

    def _watch_of(self, vm: Vm, pid: int) -> CpuWatch:
        def read() -> CpuSample:
            return self._deps.cpu_sample(pid, self._deps.clock().timestamp())

        if self._watch is None or self._stage != vm.stage:
            since = None
            if self._watch is None and vm.state == "starting" and vm.started_at:
                # This process took over in the middle of a boot: count from its beginning.
                since = read().at_start(vm.started_at.timestamp())
            self._watch, self._stage = CpuWatch(read, since), vm.stage
        return self._watch


@dataclass(frozen=True)
class BootUpdate:
    """The changes of a boot since the last update.

    stages      stages that were reached, in order
    is_ready    whether the guest's agent says that the VM is ready
    failure     why the boot has failed; None while it may still succeed
    """

    stages: Sequence[Stage]
    is_ready: bool = False
    failure: str | None = None


class BootFollower:
    """The console, the agent and the deadlines of one VM that boots."""

    def __init__(
        self, deps: Dependencies, vm: Vm, agent: AgentPoller[AgentHealth], cpu: CpuWaitTracker
    ) -> None:
        self._deps = deps
        self._agent = agent
        self._cpu = cpu
        self._log = LogReader(deps.hypervisor.console(vm.slot, vm.id))
        self._failed_answers = 0
        self.console = ConsoleParser()

    def read_console_to_end(self) -> ConsoleParser:
        self.console.feed(self._log.read_to_end())
        return self.console

    def update(self, vm: Vm, slot: SlotState) -> BootUpdate:
        """Read console and agent, judge them, and ask the agent again when that is due."""
        self._cpu.update(vm, slot)
        self.console.feed(self._log.read())
        answer = self._agent.answer()
        seen = {*self.console.seen, stage_by_agent(vm, self._agent.latest)}
        stages = new_stages(vm, seen)
        if answer is not None and stage_by_agent(vm, answer) == "ready":
            return BootUpdate(stages, is_ready=True)
        # Each stage has its own deadline, which counts from the row: next time, if one is new.
        failure = self._failure(vm, answer) or (None if stages else self._too_late(vm))
        if failure is None:
            self._ask(has_network=not seen.isdisjoint(("network", "services", "ready")))
        return BootUpdate(stages, failure=failure)

    def _failure(self, vm: Vm, answer: Answer | None) -> str | None:
        """Say why the VM can never become ready; None where it still may."""
        if self.console.boot_error:
            return self.console.boot_error
        if answer is None:
            return None
        # An agent that has just started may see a unit between two tries: two answers count.
        has_failed = isinstance(answer, AgentHealth) and answer.status == "failed"
        self._failed_answers = self._failed_answers + 1 if has_failed else 0
        if self._failed_answers > 1:
            return with_details("its services failed", agent_problem(answer))
        return wrong_vm(vm, answer)

    def _too_late(self, vm: Vm) -> str | None:
        """Say which stage is overdue, but not before the agent was heard once."""
        late = self.overdue(vm)
        if late is None or self._agent.latest is None:
            return None
        return with_details(late, agent_problem(self._agent.latest))

    def overdue(self, vm: Vm) -> str | None:
        """Say which stage is overdue; None while there is time."""
        deadlines = self._deps.settings.boot_deadline_seconds
        return overdue(vm, deadlines, self._deps.clock(), self._cpu.last)

    def _ask(self, *, has_network: bool) -> None:
        intervals = self._deps.intervals
        self._agent.ask(intervals.ask if has_network else intervals.ask_blind, intervals.ask_share)
