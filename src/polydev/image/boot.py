"""Boot an image and follow it until it is ready, or until it is clear that it will not be.

A boot never hangs: it ends when the agent says ready, when QEMU or the guest's kernel gives
up, when systemd has nothing left to do and something still does not answer, or at its
deadline. Whatever ends it is told as one cause.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from polydev.errors import BootError, VmError
from polydev.image.console import Answer, Console
from polydev.vm import stages
from polydev.vm.config import GUEST_ADDRESS
from polydev.vm.health import agent_health
from polydev.vm.machine import Machine

POLL_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 8.0
CONSOLE_TIMEOUT_SECONDS = 20.0
# How long the guest is left alone between two questions: each answer costs it some work.
SETTLED_SECONDS = 4.0
QUIET_SECONDS = 30.0
# A unit that is restarted forever never lets systemd be done.
RESTARTS_THAT_TELL = 4
ROOT_FULL_KIB = 1024
UNITS = (
    "systemd-networkd.service",
    "polydev-agent.service",
    "polydev-vnc.service",
    "polydev-desktop.service",
    "polydev-novnc.service",
    "polydev-browser.service",
)


@dataclass
class Boot:
    """A boot as seen so far; times in seconds since QEMU's start."""

    machine: Machine
    started: float = field(default_factory=time.monotonic)
    stage: stages.Stage = "none"
    timings: dict[str, float] = field(default_factory=dict)
    health: dict[str, object] = field(default_factory=dict)

    def elapsed(self) -> float:
        return time.monotonic() - self.started

    def reached(self, stage: stages.Stage) -> bool:
        """Note a stage; whether it is further than before."""
        if stages.STAGES.index(stage) <= stages.STAGES.index(self.stage):
            return False
        self.stage = stage
        self.timings[stage] = round(self.elapsed(), 2)
        return True


def follow(boot: Boot, deadline_seconds: float, on_stage: Callable[[stages.Stage], None]) -> None:
    """Wait until the guest is ready. Raises BootError with the cause as its message.

    The serial console tells the stages at no cost to the guest. The guest itself is asked
    what is wrong only when the console gives a reason to: its boot is over, a unit failed, or
    nothing came of it for long.
    """
    asked = 0.0
    failed: list[str] = []
    while True:
        serial = boot.machine.serial()
        if boot.reached(stages.boot_stage(serial)):
            on_stage(boot.stage)
        cause = gave_up(boot.machine, serial)
        if cause:
            raise BootError(cause)
        says_ready = boot.stage == "ready"
        if says_ready and _ask_agent(boot) == 200:
            return
        late = boot.elapsed() > deadline_seconds
        new_failure = stages.failed_units(serial) != failed
        over = says_ready or stages.boot_is_over(serial)
        pause = SETTLED_SECONDS if over or new_failure else QUIET_SECONDS
        if late or boot.elapsed() - asked > pause:
            failed = stages.failed_units(serial)
            evidence = collect(boot.machine) if boot.stage not in ("none", "kernel") else None
            status = _ask_agent(boot) if evidence else None
            if status == 200:
                boot.reached("ready")
                return
            asked = boot.elapsed()
            if late or (evidence and evidence.settled()):
                raise BootError(_cause(boot, evidence, status, deadline_seconds if late else None))
        time.sleep(POLL_SECONDS)


def gave_up(machine: Machine, serial: str) -> str | None:
    """Why there is no guest any more, or None while it runs."""
    panic = stages.kernel_panic(serial)
    if panic:
        return panic
    root = stages.missing_root(serial)
    if not machine.alive():
        if root:
            return f"the kernel cannot find its root filesystem: {root} never appeared"
        said = machine.qemu_said()
        return "the VM ended by itself" + (f": {said}" if said else "")
    return None


def _ask_agent(boot: Boot) -> int | None:
    try:
        status, body = agent_health(boot.machine.config.ports, HEALTH_TIMEOUT_SECONDS)
    except VmError:
        return None
    boot.health = body
    return status


@dataclass(frozen=True)
class Unit:
    name: str
    load: str
    active: str
    sub: str
    result: str
    restarts: int

    def __str__(self) -> str:
        if self.load != "loaded":
            return f"{self.name} is {self.load}"
        again = f", restarted {self.restarts} times" if self.restarts else ""
        result = f", {self.result}" if self.result not in ("success", "") else ""
        return f"{self.name} is {self.active} ({self.sub}{result}{again})"


