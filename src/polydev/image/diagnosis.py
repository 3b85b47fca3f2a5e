"""Find out what is wrong with a running guest, and say it in words.

`read_guest_state` asks systemd and the kernel over the test console. The rest is pure: the answers
become a GuestState, and `explain` turns it into causes, each before its consequences.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polydev.errors import VmError
from polydev.host_layout import GUEST_ADDRESS
from polydev.image.guest_shell import GuestShell
from polydev.vm.qemu_process import Machine

# While a unit is restarted again and again, systemd never finishes the boot.
RESTARTS_THAT_TELL = 4
ROOT_FULL_KIB = 1024
LAST_WORDS_LENGTH = 300
NETWORKD = "systemd-networkd.service"
AGENT = "polydev-agent.service"
VNC = "polydev-vnc.service"
UNITS = (
    NETWORKD,
    AGENT,
    VNC,
    "polydev-desktop.service",
    "polydev-novnc.service",
    "polydev-browser.service",
)


@dataclass(frozen=True)
class GuestUnit:
    """A unit as systemd shows it; `said` is the end of its processes' output."""

    name: str
    load: str = "loaded"
    enabled: str = "enabled"
    active: str = "active"
    sub: str = "running"
    result: str = "success"
    restarts: int = 0
    lost_process: str = ""
    said: str = ""

    @property
    def is_well(self) -> bool:
        return self.active == "active" and not self.restarts

    @property
    def gave_up(self) -> bool:
        """Whether it will not become active any more, even if its state does not show that."""
        return (
            self.active == "failed"
            or self.restarts >= RESTARTS_THAT_TELL
            or bool(self.lost_process)
        )

    def __str__(self) -> str:
        if self.load != "loaded":
            return f"{self.name} is {self.load}"
        if self.active == "inactive" and self.enabled == "disabled":
            return f"{self.name} is not enabled"
        details = [self.sub]
        details += [self.result] if self.result not in ("success", "") else []
        details += [self.lost_process] if self.lost_process else []
        details += [f"restarted {self.restarts} times"] if self.restarts else []
        said = f": {self.said}" if self.said else ""
        return f"{self.name} is {self.active} ({', '.join(details)}){said}"


@dataclass(frozen=True)
class Job:
    unit: str
    kind: str
    state: str


@dataclass(frozen=True)
class GuestState:
    """The state of a guest, as read over the test console."""

    system: str
    jobs: tuple[Job, ...]
    units: tuple[GuestUnit, ...]
    failed: tuple[str, ...]
    addresses: tuple[str, ...]
    root_free_kib: int | None

    def root_is_full(self) -> bool:
        return self.root_free_kib is not None and self.root_free_kib < ROOT_FULL_KIB

    def has_its_address(self) -> bool:
        return any(address.startswith(f"{GUEST_ADDRESS}/") for address in self.addresses)

    def settled(self) -> bool:
        """Whether systemd has nothing left to do, including restarts of units."""
        busy = any(unit.active in ("activating", "reloading") for unit in self.units)
        return self.system in ("running", "degraded") and not busy

    def hopeless(self) -> bool:
        """Whether waiting longer, also for the agent, cannot help."""
        if self.root_is_full() or any(unit.gave_up for unit in self.units):
            return True
        well = self.has_its_address() and all(unit.active == "active" for unit in self.units)
        return self.settled() and not well


_PROPERTIES = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts"
_PROPERTIES += ",MainPID,ExecMainCode,ExecMainStatus"
_MARK = "=====next====="
# The last lines of X have no words.
_WORDS = re.compile(r"[a-z]{3}")
# The last output of each unit's processes, after the unit's name.
_LAST_WORDS = (
    f"journalctl --sync; for unit in {' '.join(UNITS)}; do "
    'journalctl -b -q -o cat -n 4 --no-pager _SYSTEMD_UNIT=$unit | sed "s/^/$unit /"; done'
)
_GUEST_STATE = (
    "systemctl is-system-running",
    "systemctl list-jobs --no-legend --plain",
    f"systemctl show -p {_PROPERTIES} {' '.join(UNITS)}",
    "systemctl list-units --state=failed --no-legend --plain",
    "ip -json -4 address show dev eth0",
    "df --output=avail -k /",
    _LAST_WORDS,
)


def read_guest_state(machine: Machine, timeout_seconds: float) -> GuestState | None:
    """Ask the guest over its console; return None if no shell answers in time."""
    script = f"; echo {_MARK}; ".join(_GUEST_STATE)
    until = time.monotonic() + timeout_seconds
    try:
        with GuestShell(machine.config.console_socket, timeout_seconds) as console:
            console.open_shell(timeout_seconds)
            left = max(1.0, until - time.monotonic())
            return parse_guest_state(console.run(script, left).text)
    except VmError:
        return None


