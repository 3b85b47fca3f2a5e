"""The doctor's checks of a host. Pure: facts → findings."""

from __future__ import annotations

import re
from datetime import datetime, timezone

from polydev import clock_difference
from polydev.client import host_probe
from polydev.client.doctor_findings import (
    GIB,
    KVM_TODO,
    SEPARATOR,
    TCG_TEXT,
    DiskSpace,
    DoctorFinding,
    Room,
    State,
    gibibytes,
    qemu_finding,
    space_finding,
)
from polydev.client.host_facts import HostFacts
from polydev.client.template_checks import templates_finding, templates_memory
from polydev.errors import DeployError

# The controller's defaults, for configurations that do not say what a VM gets.
VM_MEMORY_MIB = 2048
VM_TRANSLATION_CACHE_MIB = 1024
MIB = 1024**2
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
KNOWN_SYSTEMS = ("Debian GNU/Linux 12", "Ubuntu 24.04")
OLDEST_POLKIT = (0, 106)  # the first that reads rules in JavaScript
OLD_IMAGE_DAYS, STALE_IMAGE_DAYS = 30, 90
# The controller takes JWTs that are off by 10 s.
CLOCK_PROBLEM_SECONDS = 10.0
ROOMS = {
    "/": (
        "room on /",
        Room(GIB, 4 * GIB),
        "free space: journalctl --vacuum-size=200M, apt-get clean",
    ),
    host_probe.STORE: (
        "room for images",
        Room(2 * GIB, 6 * GIB),
        "use a larger disk; the next ./inv deploy removes images that no backup names",
    ),
    "/var/lib/microvm": (
        "room for VMs",
        Room(2 * GIB, 8 * GIB),
        "end sessions (./inv sessions), or use fewer slots or a larger disk",
    ),
}
# The gate's checks, and what to do about each.
GATE_TODO = {
    "units": "./inv deploy repairs it; on the host: journalctl -u UNIT",
    "bridge": "./inv deploy repairs it; ./inv drift shows every difference",
    "kernel": "./inv deploy repairs it; ./inv drift shows every difference",
    "firewall": "./inv deploy repairs it; ./inv drift shows every difference",
    "slots": "./inv deploy repairs it; on the host: journalctl -u 'microvm-slot@*'",
    "watch": "./inv deploy restarts it; on the host: journalctl -u polydev-network-watch",
    "names": "on the host: journalctl -u polydev-dns.service; then ./inv deploy",
    "image": "./inv deploy --target vm-agent",
    "socket": "./inv deploy restarts it",
    "controller": "on the host: journalctl -u master-controller.service; then ./inv deploy",
}

# Parts that the host tool compares beside the gate: the words if nothing differs, the remedy.
DRIFT_TEXTS = {
    "accounts": ("the users of VMs and controller have only their own rights", "./inv deploy"),
    "database": (
        "the schema is that of its migrations",
        "./inv drift shows it, ./inv deploy repairs it",
    ),
    "overrides": ("no file of others changes our units", "./inv deploy removes these"),
    "permissions": ("only root and the controller may write to their files", "./inv deploy"),
    "settings": ("no other file overrides our settings at the next start", "./inv deploy"),
    "release": ("the controller's files are those that were installed", "./inv deploy"),
}


def unreachable_finding(where: str, error: DeployError) -> DoctorFinding:
    return DoctorFinding(
        where, "SSH", "problem", error.message, error.hint or "check that the host runs"
    )


def host_findings(where: str, facts: HostFacts) -> list[DoctorFinding]:
    """Return all findings of a host; those of a deployment only if there is one."""
    found = [system_finding(where, facts), python_finding(where, facts)]
    found += [clock_finding(where, facts), *space_findings(where, facts)]
    if not facts.is_deployed:
        todo = "./inv deploy"
        return [
            *found,
            DoctorFinding(where, "deployment", "problem", "nothing is deployed there", todo),
        ]
    found += gate_findings(where, facts)
    found += drift_findings(where, facts)
    found += [health_finding(where, facts), polkit_finding(where, facts)]
    todo = "./inv deploy installs it"
    found.append(qemu_finding(where, facts.said.get("qemu"), todo))
    found += [kvm_finding(where, facts), templates_finding(where, facts)]
    found.append(memory_finding(where, facts))
    found += [failed_vms_finding(where, facts), image_finding(where, facts)]
    return [*found, upstreams_finding(where, facts)]


def system_finding(where: str, facts: HostFacts) -> DoctorFinding:
    system, architecture = str(facts.said.get("os")), str(facts.said.get("architecture"))
    shown = f"{system}, kernel {facts.said.get('kernel')}, {architecture}"
    if architecture != "x86_64":
        return DoctorFinding(where, "system", "problem", shown, "use a machine with amd64")
    if not system.startswith(KNOWN_SYSTEMS):
        todo = "Debian 12 and Ubuntu 24.04 are what a host is deployed to"
        return DoctorFinding(where, "system", "warning", shown, todo)
    return DoctorFinding(where, "system", "ok", shown)


