"""A change of one host, complete or undone, on connections named by how they behave."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from polydev.deployment import deploy_and_rollback, history, restore, transaction
from polydev.deployment.connection import HostRefused, Unreachable
from polydev.deployment.deploy_and_rollback import DeployOptions
from polydev.deployment.pyinfra_process import (
    DescribedHost,
    Operation,
    Plan,
    PlannedDeployment,
    Project,
)
from polydev.deployment.restore import RestoreGoesOn
from polydev.deployment.transaction import Transaction
from polydev.deployment_records import Record
from polydev.errors import DeployError, Error, HealthGateFailed, LockHeld, RollbackFailed
from polydev.hosttool.restore_job import RestoreJob
from polydev.progress import Steps
from polydev.ssh import SshTarget

BEGIN = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)
FIRST, SECOND, THIRD, OWN = (f"2025013{day}_120000-abcd" for day in range(4))
SCOPE = {"paths": ["/etc/polydev"]}
PROJECT = Project(Path("/nowhere"), Path("/nowhere/inventory.py"))


def signals() -> list[object]:
    """Return the present effect of Ctrl-C and of the end of a terminal."""
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@dataclass
class Host:
    """The state of the host: its backups and records, and all calls in their order."""

    state: str | None = None
    backups: dict[str, str | None] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def keep(self, record: Record) -> None:
        self.records[record.id] = record.model_dump(mode="json", by_alias=True)

    def write(self, document: dict[str, Any]) -> dict[str, Any]:
        """Write as the host tool does: the first write of a record numbers it."""
        former = self.records.get(document["id"])
        number = former["number"] if former else len(self.records) + 1
        self.records[document["id"]] = {**document, "number": number}
        return self.records[document["id"]]

    def record(self, name: str = OWN) -> Record:
        return Record.model_validate(self.records[name])

    def succeeded(self, *names: str) -> None:
        """Add succeeded deployments in this order."""
        for number, name in enumerate(names):
            self.backups[name] = self.state
            self.keep(
                Record(
                    id=name,
                    number=number + 1,
                    status="succeeded",
                    started_at=BEGIN + timedelta(days=number),
                    state=name,
                    previous=self.state,
                    backup=True,
                    changes=1,
                )
            )
            self.state = name


class Connection:
    """A working connection to a healthy host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.target = SshTarget("browsers", "browsers")

    def install_tool(self) -> None:
        self.host.calls.append("tool")

    def command(self, text: str, **_: object) -> str:
        self.host.calls.append("records")
        return json.dumps({"records": list(self.host.records.values())})

    def tool(
        self, *words: str, document: object = None, timeout_seconds: float = 0
    ) -> dict[str, Any]:
        named = dict(zip(words[1::2], words[2::2], strict=False))
        named |= dict(zip(words[2::2], words[3::2], strict=False))
        verb = " ".join(word for word in words[:2] if not word.startswith("--"))
        values = json.loads(json.dumps(document)) if document else {}
        shown = values.get("status") or named.get("--id") or ""
        self.host.calls.append(f"{verb} {shown}".strip())
        return self.answer(verb, shown, values)

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb == "backup create":
            assert document == SCOPE
            self.host.backups[name] = self.host.state
        elif verb == "restore-job":
            self.host.state = self.host.backups[name]
            return {"state": "done", "answer": {"changed": ["/etc/polydev"]}}
        elif verb == "record write":
            return self.host.write(document)
        elif verb == "health":
            return self.health()
        return {}

    def health(self) -> dict[str, Any]:
        return {"ok": True, "checks": [check("units", True)]}

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        """Every restore ends at once."""
        return None

    def wait_until_back(self, seconds: float) -> None:
        self.host.calls.append(f"wait {seconds:g}")


def check(name: str, ok: bool) -> dict[str, Any]:
    return {"name": name, "ok": ok, "detail": "well" if ok else "not well"}


class SickAfterChange(Connection):
    """The health gate fails for the new state only."""

    def health(self) -> dict[str, Any]:
        ok = self.host.state != OWN
        return {"ok": ok, "checks": [check("units", True), check("controller", ok)]}


class SickHost(Connection):
    """The health gate always fails."""

    def health(self) -> dict[str, Any]:
        return {"ok": False, "checks": [check("controller", False)]}


