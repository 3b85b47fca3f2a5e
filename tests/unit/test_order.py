"""The order of deployments comes from the host's counter, whatever the operators' clocks say.

The verbs run against the real host tool, on a host that is a folder. `TIMES` are what the
operators' clocks say at each of three deployments.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from polydev import deployment_id
from polydev.controller.host.deployments import newest_failed
from polydev.deployment import deploy_and_rollback, history, timeouts_and_retention, transaction
from polydev.deployment.deploy_and_rollback import DeployOptions
from polydev.deployment.pyinfra_process import (
    DescribedHost,
    Operation,
    Plan,
    PlannedDeployment,
    Project,
)
from polydev.deployment_records import (
    Record,
    backup_of,
    current_state,
    newest_first,
    rollback_state,
)
from polydev.durable_files import json_bytes, read_json
from polydev.hosttool import (
    backup,
    backup_manifest,
    deployment_lock,
    deployment_records,
    lock_verbs,
    releases,
)
from polydev.hosttool.deployment_counter import next_number
from polydev.hosttool.deployment_lock import HeldLock
from polydev.hosttool.restore import _later
from polydev.progress import Steps
from polydev.ssh import SshTarget
from tests.unit.hosttool_host import Host, ToolConnection, bare_host, deploy

NOON = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)
AHEAD, HOUR = timedelta(minutes=10), timedelta(hours=1)
MINUTE = timedelta(minutes=1)
TIMES = {
    "right": (NOON, NOON + MINUTE, NOON + 2 * MINUTE),
    "first-ahead": (NOON + AHEAD, NOON + MINUTE, NOON + 2 * MINUTE),
    "second-ahead": (NOON, NOON + MINUTE + AHEAD, NOON + 2 * MINUTE),
    "goes-back": (NOON, NOON - HOUR, NOON - 2 * HOUR),
    "jumps": (NOON - HOUR, NOON + HOUR, NOON),
}
PROJECT = Project(Path("/nowhere"), Path("/nowhere/inventory.py"))


class Lock:
    """A lock that is always free, on a host with this clock offset."""

    def __init__(self, offset_seconds: float) -> None:
        self.clock_offset_seconds = offset_seconds
        self.stale: Mapping[str, Any] | None = None
        self.is_held = True

    def release(self) -> None:
        self.is_held = False


class Deploys(PlannedDeployment):
    """Deploy as pyinfra does: a new release with its own configuration."""

    def __init__(self, host: Host, release: str) -> None:
        self.host, self.release = host, release
        self.plan = Plan((Operation("all", True, ()),))

    def go(self, say: object) -> int:
        deploy(self.host, self.release[-1], self.release)
        known = {"id": self.release, "number": next_number(self.host.paths)}
        (self.host.controller.release(self.release) / "release.json").write_bytes(json_bytes(known))
        return 1


class Operators:
    """People who deploy, each from a machine with a clock of its own."""

    def __init__(self, host: Host, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.host, self.patch, self.logs = host, patch, folder / "logs"
        self.said = io.StringIO()
        self.steps = Steps(Console(file=self.said, width=200))
        scope = self.host.scope.as_dict()
        self.described = DescribedHost("browsers", SshTarget("browsers", "browsers"), scope, 20)
        self.commits = iter(f"{number:04x}" for number in range(1, 16))
        self.offset_seconds = 0.0

        @contextmanager
        def connected(_: DescribedHost) -> Iterator[Any]:
            yield ToolConnection(host)

        @contextmanager
        def planned(
            project: Project, name: str, data: Mapping[str, Any], log_file: Any, *, plan_only: bool
        ) -> Iterator[Any]:
            yield Deploys(host, data["deployment_id"])

        patch.setattr(deploy_and_rollback, "connected", connected)
        patch.setattr(deploy_and_rollback, "planned", planned)
        patch.setattr(transaction, "HostLock", lambda *_, **__: Lock(self.offset_seconds))

    def at(self, time: datetime) -> None:
        """Set the operator's clock, in the checkout of another commit."""
        commit = next(self.commits)
        self.patch.setattr(
            deploy_and_rollback,
            "new_deployment_id",
            lambda root: f"{deployment_id.new_deployment_id(root, lambda: time)[:15]}-{commit}",
        )
        for module in (deploy_and_rollback, transaction):
            self.patch.setattr(module, "utc_now", lambda: time)

    def deploy(self, time: datetime) -> Record:
        self.at(time)
        return deploy_and_rollback.deploy(
            PROJECT, self.described, DeployOptions(), self.steps, self.logs
        )

    def rollback(self, time: datetime, to: str | None = None) -> Record:
        self.at(time)
        return deploy_and_rollback.rollback(PROJECT, self.described, to, self.steps, self.logs)

    def records(self) -> list[Record]:
        """Return the records as `./inv deployments` shows them."""
        with deploy_and_rollback.connected(self.described) as connection:
            return newest_first(history.records_of(connection))


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return bare_host(tmp_path / "host")


