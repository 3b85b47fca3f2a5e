"""The host tool's verbs about the database, with a fake program of the controller.

tests/integration/test_hosttool_database.py has the real one, and PostgreSQL.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from polydev.durable_files import write_new
from polydev.hosttool import database_dump, database_verbs, deployment_lock
from polydev.hosttool.cli import parser
from polydev.hosttool.errors import HostError
from polydev.hosttool.run_controller_command import secrets_of, without_secrets
from polydev.hosttool.units import MAIN, SOCKET, next_unit
from polydev.hosttool.verb import Call
from tests.unit.hosttool_host import FIRST, NEW, OLD, Host

COPY = b"all rows"


class Program:
    """The controller's program; it records its calls and refuses those that match `fails`."""

    def __init__(self, host: Host) -> None:
        self.host, self.paths = host, host.paths
        self.file = host.controller.release(OLD) / "venv/bin/master-controller"
        self.log = host.systemd.log
        self.fails = ""
        self.answer: dict[str, Any] = {"rows": {"notes": 1}}
        self.given: bytes | None = None

    def ask(self, *words: str, code: str, database_url: str | None = None) -> dict[str, Any]:
        home = str(self.paths.home)
        said = " ".join(word.replace(home, "HOME") for word in words)
        self.log.append(said if database_url is None else f"{said} of {database_url}")
        if words[:2] == ("database", "backup"):
            Path(words[2]).write_bytes(COPY)
        if words[:2] == ("database", "restore"):
            self.given = Path(words[2]).read_bytes()
        if self.fails and self.fails in said:
            raise HostError(code, "refused")
        return self.answer

    def own(self, path: Path) -> None:
        self.log.append(f"own {path.name}")

    def run_through(self, words: Sequence[str]) -> int:
        self.log.append(" ".join(words))
        return 7


@pytest.fixture
def program(host: Host, monkeypatch: pytest.MonkeyPatch) -> Program:
    made = Program(host)
    monkeypatch.setattr(database_verbs, "current_program", lambda _: made)
    monkeypatch.setattr(database_verbs, "ControllerProgram", lambda *_: made)
    host.systemd.log.clear()
    return made


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(host: Host, words: str, stdin: bytes = b"{}") -> Any:
    arguments = parser(words.split()).parse_args(words.split())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return arguments.verb.run(Call(arguments, host.paths, host.systemd))


def exchange_is_gone(host: Host) -> bool:
    return not (host.paths.home / "exchange").exists()


def test_controller_verb_passes_the_command_line_on(host: Host, program: Program) -> None:
    with pytest.raises(SystemExit) as end:
        run(host, "controller user list --json")
    assert end.value.code == 7
    assert program.log == ["user list --json"]


@pytest.mark.parametrize(
    "words",
    ["controller user list", "database backup", "database restore", "database restore --stop"],
)
def test_verbs_without_a_controller_are_refused(words: str, host: Host, program: Program) -> None:
    program.file.unlink()
    with pytest.raises(HostError, match="no controller is deployed on this host") as told:
        run(host, words)
    assert told.value.code == "not-deployed"
    assert program.log == []
    assert not deployment_lock.is_held(host.paths)


def test_check_uses_the_installed_release(host: Host, program: Program) -> None:
    asked = b'{"databaseUrl": "postgresql://x"}'
    assert run(host, "database check", asked) == {"checked": True, **program.answer}
    assert program.log == ["database check --no-tools of postgresql://x"]
    program.file.unlink()
    assert run(host, "database check", asked) == {"checked": False}


