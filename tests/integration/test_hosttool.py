"""The packed host tool under the system's Python, with real processes that are killed."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from polydev import hosttool, processes
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import entry_of
from polydev.hosttool.paths import Paths
from polydev.hosttool.sqlite_database import (
    AT_REST,
    content_sha256,
    copy_database,
    remove_database,
    replace_database,
    restore_in_place,
)
from polydev.hosttool.verb_lock import lock_host, lock_slot
from polydev.hosttool.zipapp import zipapp_bytes

FIRST, SECOND = "20250130_120000-abcd0", "20250131_120000-abcd1"
Argv = list[str | Path]
PYTHON = "/usr/bin/python3"
# Ends like a service, so that SQLite closes the database and its write-ahead log.
DATABASE_USER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA journal_mode=WAL")
for line in sys.stdin:
    rows = connection.execute(line).fetchall()
    connection.commit()
    print(rows, flush=True)
connection.close()
"""
# Counts up by old and by new connections, until it is told to end; prints what is committed.
DATABASE_WRITER = """
import itertools, select, sqlite3, sys
kept = sqlite3.connect(sys.argv[1], timeout=60)
for number in itertools.count(1):
    connection = kept if number % 2 else sqlite3.connect(sys.argv[1], timeout=60)
    with connection:
        connection.execute("INSERT INTO notes VALUES (?)", (number,))
    print(number, flush=True)
    if select.select([sys.stdin], [], [], 0)[0]:
        break
"""


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tool") / "polydev-host"
    file.write_bytes(zipapp_bytes(Path(hosttool.__file__).parent))
    file.chmod(0o755)
    return file


def call(tool: Path, root: Path, *words: str, document: object = None) -> Any:
    done = processes.run(
        [tool, "--root", root, *words],
        input=None if document is None else json.dumps(document),
        check=False,
    )
    return json.loads(done.stdout)