def python_finding(where: str, facts: HostFacts) -> DoctorFinding:
    version = tuple(facts.said.get("python") or ())
    shown = ".".join(map(str, version))
    if not OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON:
        todo = "a host needs Python 3.10 to 3.13 as python3"
        return DoctorFinding(where, "Python", "problem", shown, todo)
    return DoctorFinding(where, "Python", "ok", shown)


def clock_finding(where: str, facts: HostFacts) -> DoctorFinding:
    """Compare the host's clock with ours, within the accuracy that the call's duration allows."""
    said = facts.said
    offset = clock_difference.offset_seconds(
        facts.before, facts.after, float(said["startedAt"]), float(said["endedAt"])
    )
    if abs(offset) < clock_difference.WARNING_SECONDS:
        return DoctorFinding(where, "clock", "ok", "agrees with this machine's")
    state: State = "problem" if abs(offset) >= CLOCK_PROBLEM_SECONDS else "warning"
    return DoctorFinding(
        where,
        "clock",
        state,
        clock_difference.offset_text(offset),
        "run timedatectl on both, set the wrong clock, and install systemd-timesyncd",
    )


def space_findings(where: str, facts: HostFacts) -> list[DoctorFinding]:
    """Return findings about space; folders on the same disk as / are covered by it."""
    disks = facts.part("disks")
    found = []
    for folder, (name, room, todo) in ROOMS.items():
        disk = disks.get(folder)
        if disk is None and folder != "/":
            continue  # the folder comes with a deployment
        found.append(space_finding(where, name, DiskSpace(**disk) if disk else None, room, todo))
    return found


def gate_findings(where: str, facts: HostFacts) -> list[DoctorFinding]:
    checks = facts.part("health").get("checks")
    if not isinstance(checks, list):
        todo = "./inv deploy installs the host tool"
        return [
            DoctorFinding(where, "health gate", "problem", "the host tool does not answer", todo)
        ]
    return [
        DoctorFinding(
            where,
            str(check["name"]),
            "ok" if check["ok"] else "problem",
            str(check["detail"]),
            None if check["ok"] else GATE_TODO.get(str(check["name"]), "./inv deploy"),
        )
        for check in checks
    ]


def drift_findings(where: str, facts: HostFacts) -> list[DoctorFinding]:
    """Return differences that endanger VMs, beside those that the gate checks."""
    found = []
    for name, answer in facts.part("look").items():
        if name == "polkit":  # told with what the probe asked polkit
            continue
        well, todo = DRIFT_TEXTS[name]
        lines = answer
        if isinstance(answer, dict):
            failed = [answer["message"]] if "error" in answer else []
            lines = failed or answer.get("differences") or answer.get("damage") or []
        state: State = "problem" if lines else "ok"
        found.append(
            DoctorFinding(
                where, name, state, SEPARATOR.join(lines) or well, todo if lines else None
            )
        )
    return found


def health_finding(where: str, facts: HostFacts) -> DoctorFinding:
    report = facts.part("controller")
    status = str(report.get("status", "not asked"))
    parts = report.get("components")
    ill = [
        f"{name}: {part.get('detail')}"
        for name, part in (parts if isinstance(parts, dict) else {}).items()
        if part.get("status") != "healthy"
    ]
    if status == "healthy" and not ill:
        return DoctorFinding(where, "controller's health", "ok", "healthy, with all its parts")
    state: State = "warning" if status == "healthy" else "problem"
    todo = "on the host: journalctl -u master-controller.service"
    return DoctorFinding(where, "controller's health", state, "; ".join([status, *ill]), todo)


def polkit_finding(where: str, facts: HostFacts) -> DoctorFinding:
    """Check polkit's own answers: the controller may start VMs, and nothing else."""
    if lines := facts.part("look").get("polkit"):
        said = [lines["message"]] if isinstance(lines, dict) else lines
        return DoctorFinding(where, "polkit", "problem", SEPARATOR.join(said), "./inv deploy")
    polkit = facts.part("polkit")
    starts_vms, starts_others = polkit.get("vm"), polkit.get("other")
    if starts_others:
        found = f"the controller may start {host_probe.ASKED['other']}, which it must not"
        todo = "check other rules in /etc/polkit-1/rules.d, then run ./inv deploy"
        return DoctorFinding(where, "polkit", "problem", found, todo)
    if starts_vms:
        return DoctorFinding(
            where, "polkit", "ok", "the controller may start VMs, and nothing else"
        )
    if starts_vms is None:
        active = facts.part("units").get("polkit.service") or "unknown"
        found = f"does not answer; polkit.service is {active}"
        todo = "run ./inv deploy, then ./inv doctor again"
        return DoctorFinding(where, "polkit", "warning", found, todo)
    if not reads_rules(version := str(facts.said.get("polkitVersion") or "")):
        todo = "use Debian 12, Debian 13 or Ubuntu 24.04: VMs cannot be started there"
        return DoctorFinding(
            where, "polkit", "problem", f"{version} reads no rules in JavaScript", todo
        )
    found = "the controller may not start VMs"
    return DoctorFinding(where, "polkit", "problem", found, "./inv deploy installs the rule")