@dataclass(frozen=True)
class Evidence:
    """What the guest itself says of its state, over the test console."""

    system: str
    jobs: tuple[str, ...]
    units: tuple[Unit, ...]
    failed: tuple[str, ...]
    addresses: tuple[str, ...]
    root_free_kib: int
    errors: tuple[str, ...]

    def settled(self) -> bool:
        """Whether waiting longer can change nothing."""
        restarting = any(unit.restarts >= RESTARTS_THAT_TELL for unit in self.units)
        full = self.root_free_kib < ROOT_FULL_KIB
        return self.system in ("running", "degraded") or restarting or full


_EVIDENCE = (
    "systemctl is-system-running",
    "systemctl list-jobs --no-legend --plain",
    "systemctl show -p Id,LoadState,ActiveState,SubState,Result,NRestarts " + " ".join(UNITS),
    "systemctl list-units --state=failed --no-legend --plain",
    "ip -json address show dev eth0",
    "df --output=avail -k /",
    "journalctl -b -p err -n 12 -o cat --no-pager",
)


def collect(machine: Machine) -> Evidence | None:
    """Ask the guest over its console; None where no shell answers."""
    try:
        with Console(machine.config.console_socket, CONSOLE_TIMEOUT_SECONDS) as console:
            console.open_shell(CONSOLE_TIMEOUT_SECONDS)
            return read_evidence([console.run(command) for command in _EVIDENCE])
    except VmError:
        return None


def read_evidence(answers: list[Answer]) -> Evidence:
    system, jobs, units, failed, links, free, errors = (answer.text.strip() for answer in answers)
    try:
        interfaces = json.loads(links or "[]")
    except ValueError:
        interfaces = []
    return Evidence(
        system=system,
        jobs=tuple(line.split()[1] + " " + line.split()[-1] for line in jobs.splitlines() if len(line.split()) >= 4),
        units=tuple(_unit(block) for block in units.split("\n\n") if block),
        failed=tuple(line.split()[0] for line in failed.splitlines() if line),
        addresses=tuple(
            f"{entry['local']}/{entry['prefixlen']}"
            for interface in interfaces
            for entry in interface.get("addr_info", [])
        ),
        root_free_kib=int(free.split()[-1]) if free.split()[-1:] and free.split()[-1].isdigit() else 0,
        errors=tuple(errors.splitlines()),
    )


def _unit(block: str) -> Unit:
    values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    return Unit(
        values.get("Id", "?"),
        values.get("LoadState", "?"),
        values.get("ActiveState", "?"),
        values.get("SubState", "?"),
        values.get("Result", ""),
        int(values.get("NRestarts", "0") or 0),
    )


def _cause(
    boot: Boot, evidence: Evidence | None, status: int | None, deadline_seconds: float | None
) -> str:
    found = explain(evidence, status, boot.health) if evidence else []
    if not found:
        root = stages.missing_root(boot.machine.serial())
        found = [f"the kernel waits for its root filesystem on {root}"] if root else []
    if deadline_seconds is not None:
        found.insert(0, f"not ready within {deadline_seconds:g} s, stage reached: {boot.stage}")
    return "; ".join(found) or f"stage reached: {boot.stage}, and nothing says why"


def explain(evidence: Evidence, status: int | None, health: dict[str, object]) -> list[str]:
    """What is wrong, the likeliest cause first. Pure."""
    causes: list[str] = []
    if evidence.root_free_kib < ROOT_FULL_KIB:
        causes.append(f"the root filesystem is full ({evidence.root_free_kib} KiB free)")
    if not any(address.startswith(f"{GUEST_ADDRESS}/") for address in evidence.addresses):
        has = ", ".join(evidence.addresses) or "no address"
        causes.append(f"network: eth0 has {has}, not {GUEST_ADDRESS}/30")
    wrong = [unit for unit in evidence.units if unit.active != "active" or unit.restarts]
    causes += [str(unit) for unit in wrong]
    known = {unit.name for unit in evidence.units}
    causes += [f"{unit} failed" for unit in evidence.failed if unit not in known]
    causes += [f"job still waiting: {job}" for job in evidence.jobs if job.split()[0] not in known]
    if status is not None and status not in (200, 503):
        causes.append(f"the agent answers {status} on /health")
    components = health.get("components")
    if isinstance(components, dict):
        for name, state in components.items():
            if isinstance(state, dict) and not state.get("ok"):
                causes.append(f"{name}: {state.get('detail')}")
    return causes