class FullHost(Connection):
    """A host without space for a backup."""

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb == "backup create":
            raise HostRefused("no room", "make some")
        return super().answer(verb, name, document)


class DamagedBackup(Connection):
    """A host whose backup is damaged."""

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb in ("restore-job", "backup verify"):
            raise HostRefused(f"backup {name} is damaged")
        return super().answer(verb, name, document)


class DeadConnection(Connection):
    """A connection that is lost for good once the change began."""

    is_dead = False

    def tool(
        self, *words: str, document: object = None, timeout_seconds: float = 0
    ) -> dict[str, Any]:
        if self.is_dead:
            raise Unreachable("no route")
        return super().tool(*words, document=document, timeout_seconds=timeout_seconds)

    def wait_until_back(self, seconds: float) -> None:
        super().wait_until_back(seconds)
        raise Unreachable("still no route")


class DeadForAWhile(DeadConnection):
    """A lost connection that returns when the caller waits for it."""

    def wait_until_back(self, seconds: float) -> None:
        Connection.wait_until_back(self, seconds)
        self.is_dead = False


class LostDuringRestore(Connection):
    """A connection that is lost for good once the restore began."""

    is_restoring = False

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb == "restore-job":
            self.is_restoring = True
            return {"state": "running", "step": "files"}
        if self.is_restoring:
            raise Unreachable("no route")
        return super().answer(verb, name, document)

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        if self.is_restoring:
            raise Unreachable("no route")
        return None


class LostForAWhileDuringRestore(LostDuringRestore):
    """A connection that is lost during the restore and returns after it."""

    asked = 0

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        self.asked += self.is_restoring
        if 1 <= self.asked <= 10:
            return super().restore_state(job)
        if self.asked:
            self.is_restoring = False
            self.host.state = self.host.backups[job.backup]
            return {"state": "done", "answer": {"changed": ["/etc/polydev"]}}
        return None


class ForgetfulHost(Connection):
    """A host that refuses the record of a success only."""

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb == "record write" and document["status"] == "succeeded":
            raise HostRefused("no room for a record")
        return super().answer(verb, name, document)


class UntidyHost(Connection):
    """A host whose pruning fails."""

    def answer(self, verb: str, name: str, document: dict[str, Any]) -> dict[str, Any]:
        if verb.endswith("prune"):
            raise HostRefused("cannot remove it")
        return super().answer(verb, name, document)


