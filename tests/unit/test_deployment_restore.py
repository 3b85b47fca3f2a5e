"""A restore that the host does by itself, and an operator whose connection does not last.

The restore is the real one, on a host that is a folder; connections and hosts are named by how
they fail.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from polydev.deployment import connection as connections
from polydev.deployment import restore as operator_restore
from polydev.deployment.connection import (
    HostConnection,
    HostRefused,
    TookTooLong,
    Unreachable,
)
from polydev.deployment.restore import RestoreGoesOn
from polydev.errors import CommandTimeout, DeployError
from polydev.hosttool import restore, restore_job
from polydev.hosttool.disk_reserve import keep_reserve
from polydev.hosttool.restore_controller import ControllerRestore
from polydev.hosttool.restore_job import RestoreJob
from polydev.hosttool.systemd import UnitStatus
from polydev.processes import Completed
from polydev.ssh import SshTarget
from tests.unit.hosttool_host import FIRST, NEW, SECOND, Host, ToolConnection, deploy

JOB = RestoreJob(SECOND, FIRST)


@pytest.fixture
def host(host: Host) -> Host:
    """A host with a backup, and a deployment after it."""
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    return host


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_restore, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(operator_restore, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(operator_restore, "LONGEST_PAUSE_SECONDS", 0.001)


class Operator:
    """An operator who waits for the restore; `told` has the messages."""

    def __init__(self, connection: Any, patience_seconds: float = 60) -> None:
        self.connection, self.patience_seconds = connection, patience_seconds
        self.told: list[str] = []
        self.locks = 0

    def say(self, detail: str) -> None:
        self.told.append(detail)

    def require_lock(self) -> None:
        self.locks += 1

    def restore(self, job: RestoreJob = JOB) -> dict[str, Any]:
        return operator_restore.restore_backup(
            self.connection,
            job,
            require_lock=self.require_lock,
            say=self.say,
            patience_seconds=self.patience_seconds,
        )


@pytest.fixture
def slow(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Run the restore in the background; it waits at the database until this event is set."""
    may_go_on = threading.Event()
    real = ControllerRestore.restore_database
    threads: list[threading.Thread] = []

    def restore_database(self: Any) -> str | None:
        assert may_go_on.wait(60)
        return real(self)

    def start(unit: str, argv: Sequence[str]) -> None:
        threads.append(threading.Thread(target=host.systemd.run_to_end, args=(unit, argv)))
        threads[-1].start()

    monkeypatch.setattr(ControllerRestore, "restore_database", restore_database)
    host.systemd.starts = start
    yield may_go_on
    may_go_on.set()
    for thread in threads:
        thread.join()


class Told(Operator):
    """An operator who releases the restore once it has reported this step."""

    def __init__(self, connection: Any, seen: str, then: Callable[[], object]) -> None:
        super().__init__(connection)
        self.seen, self.then = seen, then

    def say(self, detail: str) -> None:
        super().say(detail)
        if detail == self.seen:
            self.then()


class Lossy(ToolConnection):
    """A connection that loses requests before or after they arrive; `lost` counts them."""

    lost = 0

    def __init__(self, host: Host, *, asks: int = 0, starts: int = 0) -> None:
        super().__init__(host)
        self.asks, self.starts = asks, starts

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        state = super().restore_state(job)
        if state is not None and self.asks:
            self.asks -= 1
            self.lost += 1
            raise Unreachable("no route")
        return state

    def tool(
        self, *words: str, document: object = None, timeout_seconds: float = 0
    ) -> dict[str, Any]:
        found = super().tool(*words, document=document, timeout_seconds=timeout_seconds)
        if words[0] == "restore-job" and self.starts:
            self.starts -= 1
            self.lost += 1
            raise Unreachable("no answer came through")
        return found


class Away(ToolConnection):
    """A host that answers no more once the restore has begun."""

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        if self.host.systemd.started:
            raise Unreachable("no route")
        return super().restore_state(job)


