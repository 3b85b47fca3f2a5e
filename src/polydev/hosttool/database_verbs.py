"""Verbs that use the controller's database by its own command line, one at a time.

Each holds the host alone, so that none comes in between while a restore or a backup is at work.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from polydev.hosttool.busy import alone
from polydev.hosttool.dump import CODE, NAME, exchange
from polydev.hosttool.errors import HostError
from polydev.hosttool.lock import Lock
from polydev.hosttool.program import Program, current_program, database_in_words
from polydev.hosttool.units import MAIN, NEXT_PATTERN, SOCKET

if TYPE_CHECKING:
    from polydev.hosttool.verbs import Call

RESTORE_LOCK_SECONDS = 3600


def controller(call: Call) -> object:
    """`master-controller` itself: its output and its exit status are this verb's."""
    words = [str(word) for word in call.arguments.words]
    with alone(call.paths, f"controller {' '.join(words[:2])}"):
        sys.exit(_program(call).run_through(words))


def where(call: Call) -> object:
    return {"database": database_in_words(call.paths)}


def check(call: Call) -> object:
    """Whether the database at the address on stdin can be used, as the current release sees it."""
    url = str(call.document().get("databaseUrl", ""))
    program = current_program(call.paths)
    if not program.file.exists():
        return {"checked": False}
    words = ["database", "check", "--no-tools"]
    return {"checked": True, **program.ask(*words, code="database-unusable", database_url=url)}


def show(call: Call) -> object:
    return _program(call).ask("database", "check", "--no-tools", code="database-unusable")


def backup(call: Call) -> object:
    """The answer as one line, then the copy."""
    with alone(call.paths, "database backup"), exchange(_program(call)) as place:
        answer = _program(call).ask("database", "backup", str(place / NAME), code=CODE)
        sys.stdout.buffer.write(_line(answer))
        with (place / NAME).open("rb") as copy:
            shutil.copyfileobj(copy, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    return None


def restore(call: Call) -> object:
    """Replace the database by the copy on stdin; no deployment may be under way meanwhile."""
    _end_by_signal()
    with (
        _deployment_lock(call),
        alone(call.paths, "database restore"),
        exchange(program := _program(call)) as place,
    ):
        with (place / NAME).open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        program.own(place / NAME)
        with _stopped(call) if call.arguments.stop else _as_it_is():
            return program.ask("database", "restore", str(place / NAME), code=CODE)


def _program(call: Call) -> Program:
    program = current_program(call.paths)
    if not program.file.exists():
        raise HostError("not-deployed", "no controller is deployed there", "./inv deploy")
    return program


def _line(answer: dict[str, object]) -> bytes:
    import json

    return f"{json.dumps(answer)}\n".encode()


def _end_by_signal() -> None:
    """Let a signal that ends the verb run what must be done at its end."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


@contextmanager
def _deployment_lock(call: Call) -> Iterator[None]:
    made = time.strftime("%Y%m%d_%H%M%S", time.gmtime())
    owner = os.environ.get("SUDO_USER", "root")
    document = {"id": f"{made}-0000", "owner": owner, "purpose": "database.restore"}
    lock = Lock(call.paths, RESTORE_LOCK_SECONDS, document)
    try:
        yield
    finally:
        lock.let_go(is_done=True)


@contextmanager
def _stopped(call: Call) -> Iterator[None]:
    """Stop the controller, and start again what of it ran. The socket would start it before."""
    systemd, limits = call.systemd, call.limits
    units = [SOCKET, MAIN, *systemd.loaded(NEXT_PATTERN)]
    states = systemd.states(units)
    running = [unit for unit in units if states[unit].is_running]
    try:
        for unit in running:
            systemd.act("stop", unit, timeout_seconds=limits.drain_seconds)
        yield
    finally:
        for unit in running:
            if unit in (SOCKET, MAIN):
                systemd.act("start", unit, timeout_seconds=limits.start_seconds)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
