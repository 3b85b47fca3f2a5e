"""The lifecycle of one VM: each call does the next step that its state asks for.

Every step may be repeated, and nothing that this object remembers is needed: another process that
takes over finds it out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from polydev.controller.entities import Vm
from polydev.controller.machines.agent_answers import AgentHealth
from polydev.controller.machines.agent_poller import AgentPoller
from polydev.controller.machines.boot_follower import BootFollower, CpuWaitTracker
from polydev.controller.machines.health_checks import VmHealthChecks
from polydev.controller.machines.hypervisor import Launch, Origin, SlotState
from polydev.controller.machines.login_monitor import (
    LoginMonitor,
    read_back_credentials,
)
from polydev.controller.machines.pause_resume import PauseResume
from polydev.controller.machines.vm_driver_dependencies import Dependencies
from polydev.controller.machines.vm_logs import last_line
from polydev.controller.machines.vm_next_step import (
    MAX_DETAIL_CHARACTERS,
    Step,
    failed_units,
    next_step,
    with_details,
)
from polydev.errors import AgentError, CredentialsError, Error, FilesLeft, VmError

log = structlog.stdlib.get_logger(__name__)

# Without a database or a file system nothing can be noted, and the VM is not the cause.
NOT_THE_VMS_FAULT = (OperationalError, InterfaceError, PoolTimeout, OSError)


class VmLifecycle:
    """One VM, as this process drives it."""

    def __init__(self, vm: Vm, deps: Dependencies) -> None:
        self._deps = deps
        self._agent = AgentPoller(lambda: deps.agent.health(vm.vm_ip))
        self._login = LoginMonitor(deps.logins, vm, deps.intervals.login)
        self._cpu = CpuWaitTracker(deps)
        self._boot = BootFollower(deps, vm, self._agent, self._cpu)
        self._pausing = PauseResume(deps, self._log)
        self._checks = VmHealthChecks(
            deps,
            self._agent,
            self._login,
            self._cpu,
            self._log,
            self._fail,
            self._pausing.pause_if_idle,
        )
        self._tries = 0
        self._retry_at = 0.0
        self._session_id: str | None = None
        self._has_looked = False

    def is_due(self) -> bool:
        return asyncio.get_running_loop().time() >= self._retry_at

    def check_login(self) -> None:
        """Check the login with the next step, even if no health check is due."""
        self._login.is_due_now = True

    async def close(self) -> None:
        await self._agent.close()
        await self._login.close()

    async def step(self, vm: Vm) -> bool:
        """Do the next step. Return whether something changed, so that another step may be due.

        Raises nothing but CancelledError: errors are logged, and the step is tried again.
        """
        try:
            moved = await self._step(vm)
        except Exception as error:
            await self._retry_or_fail(vm, error)
            return False
        self._tries = 0
        return moved

    async def _step(self, vm: Vm) -> bool:
        await self._find_session(vm)
        slot = await self._deps.hypervisor.poll(vm.slot)
        step = next_step(vm, slot, preserve=self._deps.settings.debug_preserve_vms)
        steps: Mapping[Step, Callable[[], Awaitable[bool | None]]] = {
            "evict": lambda: self._evict(vm, slot),
            "start": lambda: self._start(vm),
            "launched": lambda: self._deps.vms.launched(vm.id),
            "prime": lambda: self._pausing.prime(vm),
            "identify": lambda: self._identify(vm),
            "follow": lambda: self._follow(vm, slot),
            "check": lambda: self._checks.check(vm, slot),
            "wake": lambda: self._pausing.wake(vm),
            "ended": lambda: self._ended(vm, slot),
            "end": lambda: self._end(vm, slot),
        }
        return step in steps and await steps[step]() is not False

    async def _evict(self, vm: Vm, slot: SlotState) -> None:
        self._log(vm).warning("orphan_stopped", orphan=slot.vm_id)
        await self._deps.hypervisor.stop(vm.slot)

    async def _start(self, vm: Vm) -> None:
        session = await self._deps.sessions.live_of_vm(vm.id)
        if session is None and not vm.pooled:
            await self._deps.vms.stop(vm.id)
            return
        vm = await self._with_origin(vm)
        session_id = session.id if session else None
        launch = Launch(vm.id, vm.slot, vm.image_digest, session_id, vm.template)
        try:
            await self._deps.hypervisor.start(launch)
        except VmError as error:
            if vm.template is None:
                raise
            await self._pausing.boot_instead(vm, error.message)
            return
        await self._deps.vms.launched(vm.id)
        self._log(vm).info("vm_launched", slot=vm.slot, template=vm.template)

    async def _with_origin(self, vm: Vm) -> Vm:
        """Choose and note the VM's image and template, before a clone of it runs."""
        if vm.template or vm.boots_because or not self._deps.settings.templates:
            return vm
        try:
            origin = (await self._deps.hypervisor.templates()).origin
        except Error as error:
            origin = Origin(vm.image_digest, because=error.message)
        if origin.template is None:
            await self._deps.vms.boots(vm.id, origin.because, origin.image_digest)
        else:
            await self._deps.vms.resumes(vm.id, origin.image_digest, origin.template)
        return replace(vm, image_digest=origin.image_digest, template=origin.template)

    async def _ended(self, vm: Vm, slot: SlotState) -> None:
        reason = self._end_reason(vm, slot)
        if vm.pooled or (vm.state == "starting" and vm.template):
            await self._pausing.boot_instead(vm, reason)
        else:
            await self._fail(vm, reason)

    async def _follow(self, vm: Vm, slot: SlotState) -> bool:
        """Note how far a boot is: its new stages, that it is ready, or why it failed."""
        update = self._boot.update(vm, slot)
        for stage in update.stages:
            await self._deps.vms.stage_reached(vm.id, stage)
            self._log(vm).info("vm_stage", stage=stage)
        if update.is_ready:
            await self._ready(vm)
        elif update.failure:
            await self._fail(vm, update.failure)
        else:
            return bool(update.stages)
        return True

    async def _identify(self, vm: Vm) -> None:
        if await self._pausing.identify(vm, self._session_id):
            self._note_ready(vm)

    async def _ready(self, vm: Vm) -> None:
        await self._deps.vms.ready(vm.id)
        self._note_ready(vm)

    def _note_ready(self, vm: Vm) -> None:
        seconds = (self._deps.clock() - (vm.started_at or vm.created_at)).total_seconds()
        self._deps.metrics.booted.observe(seconds)
        self._log(vm).info("vm_ready", seconds=round(seconds, 3))

    def _end_reason(self, vm: Vm, slot: SlotState) -> str:
        console = self._boot.read_console_to_end()
        if console.boot_error:
            return console.boot_error
        if slot.runs:
            return "the VM ended by itself, and another runs in its slot"
        said = last_line(self._deps.hypervisor.qemu_log(vm.slot, vm.id))[:MAX_DETAIL_CHARACTERS]
        return with_details("the VM ended by itself", ": ".join(filter(None, (slot.detail, said))))

    async def _save_credentials(self, vm: Vm, slot: SlotState) -> None:
        """Store the credentials that the VM has, if its session holds stored ones."""
        logins, runs = self._deps.logins, slot.runs and slot.vm_id == vm.id
        session = await logins.sessions.of_vm(vm.id)
        if session is None or session.stored_credentials is None or not (runs and vm.ready_at):
            return
        if not await logins.injections.is_holder(session.id):
            return
        await self._login.close()  # from now on it must not give them to the VM
        try:
            if vm.paused_at is not None:
                await self._deps.hypervisor.resume(vm.slot, vm.id)
            await read_back_credentials(logins, vm, session)
        except (AgentError, VmError, CredentialsError) as error:
            self._log(vm).warning("credentials_not_read_back", problem=error.message)

    async def _end(self, vm: Vm, slot: SlotState) -> None:
        """Stop the VM and remove its files. The slot is free once no other VM can reach them."""
        hypervisor = self._deps.hypervisor
        keep_logs = vm.reason is not None and self._deps.settings.keep_failed_seconds > 0
        await self._save_credentials(vm, slot)
        await hypervisor.stop(vm.slot)
        try:
            await hypervisor.discard(vm.slot, vm.id, keep_logs=keep_logs)
        except FilesLeft as error:
            self._log(vm).error("vm_files_left", problem=error.message, hint=error.hint)
        await self._deps.vms.released(vm.id)
        self._log(vm).info("vm_released", slot=vm.slot)

    async def _fail(self, vm: Vm, reason: str) -> None:
        console = self._boot.read_console_to_end()
        latest = self._agent.latest
        by_agent = latest.failed_units if isinstance(latest, AgentHealth) else ()
        units = failed_units(console.failed_units, by_agent)
        await self._deps.vms.fail(vm.id, reason, units, console.tail or None)
        self._deps.metrics.failed.labels(vm.state).inc()
        self._log(vm).warning("vm_failed", reason=reason, stage=vm.stage, failed_units=units)

    async def _retry_or_fail(self, vm: Vm, error: Exception) -> None:
        """Log the error; end a VM that cannot start any more, else try again after a pause."""
        self._tries += 1
        pause = self._deps.intervals.retry_after(self._tries)
        self._retry_at = asyncio.get_running_loop().time() + pause
        expected = isinstance(error, (Error, *NOT_THE_VMS_FAULT))
        self._log(vm).warning(
            "vm_step_failed",
            problem=_words(error),
            tries=self._tries,
            retry_seconds=pause,
            exc_info=None if expected else error,
        )
        reason = self._give_up_reason(vm, error)
        if reason is None:
            return
        try:
            await self._fail(vm, reason)
        except Exception as other:
            self._log(vm).warning("vm_step_failed", problem=_words(other))

    def _give_up_reason(self, vm: Vm, error: Exception) -> str | None:
        """Return why a VM that starts gets no more tries; None for one that is up."""
        if isinstance(error, NOT_THE_VMS_FAULT):
            return None
        if vm.state == "creating" and self._tries >= self._deps.intervals.start_tries:
            return f"it could not be started: {_words(error)}"
        if vm.state == "starting":
            late = self._boot.overdue(vm)
            return late and f"{late}; and it could not be followed: {_words(error)}"
        return None

    async def _find_session(self, vm: Vm) -> None:
        if not (self._has_looked or vm.pooled):
            session = await self._deps.sessions.live_of_vm(vm.id)
            self._session_id = session.id if session else None
            self._has_looked = True

    def _log(self, vm: Vm) -> structlog.stdlib.BoundLogger:
        return log.bind(vm_id=vm.id, session_id=self._session_id)


def _words(error: Exception) -> str:
    if isinstance(error, Error):
        return error.message
    if isinstance(error, NOT_THE_VMS_FAULT):
        return f"{type(error).__name__}: {getattr(error, 'orig', None) or error}"
    return f"an unexpected {type(error).__name__}; the controller's log has the details"
