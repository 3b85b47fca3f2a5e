"""Make VMs match the database, again and again: it acts on the present state, not on messages.

One process of a host is the leader. It reads which VMs hold a slot and gives each a task of its own
for its next step, so that none waits for another. When the process ends, the VMs run on, and the
next leader continues from what it finds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from polydev.controller.entities import Vm, now
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.boot_queue import (
    BootQueueEvents,
    Queued,
    boot_queue,
    memory_shortage,
)
from polydev.controller.machines.cleanup import Cleanup, SlotLocks
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.hypervisor_timeouts import HypervisorWithTimeouts
from polydev.controller.machines.leader_lock import LeaderLock, leader_lock_file
from polydev.controller.machines.login_monitor import LoginStores
from polydev.controller.machines.metrics import MachineMetrics
from polydev.controller.machines.pool import Pool, free_memory_mib
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.controller.machines.vm_lifecycle import VmLifecycle
from polydev.controller.session_and_vm_states import VM_STATES
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.vms import Vms
from polydev.vm.cancel_on_timeout import end, within
from polydev.vm.cpu_time import cpu_sample
from polydev.vm.cpu_wait_time import CpuSample

log = structlog.stdlib.get_logger(__name__)

UNSETTLED = ("creating", "starting", "stopping")


class PeriodicTask:
    """Work that runs in a task of its own: at most every `seconds`, never twice at a time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = 0.0
        self.tasks: tuple[asyncio.Task[None], ...] = ()

    def begin_when_due(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        time = asyncio.get_running_loop().time()
        if time >= self._next and all(task.done() for task in self.tasks):
            self._next = time + self._seconds
            self.tasks = (asyncio.create_task(work()),)


class Driver:
    """Drives the VMs. Each serving process runs it in a task; cancel that task to hand over."""

    def __init__(
        self,
        settings: ControllerSettings,
        vms: Vms,
        sessions: Sessions,
        hypervisor: Hypervisor,
        agent: AgentClient,
        logins: LoginStores,
        metrics: MachineMetrics | None = None,
        *,
        clock: Callable[[], datetime] = now,
        intervals: Intervals | None = None,
        cpu_sample: Callable[[int, float], CpuSample] = cpu_sample,
        free_memory_mib: Callable[[], float] = free_memory_mib,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_step` is called after each step of a VM: its session may have a new event."""
        intervals = intervals or Intervals()
        self._deps = Dependencies(
            settings=settings,
            vms=vms,
            sessions=sessions,
            hypervisor=HypervisorWithTimeouts(hypervisor, intervals),
            agent=agent,
            logins=logins,
            metrics=metrics or MachineMetrics(CollectorRegistry()),
            clock=clock,
            intervals=intervals,
            cpu_sample=cpu_sample,
            free_memory_mib=free_memory_mib,
        )
        self._lead = LeaderLock(leader_lock_file(settings))
        self._locks = SlotLocks()
        self._cleanup = Cleanup(self._deps, self._locks)
        self._on_step = on_step
        self._woken = asyncio.Event()
        self._lifecycles: dict[str, VmLifecycle] = {}
        self._steps: dict[str, asyncio.Task[None]] = {}
        self._cleaning_up = PeriodicTask(intervals.cleanup)
        self._pool = Pool(self._deps)
        self._pooling = PeriodicTask(intervals.tick)
        self._boot_queue_events = BootQueueEvents(sessions)
        self._queueing = PeriodicTask(intervals.busy_tick)
        self._next_expiry = 0.0
        self._problems: dict[str, str] = {}

    @property
    def leads(self) -> bool:
        """Whether this process drives the VMs."""
        return self._lead.is_held

    def wake(self) -> None:
        """Check all VMs now instead of at the next tick, if this process leads."""
        self._woken.set()

    def check_login(self, vm_id: str) -> None:
        """Check the login in a VM now, if this process leads."""
        if vm_id in self._lifecycles:
            self._lifecycles[vm_id].check_login()
        self.wake()

    async def run(self) -> None:
        """Lead as soon as no other process does, until cancelled. VMs run on after that."""
        try:
            while True:
                pause = await self._guarded_tick()
                await self._sleep(pause)
        finally:
            await self._hand_over()

    async def _guarded_tick(self) -> float:
        try:
            pause = await self._tick()
            self._problems.pop("tick", None)
        except Exception as error:
            pause = self._deps.intervals.tick
            self._log_once("tick", error)
        return pause

    def _log_once(self, what: str, error: Exception) -> None:
        """Log each problem once: a database that is down would fill the log."""
        problem = f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
        if problem != self._problems.get(what):
            self._problems[what] = problem
            log.error("driver_failed", part=what, problem=problem, exc_info=error)

    async def _sleep(self, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()
            self._woken.clear()

    async def _tick(self) -> float:
        """Start all work that is due; return the seconds until the next tick."""
        intervals = self._deps.intervals
        if not self._lead.is_held:
            if not self._lead.take():
                return intervals.tick
            log.info("driver_became_leader")
            self._deps.metrics.leading.set(1)
        self._cleaning_up.begin_when_due(self._clean_up)
        await self._expire()
        # A step under way may change its VM's row after it is read here, so that VM is left out.
        at_work = set(self._steps)
        held = await within(intervals.database_limit, self._deps.vms.held(), "listing the VMs")
        self._pooling.begin_when_due(partial(self._fill_pool, held))
        settings, free = self._deps.settings, self._deps.free_memory_mib()
        shortage = memory_shortage(free, settings.vm.least_free_memory_mib)
        queue = boot_queue(held, settings.boots_at_once, shortage)
        self._queueing.begin_when_due(partial(self._write_queue_events, queue))
        for vm in held:
            if vm.id not in at_work and vm.id not in queue:
                self._advance(vm)
        await self._drop_released({vm.id for vm in held})
        self._count(held)
        return intervals.busy_tick if any(vm.state in UNSETTLED for vm in held) else intervals.tick

    async def _expire(self) -> None:
        """End sessions that are complete or expired. A failure here does not hold up the VMs."""
        intervals, time = self._deps.intervals, asyncio.get_running_loop().time()
        if time < self._next_expiry:
            return
        self._next_expiry = time + intervals.tick
        try:
            sessions = self._deps.sessions
            ends = {
                "session_completed": sessions.complete_due,
                "session_expired": sessions.expire_due,
            }
            for event, end_due in ends.items():
                ended = await within(intervals.database_limit, end_due(), "ending sessions")
                for session in ended:
                    log.info(event, session_id=session.id, vm_id=session.vm_id)
            self._problems.pop("expiry", None)
        except Exception as error:
            self._log_once("expiry", error)

    def _advance(self, vm: Vm) -> None:
        if vm.id not in self._lifecycles:
            self._lifecycles[vm.id] = VmLifecycle(vm, self._deps)
        if vm.id not in self._steps and self._lifecycles[vm.id].is_due():
            self._steps[vm.id] = asyncio.create_task(self._step(vm))

    async def _step(self, vm: Vm) -> None:
        moved = False
        try:
            async with self._locks[vm.slot]:
                work = self._lifecycles[vm.id].step(vm)
                moved = await within(self._deps.intervals.step_limit, work, "a VM's step")
        except Exception as error:
            log.exception("vm_step_crashed", vm_id=vm.id, exc_info=error)
        finally:
            del self._steps[vm.id]
            if moved:
                self.wake()
                self._on_step()

    async def _drop_released(self, held: set[str]) -> None:
        for vm_id in self._lifecycles.keys() - held - self._steps.keys():
            await self._lifecycles.pop(vm_id).close()

    async def _clean_up(self) -> None:
        try:
            work = self._cleanup.run()
            await within(self._deps.intervals.step_limit, work, "the cleanup")
        except Exception as error:
            log.exception("cleanup_failed", exc_info=error)

    async def _fill_pool(self, held: Sequence[Vm]) -> None:
        try:
            await within(
                self._deps.intervals.database_limit, self._pool.run(held), "the pool's step"
            )
            self._problems.pop("pool", None)
        except Exception as error:
            self._log_once("pool", error)

    async def _write_queue_events(self, queue: Mapping[str, Queued]) -> None:
        try:
            work = self._boot_queue_events.write(queue)
            await within(self._deps.intervals.database_limit, work, "noting the boot queue")
            self._problems.pop("queue", None)
        except Exception as error:
            self._log_once("queue", error)

    def _count(self, vms: Iterable[Vm]) -> None:
        states = Counter(vm.state for vm in vms)
        for state in VM_STATES:
            self._deps.metrics.held.labels(state).set(states[state])

    async def _hand_over(self) -> None:
        """End all work under way, and only then let another process lead."""
        beside = (self._cleaning_up, self._pooling, self._queueing)
        await end(*self._steps.values(), *(task for each in beside for task in each.tasks))
        for lifecycle in self._lifecycles.values():
            await lifecycle.close()
        self._lifecycles.clear()
        self._steps.clear()
        if self._lead.is_held:
            self._lead.release()
            self._deps.metrics.leading.set(0)
            log.info("driver_released_lead")
