"""Verbs about the host as a whole: inspected, corrected, checked."""

from __future__ import annotations

from polydev.hosttool import (
    accounts,
    apt_locks,
    config_file_conflicts,
    disk_reserve,
    file_permissions,
    health_gate,
    host_report,
    polkit,
    slot_network,
)
from polydev.hosttool.network_verbs import DECLARED
from polydev.hosttool.verb import Call, HostVerb, required


def accounts_mend(call: Call) -> object:
    return accounts.mend(accounts.accounts_of(slot_network.read_host(call.arguments.host)))


def permissions_mend(call: Call) -> object:
    return file_permissions.mend(file_permissions.trees(call.paths))


def polkit_mend(call: Call) -> object:
    return polkit.mend(slot_network.read_host(call.arguments.host), call.paths.root)


def settings_mend(call: Call) -> object:
    return config_file_conflicts.mend(slot_network.read_host(call.arguments.host), call.paths.root)


def reserve_keep(call: Call) -> object:
    disk_reserve.keep_reserve(call.paths)
    return {"kept": str(call.paths.reserve)}


def look_at_host(call: Call) -> object:
    return host_report.inspect_host(call, call.document())


def apt_locked(call: Call) -> object:
    return apt_locks.held(call.paths)


def health(call: Call) -> object:
    return health_gate.wait_until_healthy(call.systemd, call.arguments.seconds)


VERBS = (
    HostVerb("accounts mend", "Correct our users", accounts_mend, (DECLARED,)),
    HostVerb(
        "permissions mend",
        "Correct the permissions of files that root or the controller trusts",
        permissions_mend,
    ),
    HostVerb(
        "polkit mend", "Remove polkit rules of others about our users", polkit_mend, (DECLARED,)
    ),
    HostVerb(
        "settings mend",
        "Comment out settings of other files that override ours",
        settings_mend,
        (DECLARED,),
    ),
    HostVerb("reserve keep", "Reserve disk space for restores on a full disk", reserve_keep),
    HostVerb(
        "look", "Show where the host is not as the document on stdin declares it", look_at_host
    ),
    HostVerb("apt locks", "List the processes that hold locks of apt or dpkg", apt_locked),
    HostVerb(
        "health",
        "Run the health gate: check until all is well or the time is up",
        health,
        (required("--seconds", type=float, help="how long to wait until all is well"),),
    ),
)
