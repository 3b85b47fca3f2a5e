"""Combine all checks into one answer, cheap enough to be asked all the time.

Callers that ask while a run is in progress get that run's answer. Good results of checks and the
states of units are reused for a while; checks with a bad result run again.
"""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from time import monotonic

from polydev import __version__
from polydev.agent.desktop_checks import check_display, check_novnc, check_vnc
from polydev.agent.errors import CheckFailed
from polydev.agent.systemd import Units, ask_units, unknown_units
from polydev.agent.vm_facts import VmFacts, boot_stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from polydev.agent.reply_types import ComponentState, HealthReply
    from polydev.agent.settings import AgentSettings

# In the order in which they start. The browser has no check: its unit is active only once its
# window is mapped.
UNIT_OF = {
    "desktop": "polydev-desktop.service",
    "vnc": "polydev-vnc.service",
    "novnc": "polydev-novnc.service",
    "browser": "polydev-browser.service",
}
NEEDS_ACTIVE_UNIT = ("desktop", "browser")
CHEAP_CHECKS = ("desktop", "vnc")


class Outcome:
    __slots__ = ("at", "detail", "ok")

    def __init__(self, ok: bool, detail: str, at: float = 0.0) -> None:
        self.ok = ok
        self.detail = detail
        self.at = at


class HealthChecks:
    """Runs checks on demand, from any number of threads."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], str]],
        ask: Callable[[], Units],
        facts: Callable[[], VmFacts],
        keep_seconds: float,
        keep_longer: Mapping[str, float] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._checks = checks
        self._ask = ask
        self._facts = facts
        self._keep_seconds = keep_seconds
        self._keep_longer = keep_longer or {}
        self._clock = clock
        self._outcomes: dict[str, Outcome] = {}
        self._units = unknown_units(UNIT_OF.values(), "systemctl was not asked yet")
        self._units_at: float | None = None
        self._latest: HealthReply | None = None
        self._runs = 0
        self._flight = allocate_lock()
        self._ready_gate = allocate_lock()  # released when all is well for the first time
        self._ready_gate.acquire()
        self.first_ready_seconds: float | None = None

    def report(self) -> HealthReply:
        """Return the state of this VM, by a run of the checks that callers share."""
        seen = self._runs
        with self._flight:
            if self._latest is None or self._runs == seen:
                self._latest = self._run()
                self._runs += 1
            return self._latest

    def may_be_ready(self) -> bool:
        """Whether all could be well: run the cheap checks and stop at the first bad one."""
        self._refresh(CHEAP_CHECKS)
        if not all(self._outcomes[name].ok for name in CHEAP_CHECKS):
            return False
        self._refresh_units()
        return self._units.all_active()

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Wait until a report was good for the first time. For one caller, once."""
        return self._ready_gate.acquire(True, timeout_seconds)

    def _run(self) -> HealthReply:
        self._refresh(self._checks, self._refresh_units)
        reply = compose_health(
            self._outcomes,
            self._units,
            self._facts(),
            is_booting=self.first_ready_seconds is None,
        )
        if reply["status"] == "ready" and self.first_ready_seconds is None:
            self.first_ready_seconds = reply["uptime_seconds"]
            self._ready_gate.release()
        return reply

    def _refresh(self, names: Iterable[str], *more: Callable[[], None]) -> None:
        def job(name: str) -> Callable[[], None]:
            return lambda: self._outcomes.update({name: self._outcome(self._checks[name])})

        run_together([*(job(name) for name in names if not self._is_kept(name)), *more])

    def _is_kept(self, name: str) -> bool:
        outcome = self._outcomes.get(name)
        keep_seconds = self._keep_longer.get(name, self._keep_seconds)
        return outcome is not None and outcome.ok and self._clock() - outcome.at < keep_seconds

    def _outcome(self, check: Callable[[], str]) -> Outcome:
        try:
            return Outcome(True, check(), self._clock())
        except CheckFailed as failure:
            return Outcome(False, str(failure))
        except Exception as error:
            return Outcome(False, f"the check itself failed: {error!r}")

    def _refresh_units(self) -> None:
        now = self._clock()
        if self._units_at is not None and now - self._units_at < self._keep_seconds:
            return
        try:
            self._units = self._ask()
        except CheckFailed as failure:
            self._units = unknown_units(UNIT_OF.values(), str(failure))
        self._units_at = self._clock()


def run_together(jobs: Sequence[Callable[[], None]]) -> None:
    """Run jobs at the same time and wait for all. Jobs handle their own errors."""
    waiting = []
    for job in jobs[1:]:
        done = allocate_lock()
        done.acquire()
        try:
            start_new_thread(_run_then_release, (job, done.release))
        except RuntimeError:  # no more threads: run it here
            job()
        else:
            waiting.append(done)
    if jobs:
        jobs[0]()
    for done in waiting:
        done.acquire()


def _run_then_release(job: Callable[[], None], release: Callable[[], None]) -> None:
    try:
        job()
    finally:
        release()


def component_state(name: str, outcome: Outcome | None, units: Units) -> ComponentState:
    """Combine the result of a check with the state of its unit."""
    unit = UNIT_OF[name]
    is_active = units.services[unit]["active"] == "active"
    if name in NEEDS_ACTIVE_UNIT and not is_active and (outcome is None or outcome.ok):
        return {"ok": False, "detail": units.words(unit)}
    if outcome is None:
        return {"ok": True, "detail": units.words(unit)}
    if outcome.ok:
        return {"ok": True, "detail": outcome.detail}
    return {"ok": False, "detail": f"{outcome.detail} ({units.words(unit)})"}


def compose_health(
    outcomes: Mapping[str, Outcome], units: Units, facts: VmFacts, *, is_booting: bool
) -> HealthReply:
    """Return the answer of `GET /health`. `is_booting` until the VM was first ready."""
    components = {name: component_state(name, outcomes.get(name), units) for name in UNIT_OF}
    failing = [name for name, state in components.items() if not state["ok"]]
    is_ready = not failing
    has_failed = units.any_given_up(is_booting=is_booting)
    return {
        "status": "ready" if is_ready else "failed" if has_failed else "starting",
        "stage": boot_stage(is_ready=is_ready, has_route=facts.has_route),
        "components": components,
        "failing": failing,
        "services": units.services,
        "failed_units": units.failed,
        "image_digest": facts.image_digest,
        "vm_id": facts.vm_id,
        "session_id": facts.session_id,
        "uptime_seconds": facts.uptime_seconds,
        "boot_id": facts.boot_id,
        "agent_version": __version__,
    }


def health_of_guest(settings: AgentSettings) -> HealthChecks:
    """Return the checks of this guest."""
    return HealthChecks(
        checks={
            "desktop": lambda: check_display(settings),
            "vnc": lambda: check_vnc(settings),
            "novnc": lambda: check_novnc(settings),
        },
        ask=lambda: ask_units(
            settings.systemctl, tuple(UNIT_OF.values()), settings.check_timeout_seconds
        ),
        facts=lambda: VmFacts(settings.proc, settings.identity),
        keep_seconds=settings.keep_seconds,
        keep_longer={"novnc": settings.novnc_keep_seconds},
    )