def parse_guest_state(text: str) -> GuestState:
    """Parse the output of the commands, one after the other.

    Raises VmError if it is incomplete, or not as these commands write it.
    """
    answers = [answer.strip() for answer in text.split(_MARK)]
    if len(answers) != len(_GUEST_STATE):
        raise VmError("the guest's answer over the test console is incomplete")
    try:
        return _parsed(answers)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise VmError("the guest's answer over the test console cannot be read") from error


def _parsed(answers: Sequence[str]) -> GuestState:
    system, jobs, units, failed, links, free, words = answers
    said: dict[str, list[str]] = {}
    for line in words.splitlines():
        unit, _, rest = line.partition(" ")
        if _WORDS.search(rest):
            said.setdefault(unit, []).append(rest.strip())
    try:
        interfaces = json.loads(links or "[]")
    except ValueError:
        interfaces = []
    free_words = free.split()
    return GuestState(
        system=system,
        jobs=tuple(
            Job(*parts[1:4]) for line in jobs.splitlines() if len(parts := line.split()) == 4
        ),
        units=tuple(_unit(block, said) for block in units.split("\n\n") if block),
        failed=tuple(line.split()[0] for line in failed.splitlines() if line),
        addresses=tuple(
            f"{entry['local']}/{entry['prefixlen']}"
            for interface in interfaces
            for entry in interface.get("addr_info", [])
        ),
        root_free_kib=int(free_words[-1]) if free_words and free_words[-1].isdigit() else None,
    )


def _unit(block: str, said: Mapping[str, list[str]]) -> GuestUnit:
    values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    name = values.get("Id", "?")
    lost = ""
    if values.get("SubState") == "start-post" and values.get("MainPID") == "0":
        # systemd waits for the step after the start, which never comes without the process.
        how = "exited with status" if values.get("ExecMainCode") == "1" else "was ended by signal"
        lost = f"its process {how} {values.get('ExecMainStatus', '?')}"
    return GuestUnit(
        name=name,
        load=values.get("LoadState", "?"),
        enabled=values.get("UnitFileState", ""),
        active=values.get("ActiveState", "?"),
        sub=values.get("SubState", "?"),
        result=values.get("Result", ""),
        restarts=int(values.get("NRestarts", "0") or 0),
        lost_process=lost,
        said=" ".join(said.get(name, [])[-1:])[:LAST_WORDS_LENGTH],
    )


def explain(guest: GuestState, status: int | None, health: Mapping[str, object]) -> list[str]:
    """Return what is wrong, causes before their consequences. Pure."""
    causes: list[str] = []
    if guest.root_is_full():
        causes.append(f"the root filesystem is full ({guest.root_free_kib} KiB free)")
    known = {unit.name for unit in guest.units}
    causes += [f"{name} failed" for name in guest.failed if name not in known]
    starting = {job.unit for job in guest.jobs if job.state == "running"}
    waiting = {job.unit for job in guest.jobs if job.state == "waiting"}
    causes += [f"{name} does not finish starting" for name in sorted(starting - known)]
    unwell_units = [unit for unit in guest.units if not unit.is_well and unit.name not in waiting]
    # A unit that is still starting is to blame only if no other is.
    over = [unit for unit in unwell_units if unit.gave_up or unit.name not in starting]
    causes += [str(unit) for unit in over or unwell_units]
    held = sorted(waiting & known)
    causes += [f"{', '.join(held)} cannot start before that"] if held else []
    # If there are other faults, the address may still come.
    has_had_time = guest.settled() or not (over or NETWORKD in starting | waiting)
    if has_had_time and not guest.has_its_address():
        has = ", ".join(guest.addresses) or "no address"
        causes.append(f"network: eth0 has {has}, not {GUEST_ADDRESS}/30")
        return causes
    agent_is_well = not any(unit.name == AGENT for unit in unwell_units)
    if status is None and guest.settled() and agent_is_well:
        causes.append("the agent does not answer")
    if status is not None and status not in (200, 503):
        causes.append(f"the agent answers {status} on /health")
    named = {unit.name for unit in unwell_units} | waiting
    said = {unit.name: unit.said for unit in guest.units}
    for component, detail in unwell(health).items():
        unit_name = f"polydev-{component}.service"
        # noVNC's relay fails if the VNC server behind it does.
        if unit_name not in named and not (component == "novnc" and VNC in named):
            words = said.get(unit_name)
            causes.append(f"{component}: {detail}" + (f": {words}" if words else ""))
    return causes


def unwell(health: Mapping[str, object]) -> dict[str, str]:
    """Return the components that the agent reports as failing, each with its detail."""
    components = health.get("components")
    return {
        name: str(state.get("detail"))
        for name, state in (components.items() if isinstance(components, dict) else ())
        if isinstance(state, dict) and not state.get("ok")
    }
