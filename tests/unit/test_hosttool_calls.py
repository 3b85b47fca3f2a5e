"""Each verb of the host tool: the functions it calls, and the locks it holds meanwhile."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.hosttool import cli, restore, slot_network, verb_lock
from polydev.hosttool.backup_scope import Scope
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore_job import RestoreJob
from polydev.hosttool.systemd import UnitTimeouts
from polydev.hosttool.verb import Call
from tests.unit.hosttool_host import FIRST, NEW, SECOND

DIGEST = "a" * 64
PATHS = Paths.below(Path("/nowhere"))
SYSTEMD: Any = SimpleNamespace()
DOCUMENT = {"units": ["a.service"]}
HOST = {"slots": [1]}
LIMITS = UnitTimeouts(7.0, 8.0)
LIMIT_WORDS = "--start-timeout 7 --drain-timeout 8"

ID = f"--id {FIRST}"
WHO = {"id": FIRST, "owner": "ada", "purpose": "deploy"}
# Verb, the function that does the work, its arguments; `Call` stands for the call itself.
CALLS: dict[str, tuple[str, tuple[object, ...], dict[str, object]]] = {
    "accounts mend --host /h": ("accounts.mend", ("accounts of", HOST), {}),
    "permissions mend": ("file_permissions.mend", ("trees of", PATHS), {}),
    "polkit mend --host /h": ("polkit.mend", (HOST, PATHS.root), {}),
    "settings mend --host /h": ("config_file_conflicts.mend", (HOST, PATHS.root), {}),
    "reserve keep": ("disk_reserve.keep_reserve", (PATHS,), {}),
    "look": ("host_report.inspect_host", (Call, DOCUMENT), {}),
    "apt locks": ("apt_locks.held", (PATHS,), {}),
    "health --seconds 3": ("health_gate.wait_until_healthy", (SYSTEMD, 3.0), {}),
    "slot up 2": ("slot_network.up", (2,), {}),
    "slot down 2": ("slot_network.down", (2,), {}),
    "slot list": ("slot_network.existing_slots", (), {}),
    "slot mend 2": ("network_repair.mend_slot", (2,), {}),
    "network check --host /h": ("network_state.check", (HOST,), {}),
    "network watch --seconds 3": ("network_watch.watch", (3.0,), {}),
    "network mend": ("network_repair.mend_bridge", (), {}),
    "image list": ("images.listing", (PATHS.images,), {}),
    f"image add --digest {DIGEST}": ("images.add", (DIGEST, PATHS.images), {}),
    f"image golden --digest {DIGEST}": ("images.make_golden", (DIGEST, PATHS.images), {}),
    "image prune": ("images.prune", (PATHS, PATHS.images), {}),
    f"release create {ID} --digest d --commit c": (
        "releases.create",
        (FIRST, "d", "c", PATHS, PATHS.controller),
        {},
    ),
    f"release migrate {ID} --user u": ("releases.migrate", (FIRST, PATHS, "u"), {}),
    "release prune --keep 4": ("releases.prune", (4, PATHS, PATHS.controller), {}),
    "record write": ("deployment_records.write", (PATHS, DOCUMENT), {}),
    "record list": ("deployment_records.records", (PATHS,), {}),
    f"record show {ID}": ("deployment_records.show", (PATHS, FIRST), {}),
    f"operations permit {ID}": ("deployment_slice.permit", (PATHS, SYSTEMD, FIRST), {}),
    "operations stop": ("deployment_slice.stop", (PATHS, SYSTEMD), {}),
    f"lock hold {ID} --owner ada --purpose deploy --seconds 9 --again": (
        "lock_verbs.hold_lock",
        (PATHS, 9, WHO),
        {"again": True},
    ),
    f"lock hold {ID} --owner ada --purpose deploy --seconds 9": (
        "lock_verbs.hold_lock",
        (PATHS, 9, WHO),
        {"again": False},
    ),
    "lock show": ("deployment_lock.show", (PATHS,), {}),
    "lock break": ("deployment_lock.break_lock", (PATHS,), {}),
    f"backup create {ID}": ("backup.create", (PATHS, SYSTEMD, FIRST, "scope"), {}),
    f"backup verify {ID}": ("backup_verbs.read_backup", (PATHS, FIRST), {}),
    "backup list": ("backup.list_backups", (PATHS,), {}),
    "backup prune --keep 4": ("backup.prune", (PATHS, 4), {}),
    f"restore {ID} --reach --no-database {LIMIT_WORDS}": (
        "restore.restore",
        (PATHS, SYSTEMD, FIRST, restore.RestoreOptions(True, False, LIMITS)),
        {},
    ),
    f"restore {ID} --because deadman {LIMIT_WORDS}": (
        "restore.restore_for_deadman",
        (PATHS, SYSTEMD, FIRST, restore.RestoreOptions(False, True, LIMITS)),
        {},
    ),
    f"restore-job {ID} --by {SECOND}": (
        "restore_job.start",
        (PATHS, SYSTEMD, RestoreJob(SECOND, FIRST)),
        {},
    ),
    f"handover --release {NEW} {LIMIT_WORDS}": (
        "release_handover.hand_over",
        (PATHS, SYSTEMD, NEW, LIMITS),
        {},
    ),
    f"deadman arm --seconds 9 --backup {FIRST}": ("deadman.arm", (PATHS, SYSTEMD, FIRST, 9), {}),
    "deadman confirm": ("deadman.confirm", (PATHS, SYSTEMD), {}),
    "deadman status": ("deadman.status", (PATHS, SYSTEMD), {}),
    "listing": ("backup_scope.list_scope", ("scope",), {}),
}
# Verbs that start a program of the controller; integration tests run it.
OF_DATABASE = ("controller user list", "database check", "database backup", "database restore")
MOVE = f"database move --release {NEW} --backup {FIRST}"

HOST_ALONE, SLOT_ALONE = "the host", "slot 2"
# The exclusive lock of each verb that changes backed up paths or a slot.
ALONE = {
    **dict.fromkeys(
        (
            f"image add --digest {DIGEST}",
            f"image golden --digest {DIGEST}",
            "image prune",
            f"release create {ID} --digest d --commit c",
            f"release migrate {ID} --user u",
            "release prune --keep 4",
            f"backup create {ID}",
            "backup prune --keep 4",
            f"restore {ID} --reach --no-database {LIMIT_WORDS}",
            f"restore {ID} --because deadman {LIMIT_WORDS}",
            f"restore {ID} --by {SECOND}",
            f"handover --release {NEW} {LIMIT_WORDS}",
            f"deadman arm --seconds 9 --backup {FIRST}",
            "deadman confirm",
            "controller user list",
            "database backup",
            "database restore",
            MOVE,
        ),
        HOST_ALONE,
    ),
    **dict.fromkeys(("slot up 2", "slot down 2", "slot mend 2"), SLOT_ALONE),
}


def say_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(DOCUMENT).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)


def call_of(words: str, paths: Paths = PATHS) -> Call:
    return Call(cli.parser(words.split()).parse_args(words.split()), paths, SYSTEMD)


def test_every_verb_is_in_the_tables() -> None:
    verbs = sorted(verb.words for verb in cli.verbs_of(None))
    words = [*CALLS, *OF_DATABASE, MOVE]
    assert [
        verb for verb in verbs if not any(f"{each} ".startswith(f"{verb} ") for each in words)
    ] == []


@pytest.mark.parametrize("words", CALLS)
def test_verb_calls_its_function_with_its_options(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, expected, options = CALLS[words]
    said: list[object] = []

    def work(*given: object, **more: object) -> Any:
        said.append((tuple(Call if isinstance(each, Call) else each for each in given), more))
        return SimpleNamespace(as_dict=lambda: {"answer": "of it"})

    @contextmanager
    def not_alone(*_: object) -> Iterator[None]:
        yield

    module, _, name = place.partition(".")
    say_on_stdin(monkeypatch)
    monkeypatch.setattr(verb_lock, "_locked", not_alone)
    monkeypatch.setattr(
        slot_network, "read_host", lambda file: HOST if file == Path("/h") else None
    )
    monkeypatch.setattr("polydev.hosttool.accounts.accounts_of", lambda host: ("accounts of", host))
    monkeypatch.setattr("polydev.hosttool.backup_verbs.scope_from", lambda _: "scope")
    monkeypatch.setattr("polydev.hosttool.backup_verbs.require_intact", lambda _: None)
    monkeypatch.setattr(
        "polydev.hosttool.file_permissions.trees", lambda paths: ("trees of", paths)
    )
    monkeypatch.setattr("polydev.hosttool.network_state.as_document", lambda found: found)
    monkeypatch.setattr(importlib.import_module(f"polydev.hosttool.{module}"), name, work)
    call = call_of(words)
    answer = call.arguments.verb.run(call)
    if expected[:1] in (("accounts of",), ("trees of",)):
        expected = (expected,)
    assert said == [(expected, options)]
    is_silent = words.startswith("network watch")
    assert (answer is None) == is_silent, "what the work answers is the verb's answer"


class Waits(Exception):
    """The verb waits for its turn."""


@pytest.mark.parametrize("words", ALONE)
def test_verb_waits_for_the_host_lock(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(_descriptor: int, what: str, _deadline: float) -> None:
        raise Waits(what)

    @contextmanager
    def no_lock(_: Call) -> Iterator[None]:
        yield

    # The steps before the lock do not wait.
    say_on_stdin(monkeypatch)
    for name in ("_end_by_signal", "read_backup"):
        monkeypatch.setattr(f"polydev.hosttool.database_verbs.{name}", lambda *_: None)
    for name in ("read_backup", "stop"):
        monkeypatch.setattr(f"polydev.hosttool.restore.{name}", lambda *_: None)
    monkeypatch.setattr("polydev.hosttool.database_verbs._deployment_lock", no_lock)
    monkeypatch.setattr("polydev.hosttool.backup_verbs.scope_from", lambda _: Scope(()))
    monkeypatch.setattr(verb_lock, "_take", take)
    call = call_of(words, Paths.below(tmp_path))
    with pytest.raises(Waits, match=f"^{ALONE[words]}$"):
        call.arguments.verb.run(call)


def test_restore_of_a_deployment_runs_as_a_restore_job(monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[object] = []

    def follow(paths: Paths, job: RestoreJob, run: Any) -> object:
        followed.append((paths, job))
        return run("say")

    def work(
        paths: Paths, systemd: object, backup_id: str, options: restore.RestoreOptions
    ) -> object:
        return (paths, systemd, backup_id, options)

    monkeypatch.setattr("polydev.hosttool.restore_job.follow", follow)
    monkeypatch.setattr(restore, "restore", work)
    call = call_of(f"restore {ID} --by {SECOND} {LIMIT_WORDS}")
    options = restore.RestoreOptions(False, True, LIMITS, "say")  # type: ignore[arg-type]
    assert call.arguments.verb.run(call) == (PATHS, SYSTEMD, FIRST, options)
    assert followed == [(PATHS, RestoreJob(SECOND, FIRST))]


@pytest.mark.parametrize("words", [words for words in CALLS if LIMIT_WORDS in words])
def test_default_limits_are_the_unit_timeouts(words: str) -> None:
    assert call_of(words.replace(LIMIT_WORDS, "")).limits == UnitTimeouts(90, 90)