def reads_rules(version: str) -> bool:
    """Whether polkit of this version (`pkcheck version 122`) reads our rules; yes if unknown."""
    numbers = re.search(r"(\d+)(?:\.(\d+))?", version)
    if numbers is None:
        return True
    return (int(numbers[1]), int(numbers[2] or 0)) >= OLDEST_POLKIT


def kvm_finding(where: str, facts: HostFacts) -> DoctorFinding:
    """Report which accelerator the host found by booting a VM, when it was started."""
    if facts.accelerator == "kvm":
        return DoctorFinding(where, "KVM", "ok", "a VM boots under it")
    if facts.accelerator is None:
        active = facts.part("units").get("polydev-accelerator.service") or "unknown"
        return DoctorFinding(
            where,
            "KVM",
            "warning",
            f"not tried: polydev-accelerator.service is {active}, so VMs run under TCG",
            "./inv deploy; on the host: journalctl -u polydev-accelerator.service",
        )
    why = facts.part("accelerator").get("why") or "unknown reason"
    return DoctorFinding(where, "KVM", "warning", f"{why}: VMs run without; {TCG_TEXT}", KVM_TODO)


def memory_finding(where: str, facts: HostFacts) -> DoctorFinding:
    """Check whether the VMs of all slots fit into the host's memory."""
    sizes, config = facts.config.get("vm") or {}, facts.config
    slots = config.get("slots") or facts.part("host").get("slots") or []
    each = int(sizes.get("memory_mib", VM_MEMORY_MIB)) * MIB
    if facts.accelerator != "kvm":
        each += int(sizes.get("translation_cache_mib", VM_TRANSLATION_CACHE_MIB)) * MIB
    total, count, held = int(facts.said.get("memoryBytes") or 0), *templates_memory(facts)
    wanted = each * len(slots) + held
    shown = f"{len(slots)} VMs need up to {gibibytes(each * len(slots))} of {gibibytes(total)}"
    if count:
        shown += f", and {count} template{'s' * (count > 1)} {gibibytes(held)}"
    todo = "use fewer slots or less memory for each VM, or add memory"
    if each + held > total:
        return DoctorFinding(
            where, "memory", "problem", f"one VM needs {gibibytes(each)}: {shown}", todo
        )
    if wanted > total:
        return DoctorFinding(where, "memory", "warning", shown, todo)
    return DoctorFinding(where, "memory", "ok", shown)


def failed_vms_finding(where: str, facts: HostFacts) -> DoctorFinding:
    failed = facts.said.get("failedVms") or []
    if not failed:
        return DoctorFinding(where, "VMs", "ok", "no unit of a VM has failed")
    return DoctorFinding(
        where,
        "VMs",
        "warning",
        f"failed: {', '.join(failed)}",
        f"./inv vms --all shows the reasons; on the host: journalctl -u {failed[0]}",
    )


def image_finding(where: str, facts: HostFacts) -> DoctorFinding:
    golden = facts.part("golden")
    if not golden:
        todo = "./inv deploy --target vm-agent"
        return DoctorFinding(where, "golden image", "problem", "there is none", todo)
    digest, created = str(golden.get("digest"))[:12], golden.get("createdAt")
    if not created:
        return DoctorFinding(
            where, "golden image", "warning", f"{digest}, of unknown age", "./inv deploy"
        )
    made = datetime.fromisoformat(str(created).replace("Z", "+00:00"))
    days = (datetime.fromtimestamp(facts.after, timezone.utc) - made).days
    shown = f"{digest}, built {days} days ago"
    if days < OLD_IMAGE_DAYS:
        return DoctorFinding(where, "golden image", "ok", shown)
    todo = "build a new one with ./inv up --no-lab, then run ./inv deploy"
    state: State = "problem" if days >= STALE_IMAGE_DAYS else "warning"
    return DoctorFinding(where, "golden image", state, f"{shown}: its browser lacks updates", todo)


def upstreams_finding(where: str, facts: HostFacts) -> DoctorFinding:
    upstreams = facts.part("upstreams")
    silent = {address: said for address, said in upstreams.items() if said != "ok"}
    if upstreams and not silent:
        shown = f"{', '.join(upstreams)} answer"
        return DoctorFinding(where, "upstream resolvers", "ok", shown)
    shown = "; ".join(f"{address}: {said}" for address, said in silent.items())
    some_answer = any(said.startswith(("ok", "answers")) for said in upstreams.values())
    state: State = "warning" if some_answer else "problem"
    todo = "set upstream_resolvers in the inventory to resolvers that the host reaches"
    return DoctorFinding(where, "upstream resolvers", state, shown or "none configured", todo)
