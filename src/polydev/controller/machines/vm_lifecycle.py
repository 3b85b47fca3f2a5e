"""One VM, moved on: each call does the next thing that is true to be done, and may be repeated.

Nothing that is remembered here counts: a process that comes after this one finds it out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from polydev.controller.machines.agent_client import AgentHealth
from polydev.controller.machines.agent_poller import AgentPoller
from polydev.controller.machines.boot_progress import (
    ConsoleParser,
    new_stages,
    overdue,
    with_wait,
)
from polydev.controller.machines.decisions import (
    MAX_DETAIL_CHARACTERS,
    Answer,
    Step,
    account,
    check_verdict,
    failed_units,
    has_live_heartbeat,
    is_idle,
    is_starting_again,
    is_well,
    next_step,
    stage_by_agent,
    stranger,
    with_account,
)
from polydev.controller.machines.dependencies import Dependencies
from polydev.controller.machines.hypervisor import Launch, Origin, SlotState
from polydev.controller.machines.login_monitor import (
    LoginMonitor,
    read_back_credentials,
)
from polydev.controller.machines.rfb_client import screen_answers
from polydev.controller.machines.vm_logs import LogReader, last_line
from polydev.controller.model import Vm
from polydev.errors import AgentError, CredentialsError, Error, FilesLeft, VmError
from polydev.vm.boot_stages import Stage
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait import NO_WAIT, CpuSample, CpuWait, verdict
from polydev.vm.identity import new_identity
from polydev.vm.timeouts import end, within

log = structlog.stdlib.get_logger(__name__)

# Where there is no database there is nothing to be noted either; a VM is not to blame.
NOT_THE_VMS_FAULT = (OperationalError, InterfaceError, PoolTimeout, OSError)


class VmLifecycle:
    """One VM in the hands of this process."""

    def __init__(self, vm: Vm, deps: Dependencies) -> None:
        self._deps = deps
        self._agent = AgentPoller(lambda: deps.agent.health(vm.vm_ip))
        self._login = LoginMonitor(deps.logins, vm, deps.intervals.login)
        self._console_log = LogReader(deps.hypervisor.console(vm.slot, vm.id))
        self._boot_console = ConsoleParser()
        self._given_up = 0
        self._tries = 0
        self._retry_at = 0.0
        self._session_id: str | None = None
        self._has_looked = False
        self._cpu: CpuWatch | None = None
        self._cpu_stage: Stage | None = None
        self._wait = NO_WAIT
        self._starting_since: datetime | None = None

    def is_due(self) -> bool:
        return asyncio.get_running_loop().time() >= self._retry_at

    def follow_login(self) -> None:
        """Look at its login with the next step, which may be before the next check."""
        self._login.is_news = True

    async def close(self) -> None:
        await self._agent.close()
        await self._login.close()

    async def step(self, vm: Vm) -> bool:
        """Do the next thing; whether something came of it that may call for the next at once.

        Never raises but on cancellation: what goes wrong is logged, told, and tried again.
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
            "prime": lambda: self._prime(vm),
            "identify": lambda: self._identify(vm),
            "follow": lambda: self._follow(vm, slot),
            "check": lambda: self._check(vm, slot),
            "wake": lambda: self._wake(vm),
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
            await self._boot_instead(vm, error.message)
            return
        await self._deps.vms.launched(vm.id)
        self._log(vm).info("vm_launched", slot=vm.slot, template=vm.template)

    async def _with_origin(self, vm: Vm) -> Vm:
        """The VM made of what is there now, noted before a clone runs that nobody knows as one."""
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

    async def _prime(self, vm: Vm) -> None:
        """Let a clone of the pool run until what a session needs at once has been translated."""
        deps = self._deps
        try:
            await within(deps.intervals.prime_limit, self._warm_up(vm), "its first moments")
        except Error as error:
            await self._remove_from_pool(vm, with_account("it could not be primed", error.message))
            return
        await deps.vms.primed(vm.id)
        self._log(vm).info("vm_primed", slot=vm.slot)

    async def _warm_up(self, vm: Vm) -> None:
        """Pause it in the end, unless a session took it meanwhile, which does not wait for more.

        Its agent is not asked: an answer has so much of the guest translated that a VM which
        waits would have twice the memory.
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
        self._log(vm).warning("vm_not_pooled", reason=reason)
        self._deps.metrics.failed.labels(vm.state).inc()
        await self._deps.vms.drain(vm.id, reason)

    async def _identify(self, vm: Vm) -> None:
        """A clone is the session's VM once its guest has said so and its screen answers."""
        hypervisor, limit = self._deps.hypervisor, self._deps.intervals.screen_limit
        identity = new_identity(vm.id, self._session_id)
        # A guest that is paused hears this once it runs on.
        identifying = asyncio.create_task(hypervisor.identify(vm.slot, vm.id, identity))
        greeting: asyncio.Task[None] | None = None
        try:
            await hypervisor.resume(vm.slot, vm.id)
            greeting = asyncio.create_task(screen_answers(vm.vm_ip, limit))
            receipt = await identifying
            await greeting
        except VmError as error:
            await self._boot_instead(vm, error.message)
            return
        finally:
            await end(identifying, *filter(None, [greeting]))
        await self._deps.vms.resumed(vm.id, receipt)
        self._note_ready(vm)

    async def _boot_instead(self, vm: Vm, reason: str) -> None:
        """Of a template that is of no use now: its VM boots, and says why.

        One of the pool ends instead: another can be made later.
        """
        if vm.pooled:
            await self._remove_from_pool(vm, reason)
            return
        self._log(vm).warning("vm_not_resumed", template=vm.template, reason=reason)
        await self._deps.hypervisor.stop(vm.slot)
        await self._deps.vms.boots(vm.id, with_account("it could not be resumed", reason))

    async def _ended(self, vm: Vm, slot: SlotState) -> None:
        reason = self._end_reason(vm, slot)
        if vm.pooled or (vm.state == "starting" and vm.template):
            await self._boot_instead(vm, reason)
        else:
            await self._fail(vm, reason)

    async def _follow(self, vm: Vm, slot: SlotState) -> bool:
        """Go along with a boot: what its console and its agent say, and by when."""
        self._wait = self._cpu_wait(vm, slot)
        self._boot_console.feed(self._console_log.read())
        answer = self._agent.answer()
        seen = {*self._boot_console.seen, stage_by_agent(vm, self._agent.latest)}
        told = new_stages(vm, seen)
        for stage in told:
            await self._deps.vms.stage_reached(vm.id, stage)
            self._log(vm).info("vm_stage", stage=stage)
        if answer is not None and stage_by_agent(vm, answer) == "ready":
            await self._ready(vm)
            return True
        # With a new stage the deadline is another; the row says which.
        reason = self._boot_failure(vm, answer) or (None if told else self._overdue(vm))
        if reason:
            await self._fail(vm, reason)
            return True
        self._ask_booting(seen)
        return bool(told)

    async def _ready(self, vm: Vm) -> None:
        await self._deps.vms.ready(vm.id)
        self._note_ready(vm)

    def _note_ready(self, vm: Vm) -> None:
        seconds = (self._deps.clock() - (vm.started_at or vm.created_at)).total_seconds()
        self._deps.metrics.booted.observe(seconds)
        self._log(vm).info("vm_ready", seconds=round(seconds, 3))

    def _boot_failure(self, vm: Vm, answer: Answer | None) -> str | None:
        """Why waiting longer can change nothing."""
        if self._boot_console.gave_up:
            return self._boot_console.gave_up
        if answer is None:
            return None
        # An agent that only just came up may see a unit between two tries: it is asked twice.
        has_failed = isinstance(answer, AgentHealth) and answer.status == "failed"
        self._given_up = self._given_up + 1 if has_failed else 0
        if self._given_up > 1:
            return with_account("its services failed", account(answer))
        return stranger(vm, answer)

    def _overdue(self, vm: Vm) -> str | None:
        """What did not come in time. Who has only just begun to look hears the agent first."""
        settings = self._deps.settings
        deadlines = settings.boot_deadline_seconds
        late = overdue(vm, deadlines, self._deps.clock(), self._wait)
        if late is None or self._agent.latest is None:
            return None
        return with_account(late, account(self._agent.latest))

    def _ask_booting(self, seen: set[Stage]) -> None:
        intervals = self._deps.intervals
        has_network = not seen.isdisjoint(("network", "services", "ready"))
        self._agent.ask(intervals.ask if has_network else intervals.ask_blind, intervals.ask_share)

    def _cpu_wait(self, vm: Vm, slot: SlotState) -> CpuWait:
        """The VM's wait for a CPU since its stage began or, if it is up, since it was well last."""
        pid = slot.pid
        if pid is None:
            return self._wait

        def read() -> CpuSample:
            return self._deps.cpu_sample(pid, self._deps.clock().timestamp())

        if self._cpu is None or self._cpu_stage != vm.stage:
            since = None
            if self._cpu is None and vm.state == "starting" and vm.started_at:
                # Who takes over in the middle of a boot knows what the whole of it waited.
                since = read().at_start(vm.started_at.timestamp())
            self._cpu, self._cpu_stage = CpuWatch(read, since), vm.stage
        return self._cpu.total()

    async def _check(self, vm: Vm, slot: SlotState) -> bool:
        """Ask a VM that is up how it is, now and then."""
        answer = self._agent.answer()
        if answer is None:
            self._agent.ask(self._deps.settings.vm_check.every_seconds)
            # Only a VM that said who it is may be given credentials, or says whose it has.
            is_known = isinstance(self._agent.latest, AgentHealth)
            return is_known and self._login.look(checked=False)
        other = stranger(vm, answer)
        if other:
            await self._fail(vm, other)
            return True
        moved = isinstance(answer, AgentHealth) and self._login.look(checked=True)
        self._wait = self._cpu_wait(vm, slot)
        well = self._may_start_again(answer) or is_well(answer)
        if well:
            self._cpu_stage = None
            self._cpu_wait(vm, slot)  # from here on it counts for the next checks
        count = await self._deps.vms.checked(vm.id, well)
        if count == vm.failed_checks == 0:
            return await self._pause_if_idle(vm) or moved
        await self._act_on_check(vm, count, answer)
        return True

    async def _pause_if_idle(self, vm: Vm) -> bool:
        """Whether it is paused now: nobody has looked for a while, and no tool logs in."""
        deps = self._deps
        if not is_idle(vm, deps.clock(), deps.settings.vm.pause_after_seconds):
            return False
        session = await deps.sessions.live_of_vm(vm.id)
        if session is None or session.has_login_under_way:
            return False
        # Noted first: a VM that stands although it is to run would be found dead.
        if not await deps.vms.pause(vm):
            return False
        try:
            await deps.hypervisor.pause(vm.slot, vm.id)
        except VmError:
            await deps.vms.woken(vm.id)
            raise
        self._log(vm).info("vm_paused")
        return True

    async def _wake(self, vm: Vm) -> None:
        hypervisor = self._deps.hypervisor
        await hypervisor.resume(vm.slot, vm.id)
        try:
            await hypervisor.set_clock(vm.slot, vm.id)
        except VmError as error:  # its checks say more of it, and end it if need be
            self._log(vm).warning("vm_clock_not_set", problem=error.message)
        await self._deps.vms.woken(vm.id)
        self._log(vm).info("vm_awake")

    def _may_start_again(self, answer: Answer) -> bool:
        """Whether its services are starting again, as a closed browser does, and not for long.

        They have as long as at boot.
        """
        if is_well(answer):
            self._starting_since = None
        if not is_starting_again(answer):
            return False
        now = self._deps.clock()
        self._starting_since = self._starting_since or now
        limit = self._deps.settings.boot_deadline_seconds.ready
        return (now - self._starting_since).total_seconds() < limit

    async def _act_on_check(self, vm: Vm, count: int, answer: Answer) -> None:
        settings = self._deps.settings
        session = await self._deps.sessions.live_of_vm(vm.id)
        live = settings.session.heartbeat_live_seconds
        is_watched = has_live_heartbeat(session, self._deps.clock(), live)
        limit = settings.vm_check.failures
        is_protected = is_watched or settings.debug_preserve_vms
        judged = check_verdict(
            vm.failed_checks, count, limit, protected=is_protected, wait=self._wait
        )
        late = verdict(self._wait.over(count), limit)
        words = with_wait(f"{count} health checks in a row failed", self._wait, late)
        reason = with_account(words, account(answer))
        self._log(vm).info("vm_checked", verdict=judged, failed=count, why=account(answer))
        if judged == "fail":
            await self._fail(vm, reason)
        elif judged == "unhealthy" and session:
            await self._deps.sessions.add_news(session.id, "unhealthy", {"reason": reason})
        elif judged == "recovered" and session:
            await self._deps.sessions.add_news(session.id, "healthy", {})

    def _end_reason(self, vm: Vm, slot: SlotState) -> str:
        self._boot_console.feed(self._console_log.read_to_end())
        if self._boot_console.gave_up:
            return self._boot_console.gave_up
        if slot.runs:
            return "the VM ended by itself, and another runs in its slot"
        said = last_line(self._deps.hypervisor.qemu_log(vm.slot, vm.id))[:MAX_DETAIL_CHARACTERS]
        return with_account("the VM ended by itself", ": ".join(filter(None, (slot.detail, said))))

    async def _save_credentials(self, vm: Vm, slot: SlotState) -> None:
        """Store what the VM has of credentials that its session holds, if they can be had."""
        logins, runs = self._deps.logins, slot.runs and slot.vm_id == vm.id
        session = await logins.sessions.of_vm(vm.id)
        if session is None or session.stored_credentials is None or not (runs and vm.ready_at):
            return
        if not await logins.injections.is_holder(session.id):
            return
        await self._login.close()  # it must not give them to the VM from here on
        try:
            if vm.paused_at is not None:
                await self._deps.hypervisor.resume(vm.slot, vm.id)
            await read_back_credentials(logins, vm, session)
        except (AgentError, VmError, CredentialsError) as error:
            self._log(vm).warning("credentials_not_read_back", problem=error.message)

    async def _end(self, vm: Vm, slot: SlotState) -> None:
        """Stop and remove all of it. Its slot is free once no other VM can come to its files."""
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
        self._boot_console.feed(self._console_log.read_to_end())
        latest = self._agent.latest
        by_agent = latest.failed_units if isinstance(latest, AgentHealth) else ()
        units = failed_units(self._boot_console.failed_units, by_agent)
        await self._deps.vms.fail(vm.id, reason, units, self._boot_console.tail or None)
        self._deps.metrics.failed.labels(vm.state).inc()
        self._log(vm).warning("vm_failed", reason=reason, stage=vm.stage, failed_units=units)

    async def _retry_or_fail(self, vm: Vm, error: Exception) -> None:
        """Log it, and end a VM that cannot come up any more; another is tried again."""
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
        """Why a VM that comes up is not worth more tries; one that is up always is."""
        if isinstance(error, NOT_THE_VMS_FAULT):
            return None
        if vm.state == "creating" and self._tries >= self._deps.intervals.start_tries:
            return f"it could not be started: {_words(error)}"
        if vm.state == "starting":
            deadlines = self._deps.settings.boot_deadline_seconds
            late = overdue(vm, deadlines, self._deps.clock(), self._wait)
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
    return f"an unexpected {type(error).__name__}; the controller's log has more"
