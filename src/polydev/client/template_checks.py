"""The doctor's checks of templates: which one is used, and how much space they take. Pure."""

from __future__ import annotations

from typing import Any

from polydev.client.doctor_findings import DoctorFinding, gibibytes
from polydev.client.host_facts import HostFacts

# Memory and disk space of a template, assumed until there is one to measure.
TEMPLATE_BYTES = 700 * 1024**2
LOGS = "./inv host.logs --unit polydev-template.service"


def templates_memory(facts: HostFacts) -> tuple[int, int]:
    """Return how many templates the holder has in memory once all were used, and their bytes.

    If templates are on, at least one is counted.
    """
    report = facts.part("templates")
    sizes = [int(each["diskBytes"]) for each in report.get("templates") or ()]
    if report.get("enabled") and not sizes:
        sizes = [TEMPLATE_BYTES]
    return len(sizes), sum(sizes)


def templates_finding(where: str, facts: HostFacts) -> DoctorFinding:
    """Check whether VMs are resumed from a template, and from which; without one, they boot."""
    report = facts.part("templates")
    holder = facts.part("units").get("polydev-templates.socket") or "unknown"
    if holder != "active":
        found = f"polydev-templates.socket is {holder}: templates cannot be used, so VMs boot"
        return DoctorFinding(where, "templates", "warning", found, "./inv deploy")
    if not report:
        found = "the controller does not report them"
        return DoctorFinding(where, "templates", "warning", found, "./inv deploy")
    if not report["enabled"]:
        return DoctorFinding(where, "templates", "ok", f"off: each VM boots{_room(facts)}")
    build = report["build"]
    if build["state"] == "failed":
        found = f"cannot make the golden image's template: {build['detail']}; {_instead(report)}"
        return DoctorFinding(where, "templates", "warning", found, f"{LOGS}; ./inv template.build")
    if build["state"] == "running":
        found = f"making the golden image's template: {build['detail']}; {_instead(report)}"
        return DoctorFinding(where, "templates", "ok", found)
    if report["serving"] is None or report["serving"] != report["wanted"]:
        found = f"the golden image has none; {_instead(report)}"
        return DoctorFinding(where, "templates", "warning", found, f"./inv template.build; {LOGS}")
    shown = f"{report['serving'][:12]} of the golden image serves{_room(facts)}{_pool(report)}"
    return DoctorFinding(where, "templates", "ok", shown)


def _pool(report: dict[str, Any]) -> str:
    """Return how many VMs wait for sessions; nothing for an older release, which has no pool."""
    pool = report.get("pool")
    if not pool or not pool["size"]:
        return ""
    missing = "" if pool["primed"] >= pool["size"] else f" ({pool['detail']})"
    return f"; {pool['primed']} of {pool['size']} VMs of the pool wait for sessions{missing}"


def _instead(report: dict[str, Any]) -> str:
    """Return what VMs start from now."""
    for each in report["templates"]:
        if each["serves"]:
            return f"VMs are resumed from image {each['imageDigest'][:12]}"
    return f"VMs boot: {report['bootsBecause']}"


def _room(facts: HostFacts) -> str:
    sizes = [int(each["diskBytes"]) for each in facts.part("templates")["templates"]]
    if not sizes:
        return ""
    return f"; {len(sizes)} take{'s' * (len(sizes) == 1)} {gibibytes(sum(sizes))} of disk"