@contextmanager
def started(*argv: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = processes.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def holder(
    tool: Path, root: Path, deployment: str = FIRST, seconds: int = 600, *, again: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """A process that holds the lock, and its first answer."""
    words = ["--id", deployment, "--owner", "ada@desk", "--purpose", "deploy"]
    argv: Argv = [tool, "--root", root, "lock", "hold", *words, "--seconds", str(seconds)]
    argv += ["--again"] if again else []
    with started(*argv) as process:
        yield process, json.loads(out(process).readline())


def out(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n".encode())
    process.stdin.flush()


def test_packed_tool_runs_under_system_python(tool: Path, tmp_path: Path) -> None:
    assert tool.read_bytes().startswith(b"#!/usr/bin/python3 -I\n")
    assert call(tool, tmp_path, "lock", "show") == {"lock": None, "held": False}


@pytest.mark.parametrize(
    ("words", "needed", "others"),
    [
        (
            "lock show",
            "deployment_lock",
            {"host_report", "health_gate", "slot_network", "backup"},
        ),
        (
            "record list",
            "deployment_counter",
            {"host_report", "health_gate", "slot_network", "backup"},
        ),
        ("slot list", "slot_network", {"host_report", "health_gate", "backup", "releases"}),
    ],
)
def test_verb_imports_no_modules_of_other_verbs(
    words: str, needed: str, others: set[str], tool: Path, tmp_path: Path
) -> None:
    argv: Argv = [PYTHON, "-I", "-X", "importtime", tool, "--root", tmp_path, *words.split()]
    loaded = {line.rpartition("|")[2].strip() for line in processes.run(argv).stderr.splitlines()}
    assert f"polydev.hosttool.{needed}" in loaded
    assert not loaded & {f"polydev.hosttool.{name}" for name in others}
    if words == "lock show":
        assert not loaded & {"subprocess", "sqlite3", "asyncio", "tempfile", "typing_extensions"}


def test_packed_modules_all_belong_to_a_verb(tool: Path) -> None:
    program = (
        "import sys, zipfile; sys.path.insert(0, sys.argv[1]); import polydev.hosttool.cli as cli; "
        "cli.parser(); names = zipfile.ZipFile(sys.argv[1]).namelist(); "
        "print([n for n in names if n[:-3].replace('/', '.') not in sys.modules])"
    )
    done = processes.run([PYTHON, "-I", "-c", program, tool])
    left = set(json.loads(done.stdout.replace("'", '"')))
    apart = {"__init__", "__main__", "zipapp", "upload"}  # the last two are the operator's
    assert {Path(name).stem for name in left} <= apart


def test_backup_and_restore_from_the_command_line(tool: Path, tmp_path: Path) -> None:
    place = tmp_path / "etc" / "polydev"
    place.mkdir(parents=True)
    (place / "dns.conf").write_text("cache-size=1\n")
    scope = {"paths": [str(place)]}
    before = call(tool, tmp_path, "listing", document=scope)
    assert call(tool, tmp_path, "backup", "create", "--id", FIRST, document=scope)["files"] == 1
    (place / "dns.conf").write_text("cache-size=2\n")
    (place / "new").mkdir()
    assert call(tool, tmp_path, "backup", "verify", "--id", FIRST)["whole"] is True
    assert call(tool, tmp_path, "restore", "--id", FIRST)["changes"] == 2
    assert call(tool, tmp_path, "restore", "--id", FIRST)["changes"] == 0
    assert call(tool, tmp_path, "listing", document=scope) == before


class TestLock:
    def test_released_lock_leaves_no_files(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path) as (process, said):
            assert (said["lock"]["owner"], said["stale"]) == ("ada@desk", None)
            assert call(tool, tmp_path, "lock", "show") == {"lock": said["lock"], "held": True}
            tell(process, "release")
            assert process.wait() == 0
        assert call(tool, tmp_path, "lock", "show") == {"lock": None, "held": False}

    def test_second_holder_is_told_the_owner(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path), holder(tool, tmp_path, SECOND) as (second, said):
            assert said["error"] == "lock-held"
            assert "ada@desk" in said["message"]
            assert second.wait() == 1

    def test_deployment_gets_its_lock_back_after_lost_connection(
        self, tool: Path, tmp_path: Path
    ) -> None:
        """The host has not noticed the loss, so the former holder still runs."""
        with holder(tool, tmp_path) as (former, said):
            with holder(tool, tmp_path, SECOND, again=True) as (stranger, refused):
                assert refused["error"] == "lock-held"
                assert stranger.wait() == 1
            with holder(tool, tmp_path, again=True) as (process, heir):
                assert heir["stale"] == said["lock"]
                assert former.wait() == -signal.SIGTERM
                tell(process, "release")
                assert process.wait() == 0

    @pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
    def test_signal_releases_the_lock(
        self, tool: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        with holder(tool, tmp_path) as (process, said):
            process.send_signal(number)
            assert process.wait() == -number
        with holder(tool, tmp_path, SECOND) as (_, heir):
            assert heir["stale"] == said["lock"]

    def test_lost_ssh_connection_releases_the_lock(self, tool: Path, tmp_path: Path) -> None:
        """As with SSH, the operator's process is killed and the pipe breaks."""
        words = ["--id", FIRST, "--owner", "a", "--purpose", "p", "--seconds", "600"]
        argv = [str(tool), "--root", str(tmp_path), "lock", "hold", *words]
        operator = (
            "import subprocess, sys, time; "
            "p = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE); "
            "print(p.stdout.readline().decode(), flush=True); time.sleep(600)"
        )
        with started(sys.executable, "-c", operator, *argv) as process:
            lock = json.loads(out(process).readline())["lock"]
            with closing_descriptor(os.pidfd_open(lock["pid"])) as tool_process:
                process.kill()
                process.wait()
                wait_for_end(tool_process)
        assert call(tool, tmp_path, "lock", "show") == {"lock": lock, "held": False}
        with holder(tool, tmp_path, SECOND) as (_, heir):
            assert heir["stale"] == lock

    def test_sighup_releases_lock_even_if_ignored(self, tool: Path, tmp_path: Path) -> None:
        words = ["--id", FIRST, "--owner", "a", "--purpose", "p", "--seconds", "600"]
        argv: Argv = ["nohup", tool, "--root", tmp_path, "lock", "hold", *words]
        with started(*argv) as process:
            out(process).readline()
            process.send_signal(signal.SIGHUP)
            assert process.wait() == -signal.SIGHUP

    def test_lock_without_renewal_is_released(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path, seconds=1) as (process, said):
            assert json.loads(out(process).readline())["error"] == "lock-expired"
            assert process.wait() == 1
        with holder(tool, tmp_path, SECOND) as (_, heir):
            assert heir["stale"]["id"] == said["lock"]["id"]

    def test_line_on_stdin_renews_the_lock(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path) as (process, said):
            tell(process, "still here")
            deadline = time.monotonic() + 60
            while call(tool, tmp_path, "lock", "show")["lock"] == said["lock"]:
                assert time.monotonic() < deadline
            renewed = call(tool, tmp_path, "lock", "show")["lock"]
            assert renewed == {**said["lock"], "expires": renewed["expires"]}
            assert renewed["expires"] > said["lock"]["expires"]

    def test_lock_break_ends_a_running_holder(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path) as (process, said):
            assert call(tool, tmp_path, "lock", "break") == {
                "broken": said["lock"],
                "wasHeld": True,
            }
            assert process.wait() == -signal.SIGTERM
        with holder(tool, tmp_path, SECOND) as (_, heir):
            assert heir["stale"] is None

    def test_lock_break_ends_a_stopped_holder(self, tool: Path, tmp_path: Path) -> None:
        with holder(tool, tmp_path) as (process, _):
            process.send_signal(signal.SIGSTOP)
            assert call(tool, tmp_path, "lock", "break")["wasHeld"]
            assert process.wait() == -signal.SIGTERM

    def test_lock_goes_to_one_of_many_concurrent_holders(self, tool: Path, tmp_path: Path) -> None:
        words = ["--owner", "a", "--purpose", "p", "--seconds", "600"]
        argv: Argv = [tool, "--root", tmp_path, "lock", "hold", "--id", FIRST, *words]
        holders = [
            processes.spawn(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)
        ]
        try:
            said = [json.loads(out(process).readline()) for process in holders]
            assert sorted("lock" in each for each in said) == [False] * 5 + [True]
            assert {each.get("error") for each in said} == {None, "lock-held"}
        finally:
            for process in holders:
                process.kill()
                process.communicate()


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for_end(process: int) -> None:
    """Wait until the process behind a pidfd has ended."""
    poller = select.poll()
    poller.register(process, select.POLLIN)
    assert poller.poll(60_000), "it lives on"


def opened(process: subprocess.Popen[bytes], file: Path) -> bool:
    """Return whether a process has this file open already."""
    try:
        descriptors = list(Path(f"/proc/{process.pid}/fd").iterdir())
        return any(os.path.realpath(each) == str(file) for each in descriptors)
    except OSError:
        return False


def await_open(process: subprocess.Popen[bytes], file: Path) -> None:
    deadline = time.monotonic() + 60
    while not opened(process, file):
        assert process.poll() is None, "it did not wait for its turn"
        assert time.monotonic() < deadline
        time.sleep(0.01)


HANDOVER = ("handover", "--release", FIRST)
CREATE = ("release", "create", "--id", FIRST, "--digest", "x", "--commit", "y")
MIGRATE = ("release", "migrate", "--id", FIRST, "--user", "nobody")
VERBS = (
    HANDOVER,
    CREATE,
    MIGRATE,
    ("release", "prune", "--keep", "1"),
    ("image", "add", "--digest", "a" * 64),
    ("image", "golden", "--digest", "a" * 64),
    ("image", "prune"),
    ("backup", "prune", "--keep", "1"),
    ("deadman", "arm", "--seconds", "90", "--backup", FIRST),
    ("deadman", "confirm"),
    ("controller", "token", "create"),
    ("database", "backup"),
    ("database", "restore"),
)


class TestConcurrentVerbs:
    """Two concurrent verbs, each in its own process."""

    @contextmanager
    def busy(self, tool: Path, root: Path) -> Iterator[Path]:
        """A verb that holds the host's lock: it reads an image from a pipe without end."""
        arrived = root / "var/lib/firecracker/snapshots/base/incoming" / ("b" * 64)
        arrived.mkdir(parents=True)
        pipe = arrived / "record.json"
        os.mkfifo(pipe)
        argv: Argv = [tool, "--root", root, "image", "add", "--digest", "b" * 64]
        with started(*argv) as process:
            with pipe.open("w"):  # opened once the verb reads it
                assert process.poll() is None
                yield root / "opt/polydev-ai/busy"
            answer = json.loads(out(process).read())
            assert answer["error"] == "image-damaged"

    @pytest.mark.parametrize("words", VERBS, ids=" ".join)
    def test_second_verb_waits_for_the_first(
        self, tool: Path, tmp_path: Path, words: tuple[str, ...]
    ) -> None:
        argv: Argv = [tool, "--root", tmp_path, *words]
        with self.busy(tool, tmp_path) as queue:
            assert queue.read_text().startswith(f"image add {'b' * 12}, pid ")
            second = processes.spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            await_open(second, queue)
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(0.3)
        answer = json.loads(out(second).read())
        second.communicate()
        assert "busy" not in str(answer.get("error"))

    def test_verb_that_waits_too_long_names_the_running_verb(
        self, tool: Path, tmp_path: Path
    ) -> None:
        with self.busy(tool, tmp_path):
            refused = pytest.raises(HostError, match=f"the host is busy: image add {'b' * 12}")
            with refused, lock_host(Paths.below(tmp_path), "it", wait_seconds=0):
                pass

    def test_slot_verbs_wait_only_for_the_same_slot(self, tool: Path, tmp_path: Path) -> None:
        """Slots have their own locks, since a verb that holds the host's may start slot units."""
        paths = Paths.below(tmp_path)
        with self.busy(tool, tmp_path), lock_slot(paths, 2, "slot down 2, pid 1"):
            assert call(tool, tmp_path, "slot", "up", "3")["error"] == "no-host"
            argv: Argv = [tool, "--root", tmp_path, "slot", "up", "2"]
            second = processes.spawn(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            await_open(second, paths.slot_queue(2))
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(0.3)
        assert json.loads(out(second).read())["error"] == "no-host"
        second.communicate()


class TestDatabaseInUse:
    """For processes that have the database open, a restore is a normal transaction."""

    @pytest.fixture
    def live(self, tmp_path: Path) -> Path:
        live = tmp_path / "live.sqlite3"
        with closing(sqlite3.connect(live)) as connection, connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE notes (text)")
            connection.executemany("INSERT INTO notes VALUES (?)", [("x" * 300,)] * 2000)
        copy_database(live, tmp_path / "stored")
        return live

    @staticmethod
    def ask(process: subprocess.Popen[bytes], sql: str) -> str:
        tell(process, sql)
        return out(process).readline().decode().strip()

    @staticmethod
    def has_new_rows(live: Path) -> bool:
        with closing(sqlite3.connect(live, timeout=60)) as connection:
            found = connection.execute("SELECT count(*) FROM notes WHERE text NOT LIKE 'x%'")
            return bool(found.fetchone()[0])

    def restore(self, live: Path) -> None:
        restore_in_place(live, live.with_name("stored"), entry_of(live))

    def test_open_connections_see_restored_rows(self, live: Path) -> None:
        user: Argv = [sys.executable, "-c", DATABASE_USER, live]
        count = "SELECT count(*) FROM notes"
        with started(*user) as old:
            self.ask(old, "INSERT INTO notes VALUES ('before')")
            self.restore(live)
            assert self.ask(old, count) == "[(2000,)]"
            with started(*user) as new:
                self.ask(old, "INSERT INTO notes VALUES ('old')")
                self.ask(new, "INSERT INTO notes VALUES ('new')")
                old.communicate()
                assert old.returncode == 0
                self.ask(new, "INSERT INTO notes VALUES ('newer')")
                with started(*user) as newest:
                    assert self.ask(newest, count) == "[(2003,)]"

    def test_writes_during_restore_neither_fail_nor_get_lost(self, live: Path) -> None:
        with started(sys.executable, "-c", DATABASE_WRITER, live) as writer:
            for _ in range(20):
                out(writer).readline()
                self.restore(live)
            line = b""
            while not self.has_new_rows(live):  # it may stand still after the last restore
                line = out(writer).readline()
            tell(writer, "end")
            said = (line + out(writer).read()).decode().split()
        last = int(said[-1])
        with closing(sqlite3.connect(live)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = connection.execute("SELECT text FROM notes WHERE text NOT LIKE 'x%'").fetchall()
        there = [int(row[0]) for row in rows]
        # The rows written since the last restore are there, in order and without a gap.
        assert there == list(range(there[0], last + 1))

    def test_wal_of_killed_process_is_not_applied_to_restored_database(self, live: Path) -> None:
        wanted = content_sha256(live)
        with started(sys.executable, "-c", DATABASE_USER, live) as killed:
            self.ask(killed, "INSERT INTO notes VALUES ('old')")
            killed.kill()
            killed.wait()
        assert Path(f"{live}-wal").stat().st_size
        self.restore(live)
        assert content_sha256(live) == wanted

    def test_open_database_file_is_not_replaced(self, live: Path) -> None:
        stored, entry = live.with_name("stored"), entry_of(live)
        with started(sys.executable, "-c", DATABASE_USER, live) as user:
            self.ask(user, "INSERT INTO notes VALUES ('mine')")
            with pytest.raises(HostError, match=f"open in process {user.pid} ") as failure:
                replace_database(live, stored, entry)
            assert failure.value.code == "database-in-use"
            with pytest.raises(HostError, match=f"open in process {user.pid} "):
                remove_database(live)
            assert self.ask(user, "SELECT count(*) FROM notes") == "[(2001,)]"
            user.communicate()
        replace_database(live, stored, entry)
        assert content_sha256(live) == content_sha256(stored, AT_REST)