class NeverThere(ToolConnection):
    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        raise Unreachable("no route")


def test_restore_starts_once_and_returns_its_result(host: Host) -> None:
    found = Operator(ToolConnection(host)).restore()
    assert found["id"] == FIRST
    assert found["database"] == "replaced"
    assert len(host.systemd.started) == 1
    assert host.restore()["changes"] == 0


def test_slow_restore_is_awaited_and_reports_each_step(host: Host, slow: threading.Event) -> None:
    operator = Told(ToolConnection(host), "database", slow.set)
    assert operator.restore()["changes"]
    assert "database" in operator.told
    assert set(operator.told) <= {
        *("starting", "ending the commands of the deployment"),
        *("waiting for other work on the host", "checking the backup"),
        *("files", "database", "units", "controller"),
    }


@pytest.mark.parametrize(("asks", "starts"), [(3, 0), (0, 1), (2, 1)])
def test_reconnecting_does_not_start_the_restore_twice(host: Host, asks: int, starts: int) -> None:
    connection = Lossy(host, asks=asks, starts=starts)
    operator = Operator(connection)
    found = operator.restore()
    assert found["changes"], "what the first start changed is told"
    assert len(host.systemd.started) == 1
    assert connection.lost == asks + starts
    assert operator.told.count("no connection: trying again") == asks + starts
    assert operator.locks > asks + starts, "the host must be ours after each loss"


def test_restore_continues_on_the_host_if_the_connection_stays_lost(
    host: Host, slow: threading.Event
) -> None:
    operator = Operator(Away(host), patience_seconds=0)
    with pytest.raises(RestoreGoesOn, match="continues the restore") as lost:
        operator.restore()
    assert "no route" in lost.value.message
    assert JOB.name in str(lost.value.hint)
    slow.set()
    later = Operator(ToolConnection(host)).restore()
    assert later["changes"]
    assert len(host.systemd.started) == 1


def test_host_never_reached_raises_unreachable(host: Host) -> None:
    with pytest.raises(Unreachable) as lost:
        Operator(NeverThere(host), patience_seconds=0).restore()
    assert type(lost.value) is Unreachable
    assert not host.systemd.started


def test_interrupted_restore_is_started_again(host: Host) -> None:
    def start(unit: str, argv: Sequence[str]) -> None:
        if len(host.systemd.started) < operator_restore.MOST_STARTS:
            host.systemd.active.pop(unit)  # killed before its first step
        else:
            host.systemd.run_to_end(unit, argv)

    host.systemd.starts = start
    assert Operator(ToolConnection(host)).restore()["changes"]
    assert len(host.systemd.started) == operator_restore.MOST_STARTS


def test_restore_fails_after_three_interruptions(host: Host) -> None:
    host.systemd.starts = lambda unit, argv: host.systemd.active.pop(unit)
    with pytest.raises(DeployError, match="was interrupted 3 times") as failure:
        Operator(ToolConnection(host)).restore()
    assert f"journalctl -u {JOB.unit}" in str(failure.value.hint)


def test_restore_failure_has_the_reason_of_the_host(host: Host) -> None:
    (host.paths.backups / FIRST / "database").write_bytes(b"flipped")
    with pytest.raises(HostRefused, match="is damaged") as refused:
        Operator(ToolConnection(host)).restore()
    assert refused.value.hint