class Lock:
    """The host's lock as this process sees it; `held` says whether it still has it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.is_held = True
        self.clock_offset_seconds = 0.0
        self.stale: Mapping[str, Any] | None = None
        host.calls.append("lock")

    def release(self) -> None:
        self.is_held = False
        self.host.calls.append("unlock")


@dataclass
class Bench:
    """One transaction and its fakes."""

    connection: Any
    change: Transaction
    locks: list[Lock]

    @property
    def host(self) -> Host:
        host: Host = self.connection.host
        return host

    def run(self, change: Callable[[], None] | None, *, gate: bool = True) -> Record:
        with self.change.locked("deploy"):
            return self.change.run(change, gate=gate)

    def make_new(self) -> None:
        self.host.calls.append("change")
        self.host.state = OWN

    def fail(self) -> None:
        self.make_new()
        raise DeployError("the third operation failed", "look at it")


def in_order(calls: list[str], *wanted: str) -> None:
    """Assert that these calls occur in this order, with any others in between."""
    rest = iter(calls)
    missing = [call for call in wanted if call not in rest]
    assert not missing, calls


def steps() -> Steps:
    return Steps(Console(file=io.StringIO()))


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


Make = Callable[..., Bench]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    def made(kind: type[Connection] = Connection, record_kind: Any = "deploy") -> Bench:
        host = Host()
        host.succeeded(FIRST)
        locks: list[Lock] = []

        def new_lock(*_: object, **__: object) -> Lock:
            locks.append(Lock(host))
            return locks[-1]

        monkeypatch.setattr(transaction, "HostLock", new_lock)
        monkeypatch.setattr(restore, "time", Clock())
        connection: Any = kind(host)
        described = DescribedHost("browsers", SshTarget("browsers", "browsers"), SCOPE, 20)
        record = Record(id=OWN, kind=record_kind, started_at=BEGIN + timedelta(days=9), who="ada")
        log_file = io.StringIO()
        log_file.name = "logs/own.log"
        return Bench(
            connection, Transaction(connection, described, record, steps(), log_file), locks
        )

    return made


class TestSuccess:
    def test_steps_of_a_deployment_run_in_order(self, make: Make) -> None:
        bench = make()
        record = bench.run(bench.make_new)
        in_order(
            bench.host.calls,
            *("lock", "records", "record write running"),
            *(f"backup create {OWN}", "record write running", "change", "health"),
            *("record write succeeded", "backup prune", "release prune", "unlock"),
        )
        kept = bench.host.record()
        assert kept == record
        assert (kept.status, kept.state, kept.previous) == ("succeeded", OWN, FIRST)
        assert kept.backup
        assert kept.finished_at
        assert kept.gate == {"ok": True, "checks": [check("units", True)]}

    def test_backup_is_recorded_before_the_change(self, make: Make) -> None:
        bench = make()

        def change() -> None:
            kept = bench.host.record()
            assert (kept.status, kept.backup) == ("running", True)
            bench.make_new()

        bench.run(change)

    def test_no_changes_means_health_gate_but_no_backup(self, make: Make) -> None:
        bench = make()
        record = bench.run(None)
        assert not [call for call in bench.host.calls if "backup" in call or "prune" in call]
        assert "health" in bench.host.calls
        assert (record.status, record.state) == ("succeeded", FIRST)

    def test_gate_is_skipped_on_request(self, make: Make) -> None:
        bench = make(SickHost)
        assert bench.run(bench.make_new, gate=False).status == "succeeded"

    def test_failed_pruning_does_not_fail_the_deployment(self, make: Make) -> None:
        bench = make(UntidyHost)
        assert bench.run(bench.make_new).status == "succeeded"

    def test_manual_backup_keeps_the_state(self, make: Make) -> None:
        bench = make(record_kind="backup")
        record = bench.run(lambda: None, gate=False)
        assert (record.state, record.previous, record.backup) == (FIRST, FIRST, True)


class TestFailure:
    def raised(self, bench: Bench, change: Callable[[], None] | None = None) -> Error:
        with pytest.raises(Error) as failure:
            bench.run(change or bench.make_new)
        assert bench.host.calls[-1] == "unlock"
        return failure.value

    def test_failed_operation_is_rolled_back(self, make: Make) -> None:
        bench = make()
        error = self.raised(bench, bench.fail)
        assert type(error) is DeployError
        assert "third operation failed" in error.message
        assert f"restored to {FIRST}" in error.message
        assert error.hint == "look at it"
        assert bench.host.state == FIRST
        kept = bench.host.record()
        assert (kept.status, kept.state) == ("rolled-back", FIRST)
        assert kept.reason == "the third operation failed"
        assert kept.undone
        assert kept.undone["restored"] == {"changed": ["/etc/polydev"]}
        assert kept.undone["gate"]["ok"]
        assert kept.gate is None

    def test_steps_of_an_undo_run_in_order(self, make: Make) -> None:
        bench = make()
        self.raised(bench, bench.fail)
        in_order(
            bench.host.calls,
            *("change", "wait 80", f"restore-job {OWN}", "health"),
            *("record write rolled-back", "unlock"),
        )

    def test_failed_gate_rolls_back_and_runs_the_gate_again(self, make: Make) -> None:
        bench = make(SickAfterChange)
        error = self.raised(bench)
        assert isinstance(error, HealthGateFailed)
        assert "controller: not well" in error.message
        assert "units" not in error.message
        assert error.hint == "see logs/own.log"
        kept = bench.host.record()
        assert kept.status == "rolled-back"
        assert kept.gate
        assert not kept.gate["ok"]
        assert kept.undone
        assert kept.undone["gate"]["ok"]

    def test_unhealthy_host_after_restore_raises_rollback_failed(self, make: Make) -> None:
        bench = make(SickHost)
        error = self.raised(bench)
        assert isinstance(error, RollbackFailed)
        assert "restoring the backup failed too" in error.message
        assert f"restore --id {OWN}" in str(error.hint)
        kept = bench.host.record()
        assert (kept.status, kept.state) == ("rollback-failed", None)
        assert kept.undone
        assert "controller" in kept.undone["failed"]

    def test_failed_gate_without_changes_restores_nothing(self, make: Make) -> None:
        bench = make(SickHost)
        with pytest.raises(HealthGateFailed, match="nothing changed"):
            bench.run(None)
        assert bench.host.record().status == "failed"
        assert not [call for call in bench.host.calls if call.startswith("restore-job")]

    def test_failed_backup_prevents_the_change(self, make: Make) -> None:
        bench = make(FullHost)
        error = self.raised(bench)
        assert isinstance(error, HostRefused)
        assert "nothing changed" in error.message
        assert error.hint == "make some"
        assert "change" not in bench.host.calls
        kept = bench.host.record()
        assert (kept.status, kept.backup, kept.state) == ("failed", False, FIRST)

    def test_damaged_backup_raises_rollback_failed(self, make: Make) -> None:
        bench = make(DamagedBackup)
        error = self.raised(bench, bench.fail)
        assert isinstance(error, RollbackFailed)
        assert "third operation" in error.message
        assert "is damaged" in error.message
        assert bench.host.record().status == "rollback-failed"

    def test_undo_waits_until_the_connection_is_back(self, make: Make) -> None:
        bench = make(DeadForAWhile)

        def change() -> None:
            bench.make_new()
            bench.connection.is_dead = True
            bench.locks[0].is_held = False
            raise Unreachable("no route")

        error = self.raised(bench, change)
        assert isinstance(error, Unreachable)
        assert bench.host.state == FIRST
        assert bench.host.record().status == "rolled-back"
        # The lock was lost with the connection, so it is taken again before the restore.
        calls = bench.host.calls
        assert len(bench.locks) == 2
        assert calls.index("unlock") < calls.index("lock", calls.index("lock") + 1)
        assert calls.index("lock", 1) < calls.index(f"restore-job {OWN}")
        assert not bench.locks[1].is_held

    def test_connection_that_stays_lost_raises_rollback_failed(self, make: Make) -> None:
        bench = make(DeadConnection)

        def change() -> None:
            bench.connection.is_dead = True
            raise Unreachable("no route")

        error = self.raised(bench, change)
        assert isinstance(error, RollbackFailed)
        assert "still no route" in error.message
        # Its record still says what the next deployment has to finish.
        kept = bench.host.record()
        assert (kept.status, kept.backup) == ("running", True)

    def test_restore_continued_by_the_host_is_not_recorded_as_failed(self, make: Make) -> None:
        bench = make(LostDuringRestore)
        error = self.raised(bench, bench.fail)
        assert isinstance(error, RestoreGoesOn)
        assert "third operation failed" in error.message
        assert f"continues the restore of {OWN} by itself" in error.message
        assert "the next deployment records how it ended" in error.message
        kept = bench.host.record()
        assert (kept.status, kept.backup) == ("running", True)

    def test_undo_survives_a_connection_lost_during_the_restore(self, make: Make) -> None:
        bench = make(LostForAWhileDuringRestore)
        error = self.raised(bench, bench.fail)
        assert type(error) is DeployError
        assert bench.host.calls.count(f"restore-job {OWN}") == 1
        kept = bench.host.record()
        assert (kept.status, bench.host.state) == ("rolled-back", FIRST)
        assert kept.undone
        assert kept.undone["restored"] == {"changed": ["/etc/polydev"]}

    def test_no_undo_if_another_operator_took_the_lock(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = make()

        def taken(*_: object, **__: object) -> Lock:
            raise LockHeld("ben holds the deployment lock")

        def change() -> None:
            bench.locks[0].is_held = False
            monkeypatch.setattr(transaction, "HostLock", taken)
            raise Unreachable("no route")

        error = self.raised(bench, change)
        assert isinstance(error, LockHeld)
        assert "no route" in error.message
        assert "ben holds the deployment lock" in error.message
        assert bench.host.record().status == "running"
        assert not [call for call in bench.host.calls if call.startswith("restore-job")]

    def test_no_undo_if_another_operator_recovered_the_host(self, make: Make) -> None:
        bench = make()

        def change() -> None:
            bench.locks[0].is_held = False
            finished = {"status": "interrupted", "reason": "recovered by ben"}
            bench.host.records[OWN] |= finished
            raise Unreachable("no route")

        error = self.raised(bench, change)
        assert isinstance(error, LockHeld)
        assert "recovered by ben" in error.message
        assert bench.host.record().status == "interrupted"
        assert not [call for call in bench.host.calls if call.startswith("restore")]

    def test_success_that_cannot_be_recorded_is_rolled_back(self, make: Make) -> None:
        bench = make(ForgetfulHost)
        self.raised(bench)
        assert bench.host.state == FIRST
        assert bench.host.record().status == "rolled-back"

    def test_ctrl_c_rolls_back_and_signals_are_ignored_meanwhile(self, make: Make) -> None:
        bench = make()
        seen = []
        before = signals()
        health = bench.connection.health

        def health_asked() -> dict[str, Any]:
            seen.append(signals())
            found: dict[str, Any] = health()
            return found

        bench.connection.health = health_asked

        def change() -> None:
            bench.make_new()
            raise KeyboardInterrupt

        error = self.raised(bench, change)
        assert type(error) is DeployError
        assert bench.host.record().status == "rolled-back"
        assert seen == [[signal.SIG_IGN] * 2]
        assert signals() == before

    def test_os_error_on_the_operators_machine_is_rolled_back(self, make: Make) -> None:
        bench = make()

        def change() -> None:
            bench.make_new()
            raise OSError(28, "No space left on device")

        assert "No space left" in self.raised(bench, change).message
        assert bench.host.state == FIRST

    def test_previous_state_is_unknown_after_a_failed_restore(self, make: Make) -> None:
        bench = make(SickHost)
        self.raised(bench)
        after = Record(id=THIRD, started_at=BEGIN + timedelta(days=10))
        bench.change.record = after
        bench.run(bench.make_new, gate=False)
        assert bench.host.record(THIRD).previous is None


def test_restore_confirms_the_dead_man_timer(make: Make) -> None:
    bench = make()
    bench.host.backups[SECOND] = FIRST
    with bench.change.locked("rollback"), steps().step("back") as step:
        bench.change.restore(SECOND, step)
    calls = bench.host.calls
    assert bench.host.state == FIRST
    assert calls[-2:] == ["deadman confirm", "unlock"], calls


class TestRecovery:
    def died(self, bench: Bench, *, backup: bool, kind: Any = "deploy") -> None:
        """A deployment whose operator's process was killed half-way."""
        bench.host.backups[SECOND] = bench.host.state
        bench.host.keep(
            Record(
                id=SECOND,
                number=2,
                kind=kind,
                status="running",
                started_at=BEGIN + timedelta(days=2),
                state=SECOND if backup else FIRST,
                previous=FIRST,
                backup=backup,
            )
        )
        bench.host.state = "half-way"

    def test_interrupted_deployment_is_undone_before_the_next_one(self, make: Make) -> None:
        bench = make()
        self.died(bench, backup=True)
        bench.run(bench.make_new)
        calls = bench.host.calls
        assert calls.index(f"restore-job {SECOND}") < calls.index("record write interrupted")
        assert calls.index("record write interrupted") < calls.index(f"backup create {OWN}")
        assert bench.host.backups[OWN] == FIRST
        kept = bench.host.record(SECOND)
        assert (kept.status, kept.state) == ("interrupted", FIRST)
        assert OWN in str(kept.reason)
        assert kept.finished_at
        assert kept.undone
        assert kept.undone["gate"]["ok"]
        assert bench.host.record().previous == FIRST

    def test_id_that_the_host_knows_already_is_refused(self, make: Make) -> None:
        """As when the operator's clock was set back: its backup would count as the new one."""
        bench = make()
        bench.host.succeeded(OWN)
        with pytest.raises(DeployError, match="this machine's clock was set back"):
            bench.run(bench.make_new)
        assert "change" not in bench.host.calls
        assert not bench.locks[0].is_held

    def test_interrupted_deployment_without_backup_is_not_restored(self, make: Make) -> None:
        bench = make()
        self.died(bench, backup=False)
        bench.run(bench.make_new)
        assert f"restore-job {SECOND}" not in bench.host.calls
        assert bench.host.record(SECOND).status == "interrupted"

    def test_failed_recovery_does_not_stop_the_next_deployment(self, make: Make) -> None:
        bench = make(DamagedBackup)
        self.died(bench, backup=True)
        assert bench.run(bench.make_new).status == "succeeded"
        kept = bench.host.record(SECOND)
        assert (kept.status, kept.state) == ("rollback-failed", None)
        assert kept.undone
        assert "damaged" in kept.undone["failed"]
        assert bench.host.record().previous is None

    def test_deployment_runs_after_recovery_left_an_unhealthy_host(self, make: Make) -> None:
        bench = make(SickHost)
        self.died(bench, backup=True)
        bench.run(bench.make_new, gate=False)
        kept = bench.host.record(SECOND)
        assert (kept.status, kept.state) == ("rollback-failed", FIRST)
        assert bench.host.record().previous == FIRST

    def test_recovery_is_left_to_the_next_run_if_host_is_unreachable(self, make: Make) -> None:
        bench = make(DeadConnection)
        self.died(bench, backup=True)
        bench.connection.is_dead = True
        with pytest.raises(Unreachable):
            bench.run(bench.make_new)
        assert bench.host.record(SECOND).status == "running"
        assert OWN not in bench.host.records
        assert bench.host.calls[-1] == "unlock"

    def test_recovery_leaves_ended_records_unchanged(self, make: Make) -> None:
        bench = make()
        before = dict(bench.host.records)
        bench.run(bench.make_new)
        assert bench.host.records[FIRST] == before[FIRST]


