"""Verbs of the controller's database, which use the controller's own command line.

Each holds the verb lock, so that none runs during a restore or a backup of the host.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from polydev.durable_files import copy_new
from polydev.hosttool.backup import keep_moved_database
from polydev.hosttool.backup_manifest import Backup, read_backup
from polydev.hosttool.database_dump import COPY_ERROR, DUMP_NAME, exchange_folder
from polydev.hosttool.deployment_lock import HeldLock
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import require_id
from polydev.hosttool.release_handover import Handover
from polydev.hosttool.run_controller_command import (
    ControllerProgram,
    current_program,
    database_in_words,
)
from polydev.hosttool.units import MAIN, NEXT_PATTERN, SOCKET
from polydev.hosttool.verb import LIMITS, Call, HostVerb, argument, required
from polydev.hosttool.verb_lock import lock_host

RESTORE_LOCK_SECONDS = 3600
REPLACE_HINT = (
    "name an empty database in the secret database-url, or delete the rows of this one: "
    "`./inv database.move --to postgresql --replace`"
)


def controller(call: Call) -> object:
    """Run `master-controller` with this verb's output and exit status."""
    words = [str(word) for word in call.arguments.words]
    with lock_host(call.paths, f"controller {' '.join(words[:2])}"):
        sys.exit(_program(call).run_through(words))


def check(call: Call) -> object:
    """Let the current release check the database at the URL on stdin."""
    url = str(call.document().get("databaseUrl", ""))
    program = current_program(call.paths)
    if not program.file.exists():
        return {"checked": False}
    words = ["database", "check", "--no-tools"]
    return {"checked": True, **program.ask(*words, code="database-unusable", database_url=url)}


def backup(call: Call) -> object:
    """Write the answer as one line to stdout, then the copy."""
    with lock_host(call.paths, "database backup"), exchange_folder(_program(call)) as place:
        answer = _program(call).ask("database", "backup", str(place / DUMP_NAME), code=COPY_ERROR)
        sys.stdout.buffer.write(_line(answer))
        with (place / DUMP_NAME).open("rb") as copy:
            shutil.copyfileobj(copy, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return None


def restore(call: Call) -> object:
    """Replace the database with the copy on stdin, while holding the deployment lock."""
    _end_by_signal()
    with (
        _deployment_lock(call),
        lock_host(call.paths, "database restore"),
        exchange_folder(program := _program(call)) as place,
    ):
        with (place / DUMP_NAME).open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        program.own(place / DUMP_NAME)
        words = ("database", "restore", str(place / DUMP_NAME))
        if call.arguments.stop:
            program.ask(*words, "--check", code=COPY_ERROR)
        with _stopped(call) if call.arguments.stop else _running_on():
            return program.ask(*words, code=COPY_ERROR)


def move(call: Call) -> object:
    """Copy SQLite to the PostgreSQL database in the host's files, and start a release with it.

    The controller is stopped before the copy and starts with the release. After a failure it stays
    stopped: with an incomplete database it would end VMs that it does not know. The restore of the
    deployment's backup then starts it with SQLite.
    """
    arguments = call.arguments
    release, saved = require_id(arguments.release), read_backup(call.paths, arguments.backup)
    program = ControllerProgram(call.paths, call.paths.controller / "releases" / release)
    with lock_host(call.paths, f"database move for {release}"):
        _require_target(call, program)
        _stop(call)
        # Only now: earlier, systemd might have started the controller with the new files.
        call.systemd.act("daemon-reload", timeout_seconds=call.limits.start_seconds)
        saved = keep_moved_database(saved)
        with exchange_folder(program) as place:
            copy_new(saved.folder / "moved", place / DUMP_NAME)
            program.own(place / DUMP_NAME)
            said = program.ask("database", "restore", str(place / DUMP_NAME), code=COPY_ERROR)
        _require_all_moved(saved, said)
        handover = Handover(call.systemd, call.paths.controller, call.limits).to(release)
    return {**handover, "database": database_in_words(call.paths), "moved": saved.moved}


def _require_target(call: Call, program: ControllerProgram) -> None:
    """Raise HostError, before anything is stopped, if the target has rows of ours already."""
    found = program.ask("database", "check", "--no-tools", code="database-unusable")
    occupied = found.get("occupied")
    if isinstance(occupied, list) and occupied and not call.arguments.replace:
        raise HostError(
            "database-occupied",
            f"{database_in_words(call.paths)} has rows in {', '.join(occupied)} already",
            REPLACE_HINT,
        )


def _require_all_moved(saved: Backup, said: dict[str, object]) -> None:
    rows = said["rows"]
    assert isinstance(rows, dict)
    moved = saved.moved or {}
    lost = [name for name, count in rows.items() if moved.get(name, 0) != count]
    if lost:
        raise HostError(
            COPY_ERROR, f"not every row arrived in {', '.join(lost)}", "run the move again"
        )


def _program(call: Call) -> ControllerProgram:
    program = current_program(call.paths)
    if not program.file.exists():
        raise HostError("not-deployed", "no controller is deployed on this host", "./inv deploy")
    return program


def _line(answer: dict[str, object]) -> bytes:
    import json

    return f"{json.dumps(answer)}\n".encode()


def _end_by_signal() -> None:
    """Let signals raise SystemExit, so that the verb cleans up."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


@contextmanager
def _deployment_lock(call: Call) -> Iterator[None]:
    made = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    owner = os.environ.get("SUDO_USER", "root")
    document = {"id": f"{made}-0000", "owner": owner, "purpose": "database.restore"}
    lock = HeldLock(call.paths, RESTORE_LOCK_SECONDS, document)
    try:
        yield
    finally:
        lock.let_go(is_done=True)


def _stop(call: Call) -> None:
    """Stop the controller. The socket goes first: it would start the service again."""
    for unit in _running(call):
        call.systemd.act("stop", unit, timeout_seconds=call.limits.drain_seconds)


def _running(call: Call) -> list[str]:
    units = [SOCKET, MAIN, *call.systemd.loaded(NEXT_PATTERN)]
    states = call.systemd.states(units)
    return [unit for unit in units if states[unit].is_running]


@contextmanager
def _stopped(call: Call) -> Iterator[None]:
    """Stop the controller, and afterwards start its units that ran."""
    running = _running(call)
    try:
        _stop(call)
        yield
    finally:
        for unit in running:
            if unit in (SOCKET, MAIN):
                call.systemd.act("start", unit, timeout_seconds=call.limits.start_seconds)


@contextmanager
def _running_on() -> Iterator[None]:
    yield


VERBS = (
    HostVerb(
        "controller",
        "Run the controller's own command line, as its user and with its secrets",
        controller,
        (argument("words", nargs=argparse.REMAINDER, help="a verb of master-controller"),),
    ),
    HostVerb(
        "database check",
        "Check that the database at the URL on stdin can be used",
        check,
    ),
    HostVerb("database backup", "Write a copy of the database to stdout", backup),
    HostVerb(
        "database restore",
        "Replace the database with the copy on stdin",
        restore,
        (argument("--stop", action="store_true", help="stop the controller meanwhile"), *LIMITS),
    ),
    HostVerb(
        "database move",
        "Copy SQLite to PostgreSQL while the controller is stopped, then start it with that",
        move,
        (
            required("--release", help="id of the release that is to run"),
            required("--backup", help="id of the backup of this deployment"),
            argument("--replace", action="store_true", help="delete our rows in PostgreSQL first"),
            *LIMITS,
        ),
    ),
)
