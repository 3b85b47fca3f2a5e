"""One VM, moved on: each call does the next thing that is true to be done, and may be repeated.

Nothing that is remembered here counts: a process that comes after this one finds it out again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from polydev.controller.machines.agent_client import AgentClient, AgentHealth
from polydev.controller.machines.console import LogReader, last_line
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
from polydev.controller.machines.figures import MachineFigures
from polydev.controller.machines.following import (
    SerialFollower,
    overdue,
    stages_to_tell,
    with_wait,
)
from polydev.controller.machines.hypervisor import Hypervisor, Launch, Origin, SlotState
from polydev.controller.machines.login import LoginStores, LoginWatch, bring_back
from polydev.controller.machines.pace import Pace
from polydev.controller.machines.screen import screen_answers
from polydev.controller.machines.watch import AgentWatch
from polydev.controller.model import Vm
from polydev.controller.settings import Settings
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.vms import Vms
from polydev.errors import AgentError, CredentialsError, Error, FilesLeft, VmError
from polydev.vm.boot_stages import Stage
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait import NO_WAIT, CpuSample, CpuWait, verdict
from polydev.vm.identity import new_identity
from polydev.vm.timeouts import end, within

log = structlog.stdlib.get_logger(__name__)

# Where there is no database there is nothing to be noted either; a VM is not to blame.
NOT_THE_VMS_FAULT = (OperationalError, InterfaceError, PoolTimeout, OSError)


@dataclass(frozen=True)
class Means:
    """What all VMs are tended with.

    cpu_sample  reads the CPU times of a process, given the time now
    free_memory_mib     what programs on the host could have now
    """

    settings: Settings
    vms: Vms
    sessions: Sessions
    hypervisor: Hypervisor
    agent: AgentClient
    logins: LoginStores
    figures: MachineFigures
    clock: Callable[[], datetime]
    pace: Pace
    cpu_sample: Callable[[int, float], CpuSample]
    free_memory_mib: Callable[[], float]


class Tending:
    """One VM in the hands of this process."""

    def __init__(self, vm: Vm, means: Means) -> None:
        self._means = means
        self._watch = AgentWatch(lambda: means.agent.health(vm.vm_ip))
        self._login = LoginWatch(means.logins, vm, means.pace.login)
        self._console = LogReader(means.hypervisor.console(vm.slot, vm.id))
        self._serial = SerialFollower()
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
        await self._watch.close()
        await self._login.close()

    async def step(self, vm: Vm) -> bool:
        """Do the next thing; whether something came of it that may call for the next at once.

        Never raises but on cancellation: what goes wrong is logged, told, and tried again.
        """
        try:
            moved = await self._step(vm)
        except Exception as error:
            await self._went_wrong(vm, error)
            return False
        self._tries = 0
        return moved

    async def _step(self, vm: Vm) -> bool:
        await self._find_session(vm)
        slot = await self._means.hypervisor.poll(vm.slot)
        step = next_step(vm, slot, preserve=self._means.settings.debug_preserve_vms)
        steps: Mapping[Step, Callable[[], Awaitable[bool | None]]] = {
            "evict": lambda: self._evict(vm, slot),
            "start": lambda: self._start(vm),
            "launched": lambda: self._means.vms.launched(vm.id),
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
        await self._means.hypervisor.stop(vm.slot)

    async def _start(self, vm: Vm) -> None:
        session = await self._means.sessions.live_of_vm(vm.id)
        if session is None and not vm.pooled:
            await self._means.vms.stop(vm.id)
            return
        vm = await self._with_origin(vm)
        session_id = session.id if session else None
        launch = Launch(vm.id, vm.slot, vm.image_digest, session_id, vm.template)
        try:
            await self._means.hypervisor.start(launch)
        except VmError as error:
            if vm.template is None:
                raise
            await self._boot_instead(vm, error.message)
            return
        await self._means.vms.launched(vm.id)
        self._log(vm).info("vm_launched", slot=vm.slot, template=vm.template)

    async def _with_origin(self, vm: Vm) -> Vm:
        """The VM made of what is there now, noted before a clone runs that nobody knows as one."""
        if vm.template or vm.boots_because or not self._means.settings.templates:
            return vm
        try:
            origin = (await self._means.hypervisor.templates()).origin
        except Error as error:
            origin = Origin(vm.image_digest, because=error.message)
        if origin.template is None:
            await self._means.vms.boots(vm.id, origin.because, origin.image_digest)
        else:
            await self._means.vms.resumes(vm.id, origin.image_digest, origin.template)
        return replace(vm, image_digest=origin.image_digest, template=origin.template)

    async def _prime(self, vm: Vm) -> None:
        """Let a clone of the pool run until what a session needs at once has been translated."""
        means = self._means
        try:
            await within(means.pace.prime_limit, self._run_for_a_moment(vm), "its first moments")
        except Error as error:
            await self._leave_the_pool(vm, with_account("it could not be primed", error.message))
            return
        await means.vms.primed(vm.id)
        self._log(vm).info("vm_primed", slot=vm.slot)

    async def _run_for_a_moment(self, vm: Vm) -> None:
        """Pause it in the end, unless a session took it meanwhile, which does not wait for more.

        Its agent is not asked: an answer has so much of the guest translated that a VM which
        waits would have twice the memory.
        """
        hypervisor, pace = self._means.hypervisor, self._means.pace
        time = asyncio.get_running_loop().time
        await hypervisor.resume(vm.slot, vm.id)
        await hypervisor.set_clock(vm.slot, vm.id)
        greeting = asyncio.create_task(screen_answers(vm.vm_ip, pace.prime_limit))
        runs_until: float | None = None
        try:
            while runs_until is None or time() < runs_until:
                if not (await self._means.vms.get(vm.id)).pooled:
                    return
                if runs_until is None and greeting.done():
                    greeting.result()
                    runs_until = time() + pace.primed
                await asyncio.sleep(pace.busy_tick)
        finally:
            await end(greeting)
        await hypervisor.pause(vm.slot, vm.id)

    async def _leave_the_pool(self, vm: Vm, reason: str) -> None:
        self._log(vm).warning("vm_not_pooled", reason=reason)
        self._means.figures.failed.labels(vm.state).inc()
        await self._means.vms.drain(vm.id, reason)

    async def _identify(self, vm: Vm) -> None:
        """A clone is the session's VM once its guest has said so and its screen answers."""
        hypervisor, limit = self._means.hypervisor, self._means.pace.screen_limit
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
        await self._means.vms.resumed(vm.id, receipt)
        self._note_ready(vm)

    async def _boot_instead(self, vm: Vm, reason: str) -> None:
        """Of a template that is of no use now: its VM boots, and says why.

        One of the pool ends instead: another can be made later.
        """
        if vm.pooled:
            await self._leave_the_pool(vm, reason)
            return
        self._log(vm).warning("vm_not_resumed", template=vm.template, reason=reason)
        await self._means.hypervisor.stop(vm.slot)
        await self._means.vms.boots(vm.id, with_account("it could not be resumed", reason))

    async def _ended(self, vm: Vm, slot: SlotState) -> None:
        reason = self._why_it_ended(vm, slot)
        if vm.pooled or (vm.state == "starting" and vm.template):
            await self._boot_instead(vm, reason)
        else:
            await self._fail(vm, reason)

    async def _follow(self, vm: Vm, slot: SlotState) -> bool:
        """Go along with a boot: what its console and its agent say, and by when."""
        self._wait = self._waited(vm, slot)
        self._serial.feed(self._console.read())
        answer = self._watch.answer()
        seen = {*self._serial.seen, stage_by_agent(vm, self._watch.latest)}
        told = stages_to_tell(vm, seen)
        for stage in told:
            await self._means.vms.stage_reached(vm.id, stage)
            self._log(vm).info("vm_stage", stage=stage)
        if answer is not None and stage_by_agent(vm, answer) == "ready":
            await self._ready(vm)
            return True
        # With a new stage the deadline is another; the row says which.
        reason = self._hopeless(vm, answer) or (None if told else self._late(vm))
        if reason:
            await self._fail(vm, reason)
            return True
        self._ask_booting(seen)
        return bool(told)

    async def _ready(self, vm: Vm) -> None:
        await self._means.vms.ready(vm.id)
        self._note_ready(vm)

    def _note_ready(self, vm: Vm) -> None:
        seconds = (self._means.clock() - (vm.started_at or vm.created_at)).total_seconds()
        self._means.figures.booted.observe(seconds)
        self._log(vm).info("vm_ready", seconds=round(seconds, 3))

    def _hopeless(self, vm: Vm, answer: Answer | None) -> str | None:
        """Why waiting longer can change nothing."""
        if self._serial.gave_up:
            return self._serial.gave_up
        if answer is None:
            return None
        # An agent that only just came up may see a unit between two tries: it is asked twice.
        has_failed = isinstance(answer, AgentHealth) and answer.status == "failed"
        self._given_up = self._given_up + 1 if has_failed else 0
        if self._given_up > 1:
            return with_account("its services failed", account(answer))
        return stranger(vm, answer)

    def _late(self, vm: Vm) -> str | None:
        """What did not come in time. Who has only just begun to look hears the agent first."""
        settings = self._means.settings
        deadlines = settings.boot_deadline_seconds
        late = overdue(vm, deadlines, self._means.clock(), self._wait)
        if late is None or self._watch.latest is None:
            return None
        return with_account(late, account(self._watch.latest))

    def _ask_booting(self, seen: set[Stage]) -> None:
        pace = self._means.pace
        has_network = not seen.isdisjoint(("network", "services", "ready"))
        self._watch.ask(pace.ask if has_network else pace.ask_blind, pace.ask_share)

    def _waited(self, vm: Vm, slot: SlotState) -> CpuWait:
        """The VM's wait for a CPU since its stage began or, if it is up, since it was well last."""
        pid = slot.pid
        if pid is None:
            return self._wait

        def read() -> CpuSample:
            return self._means.cpu_sample(pid, self._means.clock().timestamp())

        if self._cpu is None or self._cpu_stage != vm.stage:
            since = None
            if self._cpu is None and vm.state == "starting" and vm.started_at:
                # Who takes over in the middle of a boot knows what the whole of it waited.
                since = read().at_start(vm.started_at.timestamp())
            self._cpu, self._cpu_stage = CpuWatch(read, since), vm.stage
        return self._cpu.total()

    async def _check(self, vm: Vm, slot: SlotState) -> bool:
        """Ask a VM that is up how it is, now and then."""
        answer = self._watch.answer()
        if answer is None:
            self._watch.ask(self._means.settings.vm_check.every_seconds)
            # Only a VM that said who it is may be given credentials, or says whose it has.
            is_known = isinstance(self._watch.latest, AgentHealth)
            return is_known and self._login.look(checked=False)
        other = stranger(vm, answer)
        if other:
            await self._fail(vm, other)
            return True
        moved = isinstance(answer, AgentHealth) and self._login.look(checked=True)
        self._wait = self._waited(vm, slot)
        well = self._may_start_again(answer) or is_well(answer)
        if well:
            self._cpu_stage = None
            self._waited(vm, slot)  # from here on it counts for the next checks
        count = await self._means.vms.checked(vm.id, well)
        if count == vm.failed_checks == 0:
            return await self._pause_if_idle(vm) or moved
        await self._judge(vm, count, answer)
        return True

    async def _pause_if_idle(self, vm: Vm) -> bool:
        """Whether it is paused now: nobody has looked for a while, and no tool logs in."""
        means = self._means
        if not is_idle(vm, means.clock(), means.settings.vm.pause_after_seconds):
            return False
        session = await means.sessions.live_of_vm(vm.id)
        if session is None or session.has_login_under_way:
            return False
        # Noted first: a VM that stands although it is to run would be found dead.
        if not await means.vms.pause(vm):
            return False
        try:
            await means.hypervisor.pause(vm.slot, vm.id)
        except VmError:
            await means.vms.woken(vm.id)
            raise
        self._log(vm).info("vm_paused")
        return True

    async def _wake(self, vm: Vm) -> None:
        hypervisor = self._means.hypervisor
        await hypervisor.resume(vm.slot, vm.id)
        try:
            await hypervisor.set_clock(vm.slot, vm.id)
        except VmError as error:  # its checks say more of it, and end it if need be
            self._log(vm).warning("vm_clock_not_set", problem=error.message)
        await self._means.vms.woken(vm.id)
        self._log(vm).info("vm_awake")

    def _may_start_again(self, answer: Answer) -> bool:
        """Whether its services are starting again, as a closed browser does, and not for long.

        They have as long as at boot.
        """
        if is_well(answer):
            self._starting_since = None
        if not is_starting_again(answer):
            return False
        now = self._means.clock()
        self._starting_since = self._starting_since or now
        limit = self._means.settings.boot_deadline_seconds.ready
        return (now - self._starting_since).total_seconds() < limit

    async def _judge(self, vm: Vm, count: int, answer: Answer) -> None:
        settings = self._means.settings
        session = await self._means.sessions.live_of_vm(vm.id)
        live = settings.session.heartbeat_live_seconds
        is_watched = has_live_heartbeat(session, self._means.clock(), live)
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
            await self._means.sessions.add_news(session.id, "unhealthy", {"reason": reason})
        elif judged == "recovered" and session:
            await self._means.sessions.add_news(session.id, "healthy", {})

    def _why_it_ended(self, vm: Vm, slot: SlotState) -> str:
        self._serial.feed(self._console.read_to_end())
        if self._serial.gave_up:
            return self._serial.gave_up
        if slot.runs:
            return "the VM ended by itself, and another runs in its slot"
        said = last_line(self._means.hypervisor.qemu_log(vm.slot, vm.id))[:MAX_DETAIL_CHARACTERS]
        return with_account("the VM ended by itself", ": ".join(filter(None, (slot.detail, said))))

    async def _bring_back(self, vm: Vm, slot: SlotState) -> None:
        """Store what the VM has of credentials that its session holds, if they can be had."""
        logins, runs = self._means.logins, slot.runs and slot.vm_id == vm.id
        session = await logins.sessions.of_vm(vm.id)
        if session is None or session.stored_credentials is None or not (runs and vm.ready_at):
            return
        if not await logins.injections.is_holder(session.id):
            return
        await self._login.close()  # it must not give them to the VM from here on
        try:
            if vm.paused_at is not None:
                await self._means.hypervisor.resume(vm.slot, vm.id)
            await bring_back(logins, vm, session)
        except (AgentError, VmError, CredentialsError) as error:
            self._log(vm).warning("credentials_not_read_back", problem=error.message)

    async def _end(self, vm: Vm, slot: SlotState) -> None:
        """Stop and remove all of it. Its slot is free once no other VM can come to its files."""
        hypervisor = self._means.hypervisor
        keep_logs = vm.reason is not None and self._means.settings.keep_failed_seconds > 0
        await self._bring_back(vm, slot)
        await hypervisor.stop(vm.slot)
        try:
            await hypervisor.discard(vm.slot, vm.id, keep_logs=keep_logs)
        except FilesLeft as error:
            self._log(vm).error("vm_files_left", problem=error.message, hint=error.hint)
        await self._means.vms.released(vm.id)
        self._log(vm).info("vm_released", slot=vm.slot)

    async def _fail(self, vm: Vm, reason: str) -> None:
        self._serial.feed(self._console.read_to_end())
        latest = self._watch.latest
        by_agent = latest.failed_units if isinstance(latest, AgentHealth) else ()
        units = failed_units(self._serial.failed_units, by_agent)
        await self._means.vms.fail(vm.id, reason, units, self._serial.tail or None)
        self._means.figures.failed.labels(vm.state).inc()
        self._log(vm).warning("vm_failed", reason=reason, stage=vm.stage, failed_units=units)

    async def _went_wrong(self, vm: Vm, error: Exception) -> None:
        """Log it, and end a VM that cannot come up any more; another is tried again."""
        self._tries += 1
        pause = self._means.pace.retry_after(self._tries)
        self._retry_at = asyncio.get_running_loop().time() + pause
        expected = isinstance(error, (Error, *NOT_THE_VMS_FAULT))
        self._log(vm).warning(
            "vm_step_failed",
            problem=_words(error),
            tries=self._tries,
            retry_seconds=pause,
            exc_info=None if expected else error,
        )
        reason = self._lost(vm, error)
        if reason is None:
            return
        try:
            await self._fail(vm, reason)
        except Exception as other:
            self._log(vm).warning("vm_step_failed", problem=_words(other))

    def _lost(self, vm: Vm, error: Exception) -> str | None:
        """Why a VM that comes up is not worth more tries; one that is up always is."""
        if isinstance(error, NOT_THE_VMS_FAULT):
            return None
        if vm.state == "creating" and self._tries >= self._means.pace.start_tries:
            return f"it could not be started: {_words(error)}"
        if vm.state == "starting":
            deadlines = self._means.settings.boot_deadline_seconds
            late = overdue(vm, deadlines, self._means.clock(), self._wait)
            return late and f"{late}; and it could not be followed: {_words(error)}"
        return None

    async def _find_session(self, vm: Vm) -> None:
        if not (self._has_looked or vm.pooled):
            session = await self._means.sessions.live_of_vm(vm.id)
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
