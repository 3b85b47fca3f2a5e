"""The table of all verbs: words, help, arguments, and the function that does it.

A function takes a `Call` and returns what is printed as JSON, or None for nothing more. To add
a verb, write its function and add a line to `VERBS`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from polydev.hosttool import (
    backup,
    deadman,
    handover,
    listing,
    lock,
    operations,
    records,
    restore,
    restore_job,
)
from polydev.hosttool.errors import HostError
from polydev.hosttool.handover import Limits
from polydev.hosttool.holding import hold
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.restore_job import RestoreJob
from polydev.hosttool.saved import load, require_whole
from polydev.hosttool.scope import scope_from
from polydev.hosttool.systemd import RealSystemd, Systemd


@dataclass(frozen=True)
class Call:
    """One call of the tool: its arguments, and the host that it works on."""

    arguments: argparse.Namespace
    paths: Paths = field(default_factory=Paths)
    systemd: Systemd = field(default_factory=RealSystemd)

    def document(self) -> dict[str, Any]:
        """The JSON object on stdin. Raises HostError `bad-input`."""
        try:
            value = json.load(sys.stdin.buffer)
        except ValueError as error:
            raise HostError("bad-input", f"stdin is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise HostError("bad-input", "stdin holds no JSON object")
        return value

    @property
    def limits(self) -> Limits:
        return Limits(self.arguments.start_timeout, self.arguments.drain_timeout)


@dataclass(frozen=True)
class Argument:
    """What `add_argument` takes."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Verb:
    words: str
    help: str
    run: Callable[[Call], object]
    arguments: tuple[Argument, ...] = ()


def argument(name: str, **options: Any) -> Argument:
    return Argument(name, options)


def required(name: str, **options: Any) -> Argument:
    return Argument(name, {"required": True, **options})


ID = required("--id", help="deployment id, as in 20250131_120000-1a2b3c4")
LIMITS = (
    argument("--start-timeout", type=float, default=90, help="seconds for a unit to come up (90)"),
    argument(
        "--drain-timeout", type=float, default=90, help="seconds for it to finish its work (90)"
    ),
)


def lock_hold(call: Call) -> object:
    arguments = call.arguments
    document = {"id": arguments.id, "owner": arguments.owner, "purpose": arguments.purpose}
    return hold(call.paths, arguments.seconds, document, again=arguments.again)


def lock_show(call: Call) -> object:
    return lock.show(call.paths)


def lock_break(call: Call) -> object:
    return lock.break_lock(call.paths)


def backup_create(call: Call) -> object:
    scope = scope_from(call.document())
    return backup.create(call.paths, call.systemd, call.arguments.id, scope).as_dict()


def backup_verify(call: Call) -> object:
    saved = load(call.paths, call.arguments.id)
    require_whole(saved)
    return saved.as_dict() | {"whole": True}


def backup_list(call: Call) -> object:
    return {"backups": backup.backups(call.paths)}


def backup_prune(call: Call) -> object:
    return {"removed": backup.prune(call.paths, call.arguments.keep)}


def restore_backup(call: Call) -> object:
    arguments = call.arguments
    options = restore.Options(arguments.reach, not arguments.no_database, call.limits)
    if arguments.because == "deadman":
        return restore.restore_for_deadman(call.paths, call.systemd, arguments.id, options)

    def run(say: restore_job.Say) -> dict[str, object]:
        return restore.restore(call.paths, call.systemd, arguments.id, replace(options, say=say))

    if not arguments.by:
        return run(options.say)
    return restore_job.follow(call.paths, RestoreJob(arguments.by, arguments.id), run)


def start_restore(call: Call) -> object:
    job = RestoreJob(call.arguments.by, call.arguments.id)
    return restore_job.start(call.paths, call.systemd, job)


def hand_over(call: Call) -> object:
    release = require_id(call.arguments.release)
    return handover.hand_over(call.paths, call.systemd, release, call.limits)


def operations_permit(call: Call) -> object:
    return operations.permit(call.paths, call.systemd, require_id(call.arguments.id))


def operations_stop(call: Call) -> object:
    return {"stopped": operations.stop(call.paths, call.systemd)}


def record_write(call: Call) -> object:
    return records.write(call.paths, call.document())


def record_list(call: Call) -> object:
    return {"records": records.records(call.paths)}


def record_show(call: Call) -> object:
    return records.show(call.paths, call.arguments.id)


def deadman_arm(call: Call) -> object:
    arguments = call.arguments
    return deadman.arm(call.paths, call.systemd, arguments.backup, arguments.seconds)


def deadman_confirm(call: Call) -> object:
    return deadman.confirm(call.paths, call.systemd)


def deadman_status(call: Call) -> object:
    return deadman.status(call.paths, call.systemd)


def list_scope(call: Call) -> object:
    return listing.listing(scope_from(call.document()))


VERBS = (
    Verb(
        "lock hold",
        "Hold the deployment lock until `release` or the end of stdin",
        lock_hold,
        (
            ID,
            required("--owner", help="who deploys"),
            required("--purpose", help="what for"),
            required("--seconds", type=int, help="let go after so long without a line on stdin"),
            argument(
                "--again",
                action="store_true",
                help="take over from a holder of the same deployment, whose connection was lost",
            ),
        ),
    ),
    Verb("lock show", "Whose the lock is, and whether they live", lock_show),
    Verb("lock break", "End the lock's holder and remove the lock", lock_break),
    Verb("backup create", "Save what the scope on stdin names", backup_create, (ID,)),
    Verb("backup verify", "See that a backup can be restored", backup_verify, (ID,)),
    Verb("backup list", "All backups, newest first", backup_list),
    Verb(
        "backup prune",
        "Remove old backups",
        backup_prune,
        (required("--keep", type=int, help="how many of the newest stay"),),
    ),
    Verb(
        "restore",
        "Bring the host back to what a backup says",
        restore_backup,
        (
            ID,
            argument("--reach", action="store_true", help="only what the way in depends on"),
            argument("--no-database", action="store_true", help="leave the database alone"),
            argument("--because", choices=["deadman"], help="who asks for it, if not a person"),
            argument("--by", help="id of the deployment that started it with `restore-job`"),
            *LIMITS,
        ),
    ),
    Verb(
        "restore-job",
        "Start a restore that goes on without this connection, or say how far it is",
        start_restore,
        (ID, required("--by", help="id of the deployment or rollback that asks")),
    ),
    Verb(
        "handover",
        "Let the controller run another release, without a dropped request",
        hand_over,
        (required("--release", help="id of an installed release"), *LIMITS),
    ),
    Verb(
        "operations permit",
        "Let a deployment's operations run, and end those of any other",
        operations_permit,
        (ID,),
    ),
    Verb("operations stop", "End the operations of every deployment", operations_stop),
    Verb("record write", "Write the record on stdin", record_write),
    Verb("record list", "All records, newest first", record_list),
    Verb("record show", "One record", record_show, (ID,)),
    Verb(
        "deadman arm",
        "Take changes back by itself unless confirmed in time",
        deadman_arm,
        (
            required("--seconds", type=int, help="time to confirm"),
            required("--backup", help="id of the backup to go back to"),
        ),
    ),
    Verb("deadman confirm", "Keep the changes", deadman_confirm),
    Verb("deadman status", "Whether the timer is armed, or went off", deadman_status),
    Verb("listing", "What lies in the scope on stdin", list_scope),
)
