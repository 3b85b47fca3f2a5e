"""The steps of VMs that are paused and resumed: clones of a template, and VMs that nobody uses."""

from __future__ import annotations

import asyncio

from polydev.controller.entities import Vm
from polydev.controller.machines.health_checks import LogOf
from polydev.controller.machines.rfb_client import screen_answers
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_next_step import is_idle, with_details
from polydev.errors import Error, VmError
from polydev.vm.cancel_on_timeout import end, within
from polydev.vm.identity import new_identity


class PauseResume:
    """Each step may be repeated, as all steps of a VM's lifecycle."""

    def __init__(self, deps: Dependencies, log_of: LogOf) -> None:
        self._deps = deps
        self._log_of = log_of

    # Clones

    async def prime(self, vm: Vm) -> None:
        """Let a clone of the pool run until QEMU has translated what a session needs at once."""
        deps = self._deps
        try:
            await within(deps.intervals.prime_limit, self._warm_up(vm), "the warm-up")
        except Error as error:
            await self._remove_from_pool(vm, with_details("it could not be primed", error.message))
            return
        await deps.vms.primed(vm.id)
        self._log_of(vm).info("vm_primed", slot=vm.slot)

    async def _warm_up(self, vm: Vm) -> None:
        """Run the clone for a moment, then pause it, unless a session took it meanwhile.

        Its agent is not asked: for an answer QEMU translates so much of the guest that a waiting
        VM would take twice the memory.
        """
        hypervisor, intervals = self._deps.hypervisor, self._deps.intervals
        time = asyncio.get_running_loop().time
        await hypervisor.resume(vm.slot, vm.id)
        await hypervisor.set_clock(vm.slot, vm.id)
        greeting = asyncio.create_task(screen_answers(vm.vm_ip, intervals.prime_limit))
        runs_until: float | None = None
        try:
            while runs_until is None or time() < runs_until:
                if not (await self._deps.vms.get(vm.id)).pooled:
                    return
                if runs_until is None and greeting.done():
                    greeting.result()
                    runs_until = time() + intervals.primed
                await asyncio.sleep(intervals.busy_tick)
        finally:
            await end(greeting)
        await hypervisor.pause(vm.slot, vm.id)

    async def _remove_from_pool(self, vm: Vm, reason: str) -> None:
        self._log_of(vm).warning("vm_not_pooled", reason=reason)
        self._deps.metrics.failed.labels(vm.state).inc()
        await self._deps.vms.drain(vm.id, reason)

    async def identify(self, vm: Vm, session_id: str | None) -> bool:
        """Make a clone the session's VM: its guest confirms its identity, its screen answers.

        Return False where that failed, so that the VM boots instead.
        """
        hypervisor, limit = self._deps.hypervisor, self._deps.intervals.screen_limit
        identity = new_identity(vm.id, session_id)
        # Sent before the guest is resumed: it reads the identity as soon as it runs.
        identifying = asyncio.create_task(hypervisor.identify(vm.slot, vm.id, identity))
        greeting: asyncio.Task[None] | None = None
        try:
            await hypervisor.resume(vm.slot, vm.id)
            greeting = asyncio.create_task(screen_answers(vm.vm_ip, limit))
            receipt = await identifying
            await greeting
        except VmError as error:
            await self.boot_instead(vm, error.message)
            return False
        finally:
            await end(identifying, *filter(None, [greeting]))
        await self._deps.vms.resumed(vm.id, receipt)
        return True

    async def boot_instead(self, vm: Vm, reason: str) -> None:
        """Let a VM boot whose template is of no use, and note why. End it if it is of the pool."""
        if vm.pooled:
            await self._remove_from_pool(vm, reason)
            return
        self._log_of(vm).warning("vm_not_resumed", template=vm.template, reason=reason)
        await self._deps.hypervisor.stop(vm.slot)
        await self._deps.vms.boots(vm.id, with_details("it could not be resumed", reason))

    # VMs that nobody uses

    async def pause_if_idle(self, vm: Vm) -> bool:
        """Pause a VM that nobody has used for a while, unless a tool logs in. Return whether."""
        deps = self._deps
        if not is_idle(vm, deps.clock(), deps.settings.vm.pause_after_seconds):
            return False
        session = await deps.sessions.live_of_vm(vm.id)
        if session is None or session.has_login_under_way:
            return False
        # Noted first: the checks would end a VM that is paused but noted as running.
        if not await deps.vms.pause(vm):
            return False
        try:
            await deps.hypervisor.pause(vm.slot, vm.id)
        except VmError:
            await deps.vms.woken(vm.id)
            raise
        self._log_of(vm).info("vm_paused")
        return True

    async def wake(self, vm: Vm) -> None:
        hypervisor = self._deps.hypervisor
        await hypervisor.resume(vm.slot, vm.id)
        try:
            await hypervisor.set_clock(vm.slot, vm.id)
        except VmError as error:  # the health checks see a guest that does not answer
            self._log_of(vm).warning("vm_clock_not_set", problem=error.message)
        await self._deps.vms.woken(vm.id)
        self._log_of(vm).info("vm_awake")
