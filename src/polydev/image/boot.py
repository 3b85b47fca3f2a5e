"""Boot an image and follow it until it is ready, or until it is clear that it will not be.

A boot never hangs: it ends when the agent says ready, when QEMU or the guest's kernel gives
up, when systemd has nothing left to do and something still does not answer, or at its
deadline. Whatever ends it is told as one cause.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from polydev.errors import BootError, VmError
from polydev.image.evidence import Evidence, collect, explain, unwell
from polydev.vm import stages
from polydev.vm.health import agent_health
from polydev.vm.machine import Machine

POLL_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 8.0
CONSOLE_TIMEOUT_SECONDS = 20.0
# How long the guest is left alone between two looks: each costs it some work.
SETTLED_SECONDS = 4.0
QUIET_SECONDS = 30.0
LOOK_SHARE = 3.0
# The last look begins so long before the deadline that it ends by then.
LAST_LOOK_SECONDS = 12.0
# Disks are there within a second of the initrd's start, even in an emulated guest.
ROOT_WAIT_SECONDS = 10.0


@dataclass
class Boot:
    """A boot as seen so far; times in seconds since QEMU's start."""

    machine: Machine
    started: float = field(default_factory=time.monotonic)
    stage: stages.Stage = "none"
    timings: dict[str, float] = field(default_factory=dict)
    health: dict[str, object] = field(default_factory=dict)
    root_missing_since: float | None = None

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def reached(self, *seen: stages.Stage) -> bool:
        """Note stages, each when it is seen first; whether one is further than before."""
        for stage in seen:
            self.timings.setdefault(stage, round(self.elapsed(), 2))
        furthest = max((self.stage, *seen), key=stages.STAGES.index)
        is_further, self.stage = furthest != self.stage, furthest
        return is_further


def follow(
    boot: Boot,
    deadline_seconds: float,
    on_stage: Callable[[stages.Stage], None],
    refused: Callable[[], str | None] = lambda: None,
) -> None:
    """Wait until the guest is ready. Raises BootError with the cause as its message.

    The serial console tells the stages at no cost to the guest. The guest itself is asked
    what is wrong only when the console gives a reason to: its boot is over, a unit failed, or
    nothing came of it for long. `refused` may end the boot for a reason from elsewhere.
    """
    last_look_at = deadline_seconds - min(LAST_LOOK_SECONDS, deadline_seconds / 3)
    next_look_at = min(QUIET_SECONDS, last_look_at)
    look: Look | None = None
    telling: Look | None = None
    seen_reason: object = None
    while True:
        serial = boot.machine.serial()
        if boot.reached(*stages.stages_seen(serial)):
            on_stage(boot.stage)
        cause = refused() or gave_up(boot, serial)
        if cause:
            raise BootError(cause)
        failed = stages.failed_units(serial)
        over = boot.stage == "ready" or stages.boot_is_over(serial)
        reason = (boot.stage == "ready", over, failed)
        if boot.elapsed() >= deadline_seconds:
            telling = telling or look or Look(boot, deadline_seconds)
            raise BootError(telling.cause(deadline_seconds))
        if boot.elapsed() >= next_look_at or (any(reason) and reason != seen_reason):
            seen_reason = reason
            # An agent that only just came up, or was kept waiting, may do better the next time.
            doubted = look is not None and look.is_settled
            began = boot.elapsed()
            look = Look(boot, deadline_seconds)
            # A starved guest may answer one time and not the next.
            telling = look if look.evidence else telling
            if look.status == 200:
                boot.reached("ready")
                return
            if look.is_hopeless() or (doubted and look.is_settled):
                raise BootError(look.cause(None))
            # A guest with little CPU that is still starting needs it more than we do.
            pause = QUIET_SECONDS
            if over or failed:
                spent = 0.0 if look.is_settled else boot.elapsed() - began
                pause = max(SETTLED_SECONDS, LOOK_SHARE * spent)
            next_look_at = boot.elapsed() + pause
            if next_look_at > last_look_at > boot.elapsed():
                next_look_at = last_look_at
        time.sleep(POLL_SECONDS)


def gave_up(boot: Boot, serial: str) -> str | None:
    """Why there is or will be no guest, or None while it runs."""
    panic = stages.kernel_panic(serial)
    if panic:
        return panic
    root = stages.missing_root(serial)
    if root and boot.root_missing_since is None:
        boot.root_missing_since = boot.elapsed()
    waited = boot.elapsed() - (boot.root_missing_since or 0.0)
    if root and (waited > ROOT_WAIT_SECONDS or not boot.machine.alive()):
        return stages.no_root(root)
    if not boot.machine.alive():
        said = boot.machine.qemu_said()
        return "the VM ended by itself" + (f": {said}" if said else "")
    return None


class Look:
    """One look at a guest that is not known to be ready: its agent, then its own account.

    is_settled      nothing is left to be started; only the agent may still do better
    """

    def __init__(self, boot: Boot, deadline_seconds: float) -> None:
        self.boot = boot
        self.evidence: Evidence | None = None
        self.status = self._ask_agent(max(1.0, deadline_seconds - boot.elapsed()))
        if self.status != 200 and boot.stage not in ("none", "kernel"):
            left = max(1.0, deadline_seconds - boot.elapsed())
            self.evidence = collect(boot.machine, min(CONSOLE_TIMEOUT_SECONDS, left))
        if self.evidence is not None:
            self.is_settled = self.evidence.settled()
        else:
            self.is_settled = stages.boot_is_over(boot.machine.serial())

    def _ask_agent(self, left_seconds: float) -> int | None:
        ports = self.boot.machine.config.ports
        try:
            status, body = agent_health(ports, min(HEALTH_TIMEOUT_SECONDS, left_seconds))
        except VmError:
            return None
        self.boot.health = body
        return status

    def is_hopeless(self) -> bool:
        """Whether waiting longer can change nothing."""
        return self.evidence is not None and self.evidence.hopeless()

    def cause(self, deadline_seconds: float | None) -> str:
        """What is wrong, in one line; `deadline_seconds` is given where it has passed."""
        found: list[str] = []
        if deadline_seconds is not None:
            stage = self.boot.stage
            found.append(f"not ready within {deadline_seconds:g} s, stage reached: {stage}")
        if self.evidence:
            found += explain(self.evidence, self.status, self.boot.health)
        else:
            found += self._seen_from_outside()
        return "; ".join(found) or f"stage reached: {self.boot.stage}, and nothing says why"

    def _seen_from_outside(self) -> list[str]:
        """What is wrong with a guest that gives no account of itself, as one in use."""
        failed = stages.failed_units(self.boot.machine.serial())
        found = [f"{unit} failed to start" for unit in failed]
        if self.status is None and stages.boot_is_over(self.boot.machine.serial()):
            found.append("the agent does not answer")
        if self.status not in (None, 200, 503):
            found.append(f"the agent answers {self.status} on /health")
        return found + [f"{name}: {why}" for name, why in unwell(self.boot.health).items()]