@pytest.fixture
def operators(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Operators:
    return Operators(host, monkeypatch, tmp_path)


def ids(documents: list[dict[str, Any]]) -> list[str]:
    return [document["id"] for document in documents]


def kept_by_pruning_backups(host: Host, keep: int) -> list[str]:
    backup.prune(host.paths, keep)
    return ids(backup.list_backups(host.paths))


def kept_by_pruning_releases(host: Host, keep: int) -> list[str]:
    backup.prune(host.paths, 0)
    releases.prune(keep, host.paths, host.controller.root)
    return sorted(path.name for path in (host.controller.root / "releases").iterdir())


def records_of(host: Host) -> list[Record]:
    connection: Any = ToolConnection(host)
    return history.records_of(connection)


Reader = Callable[[Host], object]
# What each reader says of three deployments, given their ids in the order in which they were
# made. Those that prune are the last.
READERS: dict[str, tuple[Reader, Callable[[list[str]], object]]] = {
    "record list": (
        lambda host: ids(deployment_records.records(host.paths)),
        lambda made: made[::-1],
    ),
    "backup list": (
        lambda host: ids(backup.list_backups(host.paths)),
        lambda made: made[::-1],
    ),
    "later backups": (
        lambda host: [
            [
                later.id
                for later in _later(host.paths, backup_manifest.read_backup(host.paths, each.id))
            ]
            for each in reversed(newest_first(records_of(host)))
        ],
        lambda made: [made[1:], made[2:], []],
    ),
    "newest first": (
        lambda host: [each.id for each in newest_first(records_of(host))],
        lambda made: made[::-1],
    ),
    "current state": (lambda host: current_state(records_of(host)), lambda made: made[2]),
    "rollback": (lambda host: rollback_state(records_of(host), None), lambda made: made[1]),
    "its backup": (
        lambda host: backup_of(rollback_state(records_of(host), None), records_of(host)),
        lambda made: made[2],
    ),
    "alert": (lambda host: newest_failed(host.paths.records), lambda made: None),
    "pruned backups": (lambda host: kept_by_pruning_backups(host, 1), lambda made: made[2:]),
    "pruned releases": (
        lambda host: kept_by_pruning_releases(host, 2),
        lambda made: sorted(made[1:]),
    ),
}


@pytest.mark.parametrize("times", TIMES)
def test_every_reader_uses_the_order_of_the_host_counter(operators: Operators, times: str) -> None:
    made = [operators.deploy(time).id for time in TIMES[times]]
    for name, (read, expected) in READERS.items():
        assert (name, read(operators.host)) == (name, expected(made))


@pytest.mark.parametrize("times", TIMES)
class TestOperators:
    def test_rollback_restores_the_previous_state_with_any_clock(
        self, operators: Operators, times: str
    ) -> None:
        first, second, third = TIMES[times]
        operators.deploy(first)
        before = operators.deploy(second)
        seen = operators.host.seen()
        operators.deploy(third)

        back = operators.rollback(third + MINUTE)

        assert back.state == before.id
        assert operators.host.seen() == seen
        current = read_json(operators.host.controller.current / "release.json")
        assert current is not None
        assert current["id"] == current_state(operators.records()) == before.id
        assert operators.records()[0].id == back.id
        # Later deployments keep this order.
        after = operators.deploy(third + 2 * MINUTE)
        assert (after.previous, current_state(operators.records())) == (before.id, after.id)

    def test_pruning_keeps_the_newest_backups_with_any_clock(
        self, operators: Operators, times: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeouts_and_retention, "KEPT_BACKUPS", 2)
        made = [operators.deploy(time).id for time in TIMES[times]]
        assert ids(backup.list_backups(operators.host.paths)) == made[:0:-1]
        assert operators.rollback(NOON).state == made[1]

    def test_failure_is_the_newest_until_a_success(
        self, operators: Operators, times: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, third = TIMES[times]
        operators.deploy(first)
        with monkeypatch.context() as patch:
            patch.setattr(Deploys, "go", lambda *_: 1 // 0)
            with pytest.raises(Exception, match="ZeroDivisionError"):
                operators.deploy(second)
        failed = operators.records()[0]
        assert newest_failed(operators.host.paths.records) == (failed.id, "rolled-back")
        operators.deploy(third)
        assert newest_failed(operators.host.paths.records) is None


def forget_numbers(host: Host) -> None:
    """Remove the numbers, as if an earlier version had made the records."""
    for folder in host.paths.backups.iterdir():
        manifest = read_json(folder / backup_manifest.MANIFEST)
        assert manifest is not None
        del manifest["number"]
        rewrite(folder, manifest)
    for file in [
        *host.paths.records.glob("*.json"),
        *host.controller.root.glob("releases/*/release.json"),
    ]:
        document = read_json(file)
        assert document is not None
        del document["number"]
        file.write_text(json.dumps(document))
    host.paths.sequence.unlink()


def rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    data = json_bytes(manifest)
    (folder / backup_manifest.MANIFEST).write_bytes(data)
    (folder / backup_manifest.SUM).write_text(
        f"{hashlib.sha256(data).hexdigest()}  {backup_manifest.MANIFEST}\n"
    )


@pytest.mark.parametrize("later", [NOON + HOUR, NOON - HOUR], ids=["right", "behind"])
class TestEarlierVersions:
    def test_unnumbered_records_are_older_and_sorted_by_id(
        self, operators: Operators, later: datetime
    ) -> None:
        host = operators.host
        old = [operators.deploy(NOON + number * MINUTE).id for number in range(2)]
        forget_numbers(host)
        assert [each.id for each in operators.records()] == old[::-1]
        new = [operators.deploy(later + number * MINUTE).id for number in range(2)]
        made = [*old, *new]
        assert [each.number for each in operators.records()][-2:] == [None, None]
        assert [each.id for each in operators.records()] == made[::-1]
        assert ids(backup.list_backups(host.paths)) == made[::-1]
        later_ones = _later(host.paths, backup_manifest.read_backup(host.paths, old[1]))
        assert [each.id for each in later_ones] == new
        for state in (new[0], old[1]):
            assert operators.rollback(later + HOUR).state == state
        assert kept_by_pruning_backups(host, 3)[-1] == new[1]

    def test_running_record_without_a_number_gets_none_later(
        self, operators: Operators, later: datetime
    ) -> None:
        old = operators.deploy(NOON)
        forget_numbers(operators.host)
        document = {**deployment_records.show(operators.host.paths, old.id), "status": "running"}
        assert "number" not in deployment_records.write(operators.host.paths, document)
        operators.deploy(later)
        recovered = operators.records()[-1]
        assert (recovered.id, recovered.status, recovered.number) == (old.id, "interrupted", None)


class TestCounter:
    def test_restore_does_not_reset_the_counter(self, operators: Operators) -> None:
        host = operators.host
        made = [operators.deploy(NOON + number * MINUTE) for number in range(3)]
        before = next_number(host.paths)
        host.restore(made[0].id)
        assert next_number(host.paths) == before + 1

    @pytest.mark.parametrize("damage", ["", "[]", '{"last": "x"}', None])
    def test_lost_counter_continues_after_the_highest_number(
        self, operators: Operators, damage: str | None
    ) -> None:
        host = operators.host
        operators.deploy(NOON)
        highest = max(each.number or 0 for each in operators.records())
        if damage is None:
            host.paths.sequence.unlink()
        else:
            host.paths.sequence.write_text(damage)
        assert next_number(host.paths) > highest

    def test_concurrent_calls_get_different_numbers(self, tmp_path: Path) -> None:
        paths = bare_host(tmp_path / "host").paths
        with ThreadPoolExecutor(8) as pool:
            given = list(pool.map(lambda _: next_number(paths), range(40)))
        assert sorted(given) == list(range(1, 41))

    def test_kill_never_causes_a_number_to_be_used_twice(self, tmp_path: Path) -> None:
        host = bare_host(tmp_path / "host")
        given: list[int] = []

        def take() -> None:
            given.append(next_number(host.paths))

        for _ in host.killed_everywhere(take):
            before = given[-1:]
            assert [next_number(host.paths)] > before
            given.clear()

    def test_numbers_given_by_the_operator_are_ignored(self, tmp_path: Path) -> None:
        paths = bare_host(tmp_path / "host").paths
        record = {"id": "20250131_120000-abcd", "status": "running", "number": 99}
        assert deployment_records.write(paths, record)["number"] == 1
        assert deployment_records.write(paths, {**record, "status": "failed"})["number"] == 1


class TestWarnings:
    @pytest.mark.parametrize(
        ("offset", "words"),
        [(-600.0, "600 s behind this machine's"), (4.0, "4 s ahead of"), (0.0, ""), (1.9, "")],
    )
    def test_clock_difference_is_reported_to_the_operator(
        self, operators: Operators, offset: float, words: str
    ) -> None:
        operators.offset_seconds = offset
        operators.deploy(NOON)
        said = operators.said.getvalue()
        assert ("the clock of browsers is" in said) == bool(words)
        assert words in said

    def test_duplicate_deployment_id_is_refused(self, operators: Operators) -> None:
        first = operators.deploy(NOON)
        operators.patch.setattr(deploy_and_rollback, "new_deployment_id", lambda root: first.id)
        seen = operators.host.seen()
        with pytest.raises(Exception, match=f"already has a deployment {first.id}"):
            deploy_and_rollback.deploy(
                PROJECT, operators.described, DeployOptions(), operators.steps, operators.logs
            )
        assert operators.host.seen() == seen
        assert operators.records() == [first]


class TestLock:
    """The duration of locks and of the dead-man timer depends on neither wall clock."""

    @pytest.mark.parametrize("jump", [HOUR, -HOUR])
    def test_lock_survives_a_jump_of_the_host_clock(
        self, host: Host, monkeypatch: pytest.MonkeyPatch, jump: timedelta
    ) -> None:
        held = HeldLock(host.paths, 60, {"id": "20250131_120000-abcd"})
        monkeypatch.setattr(deployment_lock, "datetime", ClockThatJumped(jump))
        assert deployment_lock.show(host.paths)["held"]
        held.renew()
        assert deployment_lock.show(host.paths)["held"]
        held.let_go(is_done=True)

    def test_lock_renewal_uses_the_monotonic_clock(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passed = iter([0.0, 6.0, 6.0, 12.0])
        monkeypatch.setattr(lock_verbs, "time", SimpleNamespace(monotonic=lambda: next(passed)))
        held = HeldLock(host.paths, 10, {"id": "20250131_120000-abcd"})
        reader, writer = os.pipe()
        os.write(writer, b"renew\n")
        os.close(writer)
        assert lock_verbs._listen(held, reader, 10) is lock_verbs._End.GONE
        os.close(reader)
        held.let_go(is_done=True)


class ClockThatJumped:
    def __init__(self, jump: timedelta) -> None:
        self.jump = jump

    def now(self, zone: timezone) -> datetime:
        return datetime.now(zone) + self.jump
