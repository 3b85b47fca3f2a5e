"""Follow a boot until the guest is ready, or until it is clear that it will not become ready.

A boot never hangs. It ends when the agent reports ready, when QEMU or the guest's kernel gives up,
when systemd has nothing left to do and something still does not answer, or at its deadline. The
error names one cause.

Deadlines and pauses are in seconds of an undisturbed machine: time that the VM waits for a CPU does
not count. If the machine is too busy for a verdict, MachineBusy is raised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from polydev.errors import BootError, MachineBusy, VmError
from polydev.image.diagnosis import GuestState, explain, read_guest_state, unwell
from polydev.vm import boot_stages
from polydev.vm.cpu_time import CpuWatch
from polydev.vm.cpu_wait_time import CpuWait, verdict, wait_between
from polydev.vm.health import agent_health
from polydev.vm.qemu_process import Machine

POLL_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 8.0
CONSOLE_TIMEOUT_SECONDS = 20.0
# Pauses between two checks of the guest, each of which costs it some work.
SETTLED_SECONDS = 4.0
QUIET_SECONDS = 30.0
LOOK_SHARE = 3.0
# The last check begins so long before the deadline that it ends by then.
LAST_LOOK_SECONDS = 12.0
# Disks are there within a second of the initrd's start, even in an emulated guest.
ROOT_WAIT_SECONDS = 10.0
# A busy machine is reported after this wait, and again each time the wait has doubled.
BUSY_WAITED_SECONDS = 10.0


@dataclass
class Boot:
    """A boot in progress.

    timings     seconds from QEMU's start to each stage
    """

    machine: Machine
    started: float = field(default_factory=time.monotonic)
    cpu: CpuWatch = field(init=False)
    stage: boot_stages.Stage = "none"
    timings: dict[str, float] = field(default_factory=dict)
    health: dict[str, object] = field(default_factory=dict)
    root_missing_since: float | None = None

    def __post_init__(self) -> None:
        self.cpu = self.machine.watch_cpu()

    def elapsed(self) -> float:
        """Seconds since QEMU's start."""
        return time.monotonic() - self.started

    def reached(self, *seen: boot_stages.Stage) -> bool:
        """Record new stages; return whether one is further than any before."""
        for stage in seen:
            self.timings.setdefault(stage, round(self.elapsed(), 2))
        furthest = max((self.stage, *seen), key=boot_stages.STAGES.index)
        is_further, self.stage = furthest != self.stage, furthest
        return is_further


def wait_until_ready(
    boot: Boot,
    deadline_seconds: float,
    on_stage: Callable[[boot_stages.Stage], None],
    refused: Callable[[], str | None] = lambda: None,
    on_busy: Callable[[CpuWait], None] = lambda wait: None,
) -> None:
    """Wait until the guest is ready. Raises BootError with the cause as its message.

    `on_busy` is called now and then while the VM waits a lot for a CPU. If it got too little CPU
    time for too long, MachineBusy is raised, since there can be no verdict on the image.

    The serial console shows the stages at no cost to the guest. The guest is asked what is wrong
    only for a reason: its boot is over, a unit failed, or nothing happened for a long time.
    `refused` may return another reason to end the boot.
    """
    last_look_at = deadline_seconds - min(LAST_LOOK_SECONDS, deadline_seconds / 3)
    next_look_at = min(QUIET_SECONDS, last_look_at)
    tell_busy = _doubling(on_busy)
    check: GuestCheck | None = None
    telling_check: GuestCheck | None = None
    seen_reason: object = None
    while True:
        serial = boot.machine.serial()
        if boot.reached(*boot_stages.stages_seen(serial)):
            on_stage(boot.stage)
        wait = boot.cpu.total()
        now = wait.undisturbed_seconds
        cause = refused() or gave_up(boot, serial, now)
        if cause:
            raise BootError(cause)
        tell_busy(wait)
        failed = boot_stages.failed_units(serial)
        over = boot.stage == "ready" or boot_stages.boot_is_over(serial)
        reason = (boot.stage == "ready", over, failed)
        _keep_deadline(boot, wait, deadline_seconds, telling_check or check)
        if now >= next_look_at or (any(reason) and reason != seen_reason):
            seen_reason = reason
            # The next check may succeed if the agent has only just started or was kept waiting.
            was_settled = check is not None and check.is_settled
            check = GuestCheck(boot, deadline_seconds - now)
            # A guest with too little CPU time may answer one check and not the next.
            telling_check = check if check.guest_state else telling_check
            if check.status == 200:
                boot.reached("ready")
                return
            if check.is_hopeless() or (was_settled and check.is_settled):
                raise BootError(check.cause(None))
            # A guest that is still starting needs its CPU time for that.
            pause = QUIET_SECONDS
            began, now = now, boot.cpu.total().undisturbed_seconds
            if over or failed:
                spent = 0.0 if check.is_settled else now - began
                pause = max(SETTLED_SECONDS, LOOK_SHARE * spent)
            next_look_at = now + pause
            if next_look_at > last_look_at > now:
                next_look_at = last_look_at
        time.sleep(POLL_SECONDS)


