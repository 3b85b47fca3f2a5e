"""Verbs of backups, restores, the handover, and the dead-man timer."""

from __future__ import annotations

from dataclasses import replace

from polydev.hosttool import backup, backup_scope, deadman, release_handover, restore, restore_job
from polydev.hosttool.backup_manifest import read_backup, require_intact
from polydev.hosttool.backup_scope import scope_from
from polydev.hosttool.paths import require_id
from polydev.hosttool.restore_job import RestoreJob
from polydev.hosttool.verb import ID, LIMITS, Call, HostVerb, argument, required


def backup_create(call: Call) -> object:
    scope = scope_from(call.document())
    return backup.create(call.paths, call.systemd, call.arguments.id, scope).as_dict()


def backup_verify(call: Call) -> object:
    saved = read_backup(call.paths, call.arguments.id)
    require_intact(saved)
    return saved.as_dict() | {"whole": True}


def backup_list(call: Call) -> object:
    return {"backups": backup.list_backups(call.paths)}


def backup_prune(call: Call) -> object:
    return {"removed": backup.prune(call.paths, call.arguments.keep)}


def restore_backup(call: Call) -> object:
    arguments = call.arguments
    options = restore.RestoreOptions(arguments.reach, not arguments.no_database, call.limits)
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
    return release_handover.hand_over(call.paths, call.systemd, release, call.limits)


def deadman_arm(call: Call) -> object:
    arguments = call.arguments
    return deadman.arm(call.paths, call.systemd, arguments.backup, arguments.seconds)


def deadman_confirm(call: Call) -> object:
    return deadman.confirm(call.paths, call.systemd)


def deadman_status(call: Call) -> object:
    return deadman.status(call.paths, call.systemd)


def list_scope(call: Call) -> object:
    return backup_scope.list_scope(scope_from(call.document()))


VERBS = (
    HostVerb("backup create", "Back up what the scope on stdin names", backup_create, (ID,)),
    HostVerb("backup verify", "Check that a backup can be restored", backup_verify, (ID,)),
    HostVerb("backup list", "List all backups, newest first", backup_list),
    HostVerb(
        "backup prune",
        "Remove old backups",
        backup_prune,
        (required("--keep", type=int, help="how many of the newest stay"),),
    ),
    HostVerb(
        "restore",
        "Restore a backup",
        restore_backup,
        (
            ID,
            argument(
                "--reach",
                action="store_true",
                help="restore only what access to the host depends on",
            ),
            argument("--no-database", action="store_true", help="do not restore the database"),
            argument("--because", choices=["deadman"], help="what starts it, if not a person"),
            argument("--by", help="id of the deployment that started it with `restore-job`"),
            *LIMITS,
        ),
    ),
    HostVerb(
        "restore-job",
        "Start a restore that outlives this connection, or show its progress",
        start_restore,
        (ID, required("--by", help="id of the deployment or rollback that starts it")),
    ),
    HostVerb(
        "handover",
        "Switch the controller to another release without dropping a request",
        hand_over,
        (required("--release", help="id of an installed release"), *LIMITS),
    ),
    HostVerb(
        "deadman arm",
        "Start the dead-man timer, which restores a backup unless it is confirmed in time",
        deadman_arm,
        (
            required("--seconds", type=int, help="seconds until the timer restores the backup"),
            required("--backup", help="id of the backup to restore"),
        ),
    ),
    HostVerb("deadman confirm", "Stop the dead-man timer and keep the changes", deadman_confirm),
    HostVerb(
        "deadman status", "Show whether the dead-man timer is armed or has fired", deadman_status
    ),
    HostVerb("listing", "List all paths of the scope on stdin", list_scope),
)