@pytest.fixture
def operator(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Operator:
    return Operator(make(), monkeypatch, tmp_path / "logs")


class Operator:
    """The verbs on a fake host."""

    def __init__(self, bench: Bench, patch: pytest.MonkeyPatch, logs: Path) -> None:
        self.bench, self.logs = bench, logs
        self.described = bench.change.host
        self.planned: dict[str, Any] = {}
        self.operations = [Operation("a", True, ("+ a",)), Operation("b", False, ())]

        @contextmanager
        def connected(_: DescribedHost) -> Iterator[Any]:
            yield bench.connection

        @contextmanager
        def planned(
            project: Project, host: str, data: Mapping[str, Any], log_file: Any, *, plan_only: bool
        ) -> Iterator[Any]:
            self.planned = {**data, "plan_only": plan_only}
            yield PlannedChange(self)

        patch.setattr(deploy_and_rollback, "connected", connected)
        patch.setattr(deploy_and_rollback, "planned", planned)
        patch.setattr(deploy_and_rollback, "new_deployment_id", lambda root: OWN)

    def become(self, kind: type[Connection]) -> None:
        self.bench.connection.__class__ = kind


class PlannedChange(PlannedDeployment):
    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self.plan = Plan(tuple(operator.operations))

    def go(self, say: Any) -> int:
        self.operator.bench.make_new()
        return 3


class TestVerbs:
    def test_deploy_runs_the_operations_and_records_them(self, operator: Operator) -> None:
        options = DeployOptions(target="vm-agent", data={"slots": 3})
        record = deploy_and_rollback.deploy(
            PROJECT, operator.described, options, steps(), operator.logs
        )
        assert (record.status, record.changes, record.operations) == ("succeeded", 3, ["a"])
        assert (record.target, record.commit, record.host) == ("vm-agent", "abcd", "browsers")
        assert operator.planned == {
            "slots": 3,
            "target": "vm-agent",
            "deployment_id": OWN,
            "plan_only": False,
        }
        assert operator.bench.host.calls[:2] == ["tool", "lock"]

    def test_operations_are_permitted_after_the_backup(self, operator: Operator) -> None:
        deploy_and_rollback.deploy(
            PROJECT, operator.described, DeployOptions(), steps(), operator.logs
        )
        calls = operator.bench.host.calls
        backup = calls.index(f"backup create {OWN}")
        assert backup < calls.index(f"operations permit {OWN}") < calls.index("change")

    def test_deploy_checks_its_lock_before_each_operation(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def go(self: Any, say: Any) -> int:
            operator.bench.make_new()
            operator.bench.locks[-1].is_held = False
            say("a", 0.5)
            return 1

        monkeypatch.setattr(PlannedChange, "go", go)
        with pytest.raises(DeployError, match="the lock was broken"):
            deploy_and_rollback.deploy(
                PROJECT, operator.described, DeployOptions(), steps(), operator.logs
            )
        assert operator.bench.host.state == FIRST

    def test_deploy_log_has_one_json_event_a_line(self, operator: Operator) -> None:
        deploy_and_rollback.deploy(
            PROJECT, operator.described, DeployOptions(), steps(), operator.logs
        )
        lines = (operator.logs / f"deployment-{OWN}.log").read_text().splitlines()
        events = [json.loads(line)["event"] for line in lines]
        assert events == ["record", "record", "gate", "record"]

    def test_deploy_without_changes_runs_no_operation(self, operator: Operator) -> None:
        operator.operations = [Operation("b", False, ())]
        record = deploy_and_rollback.deploy(
            PROJECT, operator.described, DeployOptions(), steps(), operator.logs
        )
        assert (record.status, record.changes) == ("succeeded", 0)
        assert "change" not in operator.bench.host.calls

    def test_bootstrap_skips_the_health_gate(self, operator: Operator) -> None:
        operator.become(SickHost)
        options = DeployOptions(bootstrap=True)
        record = deploy_and_rollback.deploy(
            PROJECT, operator.described, options, steps(), operator.logs
        )
        assert record.status == "succeeded"

    def test_a_plan_takes_no_lock_and_writes_nothing(self, operator: Operator) -> None:
        found = deploy_and_rollback.plan(
            PROJECT, operator.described, DeployOptions(target="vm-agent"), steps()
        )
        assert [each.name for each in found.changing] == ["a"]
        assert operator.planned == {"target": "vm-agent", "plan_only": True}
        assert operator.bench.host.calls == ["records"]
        assert found.warnings == ()

    def test_plan_shows_its_progress(self, operator: Operator) -> None:
        shown = io.StringIO()
        deploy_and_rollback.plan(
            PROJECT, operator.described, DeployOptions(), Steps(Console(file=shown, width=80))
        )
        assert "… browsers: plan" in shown.getvalue()

    def test_a_plan_warns_of_a_commit_that_this_checkout_does_not_contain(
        self, operator: Operator
    ) -> None:
        operator.bench.host.records[FIRST]["commit"] = "0123abcd"
        found = deploy_and_rollback.plan(PROJECT, operator.described, DeployOptions(), steps())
        operator.operations = []
        assert (
            deploy_and_rollback.plan(PROJECT, operator.described, DeployOptions(), steps()).warnings
            == ()
        )
        (warning,) = found.warnings
        assert "from commit 0123abcd, which this checkout does not have" in warning

    def test_plan_of_an_unreachable_host_shows_the_ssh_error(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        @contextmanager
        def planned(*_: Any, **__: Any) -> Iterator[Any]:
            raise DeployError("connection: it failed without a word")
            yield

        def command(self: Any, text: str, **_: Any) -> str:
            raise Unreachable("cannot reach browsers over SSH: Permission denied (publickey).")

        monkeypatch.setattr(deploy_and_rollback, "planned", planned)
        with pytest.raises(DeployError, match="without a word"):
            deploy_and_rollback.plan(PROJECT, operator.described, DeployOptions(), steps())
        monkeypatch.setattr(Connection, "command", command)
        with pytest.raises(Unreachable, match="publickey"):
            deploy_and_rollback.plan(PROJECT, operator.described, DeployOptions(), steps())

    def test_rollback_restores_the_previous_state(self, operator: Operator) -> None:
        host = operator.bench.host
        host.records.clear()
        host.state = None
        host.succeeded(FIRST, SECOND, THIRD)
        record = deploy_and_rollback.rollback(
            PROJECT, operator.described, None, steps(), operator.logs
        )
        assert (record.kind, record.status) == ("rollback", "succeeded")
        assert (record.state, record.previous) == (SECOND, THIRD)
        assert host.state == SECOND
        assert host.calls.index(f"backup verify {THIRD}") < host.calls.index(f"restore-job {THIRD}")
        assert host.backups[OWN] == THIRD

    def test_rollback_to_an_unhealthy_state_is_undone(self, operator: Operator) -> None:
        host = operator.bench.host
        host.records.clear()
        host.state = None
        host.succeeded(FIRST, SECOND, THIRD)

        class SickWhenOld(Connection):
            def health(self) -> dict[str, Any]:
                ok = self.host.state == THIRD
                return {"ok": ok, "checks": [check("controller", ok)]}

        operator.become(SickWhenOld)
        with pytest.raises(HealthGateFailed, match=f"restored to {THIRD}") as failure:
            deploy_and_rollback.rollback(PROJECT, operator.described, None, steps(), operator.logs)
        assert host.state == THIRD
        assert host.record().status == "rolled-back"
        backed_up = f"{SECOND} was restored as it was when {THIRD} backed it up"
        assert backed_up in failure.value.message
        assert f"./inv rollback --to {FIRST}" in str(failure.value.hint)

        host.keep(host.record().model_copy(update={"id": "20250301_120000-abcd"}))
        del host.records[OWN]
        with pytest.raises(HealthGateFailed) as failure:
            deploy_and_rollback.rollback(PROJECT, operator.described, FIRST, steps(), operator.logs)
        assert "rollback" not in str(failure.value.hint)
        assert f"the commit of {FIRST}" in str(failure.value.hint)

    def test_rollback_with_damaged_backup_suggests_the_next_state(self, operator: Operator) -> None:
        host = operator.bench.host
        host.records.clear()
        host.state = None
        host.succeeded(FIRST, SECOND, THIRD)
        operator.become(DamagedBackup)
        with pytest.raises(HostRefused, match=f"cannot roll back to {SECOND}") as failure:
            deploy_and_rollback.rollback(PROJECT, operator.described, None, steps(), operator.logs)
        assert failure.value.hint == f"./inv rollback --to {FIRST}"
        assert host.state == THIRD
        assert OWN not in host.records
        with pytest.raises(HostRefused) as failure:
            deploy_and_rollback.rollback(PROJECT, operator.described, FIRST, steps(), operator.logs)
        assert failure.value.hint == "no older state has a backup"

    def test_refused_rollback_releases_the_lock(self, operator: Operator) -> None:
        with pytest.raises(DeployError, match="nothing to roll back to"):
            deploy_and_rollback.rollback(PROJECT, operator.described, None, steps(), operator.logs)
        assert operator.bench.host.calls[-1] == "unlock"
        assert OWN not in operator.bench.host.records

    @pytest.mark.parametrize("verb", ["rollback", "backup"])
    def test_rollback_and_backup_wait_for_the_lock(
        self, operator: Operator, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        waited: list[float] = []

        def wait_for_lock(take: Any, seconds: float, say: Any) -> Any:
            waited.append(seconds)
            return take()

        monkeypatch.setattr(transaction, "wait_for_lock", wait_for_lock)
        operator.bench.host.succeeded(FIRST, SECOND)
        if verb == "rollback":
            deploy_and_rollback.rollback(
                PROJECT, operator.described, None, steps(), operator.logs, 60
            )
        else:
            deploy_and_rollback.back_up(PROJECT, operator.described, steps(), operator.logs, 60)
        assert waited == [60]

    def test_back_up_makes_a_backup_record(self, operator: Operator) -> None:
        record = deploy_and_rollback.back_up(PROJECT, operator.described, steps(), operator.logs)
        assert (record.kind, record.status, record.backup) == ("backup", "succeeded", True)
        assert operator.bench.host.backups[OWN] == FIRST

    def test_unlocking_takes_no_lock(self, operator: Operator) -> None:
        deploy_and_rollback.unlock(operator.described)
        assert operator.bench.host.calls == ["tool", "lock break"]

    def test_unreadable_records_are_skipped(self, operator: Operator) -> None:
        host = operator.bench.host
        host.records["x"] = {"id": "x", "status": "unreadable", "problem": "it is empty"}
        found = history.records_of(operator.bench.connection)
        assert [record.id for record in found] == [FIRST]


def test_signals_are_ignored_during_a_restore_only() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with transaction._ignoring_signals():
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(ZeroDivisionError), transaction._ignoring_signals():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(("replace_rows", "word"), [(True, "replace"), (False, "copy")])
def test_database_move_replaces_rows_only_on_request(replace_rows: bool, word: str) -> None:
    options = deploy_and_rollback.move_options(replace_rows=replace_rows, wait_seconds=7)
    assert options.data == {"move_database": word}
    assert (options.target, options.wait_seconds) == ("master-controller", 7)