def _keep_deadline(
    boot: Boot, wait: CpuWait, deadline_seconds: float, check: GuestCheck | None
) -> None:
    """Raise BootError or MachineBusy after the deadline, with the result of the last check."""
    late = verdict(wait, deadline_seconds)
    if late == "late":
        raise BootError((check or GuestCheck(boot, 0.0)).cause(deadline_seconds))
    if late == "starved":
        raise MachineBusy(f"the guest was not ready by then, stage reached: {boot.stage}", wait)


def _doubling(on_busy: Callable[[CpuWait], None]) -> Callable[[CpuWait], None]:
    """Return a function that reports a wait if it is twice as long as the last reported one."""
    said_at = BUSY_WAITED_SECONDS / 2

    def tell(wait: CpuWait) -> None:
        nonlocal said_at
        if wait.is_busy and wait.waited_seconds >= 2 * said_at:
            said_at = wait.waited_seconds
            on_busy(wait)

    return tell


def gave_up(boot: Boot, serial: str, now: float) -> str | None:
    """Return why the guest ended or will never run; None while it runs.

    `now` is without the time that the VM waited for a CPU.
    """
    panic = boot_stages.kernel_panic(serial)
    if panic:
        return panic
    root = boot_stages.missing_root(serial)
    if root and boot.root_missing_since is None:
        boot.root_missing_since = now
    missing = now - (boot.root_missing_since or 0.0)
    if root and (missing > ROOT_WAIT_SECONDS or not boot.machine.alive()):
        return boot_stages.no_root(root)
    if not boot.machine.alive():
        said = boot.machine.qemu_said()
        return "the VM ended by itself" + (f": {said}" if said else "")
    return None


class GuestCheck:
    """One check of a guest that is not ready yet: ask the agent, then the guest's systemd.

    is_settled      systemd has nothing left to start; only the agent may still become ready
    """

    def __init__(self, boot: Boot, left_seconds: float) -> None:
        """Check a guest that has `left_seconds` until its deadline, on an undisturbed machine."""
        self.boot = boot
        self.guest_state: GuestState | None = None
        slowdown = boot.cpu.total().slowdown
        before = boot.machine.cpu_sample()
        self.status = self._ask_agent(
            slowdown * min(HEALTH_TIMEOUT_SECONDS, max(1.0, left_seconds))
        )
        wait = wait_between(before, boot.machine.cpu_sample())
        if self.status != 200 and boot.stage not in ("none", "kernel"):
            left = max(1.0, left_seconds - wait.undisturbed_seconds)
            self.guest_state = read_guest_state(
                boot.machine, slowdown * min(CONSOLE_TIMEOUT_SECONDS, left)
            )
        if self.status is None and wait.is_busy:
            # A guest that got no CPU time may have been unable to answer.
            self.is_settled = False
        elif self.guest_state is not None:
            self.is_settled = self.guest_state.settled()
        else:
            self.is_settled = boot_stages.boot_is_over(boot.machine.serial())

    def _ask_agent(self, timeout_seconds: float) -> int | None:
        try:
            status, body = agent_health(self.boot.machine.config.ports, timeout_seconds)
        except VmError:
            return None
        self.boot.health = body
        return status

    def is_hopeless(self) -> bool:
        """Whether waiting longer cannot help."""
        return self.guest_state is not None and self.guest_state.hopeless()

    def cause(self, deadline_seconds: float | None) -> str:
        """Return what is wrong, in one line; `deadline_seconds` is given if it has passed."""
        found: list[str] = []
        if deadline_seconds is not None:
            stage = self.boot.stage
            found.append(f"not ready within {deadline_seconds:g} s, stage reached: {stage}")
        if self.guest_state:
            found += explain(self.guest_state, self.status, self.boot.health)
        else:
            found += self._seen_from_outside()
        return "; ".join(found) or f"stage reached: {self.boot.stage}; no cause was found"

    def _seen_from_outside(self) -> list[str]:
        """Return what is wrong with a guest without a test console."""
        failed = boot_stages.failed_units(self.boot.machine.serial())
        found = [f"{unit} failed to start" for unit in failed]
        if self.status is None and boot_stages.boot_is_over(self.boot.machine.serial()):
            found.append("the agent does not answer")
        if self.status not in (None, 200, 503):
            found.append(f"the agent answers {self.status} on /health")
        return found + [f"{name}: {why}" for name, why in unwell(self.boot.health).items()]