def test_backup_is_written_to_stdout(
    host: Host, program: Program, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(host, "database backup") is None
    assert capsysbinary.readouterr().out == json.dumps(program.answer).encode() + b"\n" + COPY
    assert program.log == [
        "own exchange",
        f"database backup HOME/exchange/{database_dump.DUMP_NAME}",
    ]
    assert exchange_is_gone(host)


def test_failed_backup_leaves_no_files(host: Host, program: Program) -> None:
    program.fails = "backup"
    with pytest.raises(HostError, match="refused") as told:
        run(host, "database backup")
    assert told.value.code == database_dump.COPY_ERROR
    assert exchange_is_gone(host)


REPLACED = f"database restore HOME/exchange/{database_dump.DUMP_NAME}"


def test_restore_holds_the_deployment_lock(
    host: Host, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[object] = []
    ask = program.ask

    def look(*words: str, **more: Any) -> dict[str, Any]:
        found: Any = deployment_lock.show(host.paths)
        held.append((found["held"], found["lock"]["purpose"], found["lock"]["owner"]))
        return ask(*words, **more)

    monkeypatch.setattr(program, "ask", look)
    monkeypatch.setenv("SUDO_USER", "ada")
    assert run(host, "database restore", COPY) == program.answer
    assert held == [(True, "database.restore", "ada")]
    assert program.given == COPY
    assert program.log == ["own exchange", f"own {database_dump.DUMP_NAME}", REPLACED]
    assert deployment_lock.show(host.paths) == {"lock": None, "held": False}
    assert exchange_is_gone(host)


def test_failed_restore_releases_the_lock(host: Host, program: Program) -> None:
    program.fails = "restore"
    with pytest.raises(HostError, match="refused"):
        run(host, "database restore", COPY)
    assert deployment_lock.show(host.paths) == {"lock": None, "held": False}
    assert exchange_is_gone(host)


def test_restore_is_refused_during_a_deployment(host: Host, program: Program) -> None:
    other = deployment_lock.HeldLock(
        host.paths, 60, {"id": FIRST, "owner": "ada", "purpose": "deploy"}
    )
    with pytest.raises(HostError) as told:
        run(host, "database restore", COPY)
    assert told.value.code == "lock-held"
    assert program.log == []
    other.let_go(is_done=True)


@pytest.mark.parametrize("fails", ["", f"{REPLACED}$"])
def test_restore_stops_and_restarts_the_controller(
    host: Host, program: Program, fails: str
) -> None:
    host.systemd.active[next_unit(NEW)] = "active"
    if fails:
        ask = program.ask

        def refuse(*words: str, **more: Any) -> dict[str, Any]:
            answer = ask(*words, **more)
            if "--check" not in words:
                raise HostError("x", "refused")
            return answer

        program.ask = refuse  # type: ignore[method-assign]
        with pytest.raises(HostError, match="refused"):
            run(host, "database restore --stop", COPY)
    else:
        run(host, "database restore --stop", COPY)
    assert program.log == [
        "own exchange",
        f"own {database_dump.DUMP_NAME}",
        f"{REPLACED} --check",
        f"stop {SOCKET}",
        f"stop {MAIN}",
        f"stop {next_unit(NEW)}",
        REPLACED,
        f"start {SOCKET}",
        f"start {MAIN}",
    ]


def test_restore_of_an_unsuitable_copy_stops_nothing(host: Host, program: Program) -> None:
    program.fails = "--check"
    with pytest.raises(HostError, match="refused"):
        run(host, "database restore --stop", COPY)
    assert not [line for line in program.log if line.startswith("stop")]


def test_restore_does_not_start_a_stopped_controller(host: Host, program: Program) -> None:
    del host.systemd.active[MAIN]
    run(host, "database restore --stop", COPY)
    assert [line for line in program.log if line.startswith(("stop", "start"))] == [
        f"stop {SOCKET}",
        f"start {SOCKET}",
    ]


class TestMove:
    words = f"database move --release {NEW} --backup {FIRST}"

    @pytest.fixture(autouse=True)
    def saved(self, host: Host) -> None:
        host.backup()
        host.release(NEW)

    @pytest.fixture
    def moving(self, host: Host, program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
        def keep(saved: Any) -> Any:
            program.log.append("copy")
            write_new(saved.folder / "moved", COPY)
            return _Moved(saved)

        monkeypatch.setattr(database_verbs, "keep_moved_database", keep)
        return program

    def test_move_runs_its_steps_in_order(self, host: Host, moving: Program) -> None:
        answer = run(host, self.words)
        assert moving.log[:8] == [
            "database check --no-tools",
            f"stop {SOCKET}",
            f"stop {MAIN}",
            "daemon-reload",
            "copy",
            "own exchange",
            f"own {database_dump.DUMP_NAME}",
            REPLACED,
        ]
        assert moving.given == COPY
        assert answer["moved"] == {"notes": 1}
        assert host.controller.current.readlink() == Path(f"releases/{NEW}")
        assert host.systemd.active[MAIN] == "active"
        assert exchange_is_gone(host)

    @pytest.mark.parametrize("fails", ["check", "restore"])
    def test_failed_move_does_not_start_the_controller(
        self, host: Host, moving: Program, fails: str
    ) -> None:
        moving.fails = fails
        with pytest.raises(HostError, match="refused"):
            run(host, self.words)
        assert not [line for line in moving.log if line.startswith("start")]
        assert (MAIN in host.systemd.active) == (fails == "check")
        assert host.controller.current.readlink() == Path(f"releases/{OLD}")

    def test_move_fails_if_rows_are_missing(self, host: Host, moving: Program) -> None:
        moving.answer = {"rows": {"notes": 2}}
        with pytest.raises(HostError, match="not every row arrived in notes"):
            run(host, self.words)
        assert MAIN not in host.systemd.active

    @pytest.mark.parametrize(
        ("occupied", "replace", "is_refused"),
        [(["notes"], "", True), (["notes"], " --replace", False), ([], "", False)],
    )
    def test_move_to_occupied_tables_needs_replace(
        self, host: Host, moving: Program, occupied: list[str], replace: str, is_refused: bool
    ) -> None:
        moving.answer = {"occupied": occupied, "rows": {"notes": 1}}
        if is_refused:
            with pytest.raises(HostError, match="has rows in notes already") as told:
                run(host, self.words + replace)
            assert told.value.code == "database-occupied"
            assert moving.log == ["database check --no-tools"]
        else:
            run(host, self.words + replace)

    def test_move_without_its_backup_is_refused(self, host: Host, moving: Program) -> None:
        with pytest.raises(HostError) as told:
            run(host, self.words.replace(FIRST, "20990101_000000-abcd"))
        assert told.value.code == "backup-missing"
        assert moving.log == []


class _Moved:
    def __init__(self, saved: Any) -> None:
        self.folder = saved.folder
        self.moved = {"notes": 1}


def test_signals_exit_through_system_exit(host: Host, program: Program) -> None:
    run(host, "database restore", COPY)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        handler: Any = signal.getsignal(number)
        with pytest.raises(SystemExit) as end:
            handler(number, None)
        assert end.value.code == 128 + number


def test_unfinished_secret_files_are_ignored(host: Host) -> None:
    folder = host.paths.controller_config / "secrets"
    (folder / ".database-url.polydev-new").write_text("half")
    (folder / "folder").mkdir()
    (folder / "database-url").write_text(" postgresql://ada:secret@db/x\n")
    assert secrets_of(host.paths) == {
        "database-url": "postgresql://ada:secret@db/x",
        "jwt-secret": "secret 1",
    }


@pytest.mark.parametrize(
    ("url", "text", "shown"),
    [
        (
            "postgresql://ada:secret@db/x",
            "no secret for postgresql://ada:secret@db/x",
            "no *** for ***",
        ),
        ("", "as it is", "as it is"),
        ("no address at all", "no address at all", "***"),
    ],
)
def test_without_secrets_masks_the_url_and_password(url: str, text: str, shown: str) -> None:
    assert without_secrets(text, {"POLYDEV_CONTROLLER_DATABASE_URL": url}) == shown