def test_unexpected_exception_on_the_host_ends_the_restore(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "read_backup", lambda *_: 1 // 0)
    with pytest.raises(HostRefused, match="ZeroDivisionError"):
        Operator(ToolConnection(host)).restore()


def test_restored_older_host_tool_is_not_called(host: Host) -> None:
    """The restored tool may be of an earlier version, which knows no such verb."""

    class OlderTool(ToolConnection):
        def tool(self, *words: str, **options: Any) -> dict[str, Any]:
            if self.host.systemd.started:
                raise HostRefused("usage: no such verb")
            return super().tool(*words, **options)

    connection = OlderTool(host)
    operator = Operator(connection)

    def start(unit: str, argv: Sequence[str]) -> None:
        threading.Timer(0.05, host.systemd.run_to_end, (unit, argv)).start()

    host.systemd.starts = start
    assert operator.restore()["changes"]


def test_each_deployment_has_its_own_restore_job(host: Host) -> None:
    Operator(ToolConnection(host)).restore()
    again = Operator(ToolConnection(host)).restore(RestoreJob(NEW, FIRST))
    assert again["changes"] == 0
    assert len(host.systemd.started) == 2


def test_restore_that_runs_is_not_started_again(host: Host) -> None:
    host.systemd.starts = lambda unit, argv: None
    first = restore_job.start(host.paths, host.systemd, JOB)
    assert restore_job.start(host.paths, host.systemd, JOB) == first
    assert len(host.systemd.started) == 1
    del host.systemd.active[JOB.unit]
    restore_job.start(host.paths, host.systemd, JOB)
    assert len(host.systemd.started) == 2, "it broke off"


def test_restore_that_ends_at_this_moment_is_not_started_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.systemd.starts = lambda unit, argv: None
    restore_job.start(host.paths, host.systemd, JOB)
    states = host.systemd.states

    def ends_when_asked(units: Sequence[str]) -> dict[str, UnitStatus]:
        restore_job.follow(host.paths, JOB, lambda say: {"changes": 3})
        del host.systemd.active[JOB.unit]
        return states(units)

    monkeypatch.setattr(host.systemd, "states", ends_when_asked)
    state = restore_job.start(host.paths, host.systemd, JOB)
    assert (state["state"], state["answer"]) == (restore_job.DONE, {"changes": 3})
    assert len(host.systemd.started) == 1


def test_restore_state_is_written_to_a_full_disk_with_the_reserve(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_reserve(host.paths)
    host.paths.restores.mkdir(parents=True)
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if host.paths.reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    host.systemd.starts = lambda unit, argv: None
    assert restore_job.start(host.paths, host.systemd, JOB)["state"] == restore_job.RUNNING
    found = restore_job.read_state(host.paths, JOB)
    assert found is not None
    assert found["state"] == restore_job.RUNNING


def test_restore_state_is_removed_with_its_backup(host: Host) -> None:
    Operator(ToolConnection(host)).restore()
    host.backup(SECOND)
    (host.paths.backups / FIRST).rename(host.root / "gone")
    Operator(ToolConnection(host)).restore(RestoreJob(NEW, SECOND))
    assert restore_job.read_state(host.paths, JOB) is None


@pytest.mark.parametrize(
    ("active", "text", "expected"),
    [
        ("inactive", "", None),
        ("active", '{"state": "running", "step": "files"}', "running"),
        ("inactive", '{"state": "running", "step": "files"}', None),
        ("inactive", '{"state": "done", "answer": {}}', "done"),
        ("failed", '{"state": "failed", "error": {}}', "failed"),
    ],
)
def test_restore_state_is_read_from_unit_and_file(
    monkeypatch: pytest.MonkeyPatch, active: str, text: str, expected: str | None
) -> None:
    connection = HostConnection(SshTarget("browsers", "browsers"))
    monkeypatch.setattr(connection, "command", lambda _: f"{active}\n{text}\n")
    state = connection.restore_state(JOB)
    assert (state and state["state"]) == expected
    connection.close()


def test_command_timeout_is_not_reported_as_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(argv: list[str], **_: object) -> Completed:
        if "-O" in argv:
            return Completed((), 0, "", "", 0)
        raise CommandTimeout(argv, 1, "")

    monkeypatch.setattr(connections, "run", run)
    connection = HostConnection(SshTarget("browsers", "browsers"))
    with pytest.raises(TookTooLong, match="did not end within 1 s") as late:
        connection.command("sleep 9", timeout_seconds=1)
    assert not isinstance(late.value, Unreachable)
    with pytest.raises(TookTooLong):
        connection.wait_until_back(0)
    connection.close()
