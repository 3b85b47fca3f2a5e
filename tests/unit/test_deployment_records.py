"""The state of a host and the states to go back to, from records in any order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.deployment_records import (
    Kind,
    Record,
    Status,
    backup_of,
    current_state,
    interrupted_without,
    newest_first,
    next_state,
    one_named,
    rollback_state,
    states,
)
from polydev.errors import DeployError

BEGIN = datetime(2025, 1, 31, 12, tzinfo=timezone.utc)


@dataclass
class History:
    """The history of a host, and the knowledge of a witness.

    Ids and times are in no order, as if each deployment came from a machine with a wrong clock.
    """

    records: list[Record] = field(default_factory=list)
    is_in: str | None = None
    saw: dict[str, str | None] = field(default_factory=dict)  # backup → the state it is of

    def _add(
        self, kind: Kind, status: Status, state: str | None, *, changes: int = 0, backup: bool
    ) -> str:
        number = len(self.records)
        name = f"20250131_{(number * 7919) % 240000:06d}-{number:04x}"
        self.records.append(
            Record(
                id=name,
                number=number + 1,
                kind=kind,
                status=status,
                started_at=BEGIN + timedelta(minutes=(number * 7919) % 240),
                state=name if state == "own" else state,
                previous=current_state(self.records),
                backup=backup,
                changes=changes,
            )
        )
        if backup:
            self.saw[name] = self.is_in
        if status in ("succeeded", "rollback-failed"):
            self.is_in = self.records[-1].state
        return name

    def deploy(self) -> str:
        return self._add("deploy", "succeeded", "own", changes=3, backup=True)

    def deploy_nothing(self) -> str:
        return self._add("deploy", "succeeded", current_state(self.records), backup=False)

    def undone(self, status: Status = "rolled-back", kind: Kind = "deploy") -> str:
        return self._add(kind, status, current_state(self.records), backup=True)

    def refused(self) -> str:
        return self._add("deploy", "failed", current_state(self.records), backup=False)

    def broken(self, kind: Kind = "deploy") -> str:
        return self._add(kind, "rollback-failed", None, backup=True)

    def back_up(self) -> str:
        return self._add("backup", "succeeded", current_state(self.records), backup=True)

    def rollback(self, to: str | None = None) -> str:
        state = rollback_state(self.records, to)
        return self._add("rollback", "succeeded", state, changes=1, backup=True)

    def roll_back_if_possible(self) -> None:
        if possible := states(self.records):
            self.rollback(possible[-1])


STEPS = (
    "deploy",
    "deploy_nothing",
    "undone",
    "refused",
    "broken",
    "back_up",
    "roll_back_if_possible",
)


def history(*steps: str) -> History:
    made = History()
    for step in steps:
        getattr(made, step)()
    return made


@pytest.fixture
def three() -> History:
    return history("deploy", "deploy", "deploy")


def ids(made: History) -> list[str]:
    return [record.id for record in made.records]


class TestCurrentState:
    def test_nothing_before_the_first(self) -> None:
        assert current_state([]) is None

    def test_the_last_that_succeeded(self, three: History) -> None:
        assert current_state(three.records) == ids(three)[2]

    @pytest.mark.parametrize("status", ["running", "failed", "rolled-back", "interrupted"])
    def test_what_was_undone_does_not_count(self, three: History, status: Status) -> None:
        three.undone(status)
        assert current_state(three.records) == ids(three)[2]

    def test_a_deployment_without_changes_keeps_the_state(self, three: History) -> None:
        three.deploy_nothing()
        assert current_state(three.records) == ids(three)[2]

    def test_a_backup_by_hand_keeps_the_state(self, three: History) -> None:
        three.back_up()
        assert current_state(three.records) == ids(three)[2]

    def test_after_a_rollback_it_is_the_one_gone_back_to(self, three: History) -> None:
        three.rollback()
        assert current_state(three.records) == ids(three)[1]

    def test_unknown_where_the_way_back_failed(self, three: History) -> None:
        three.broken()
        assert current_state(three.records) is None


class TestBackup:
    def test_the_newest_of_a_state(self, three: History) -> None:
        three.back_up()
        newest = three.back_up()
        assert backup_of(ids(three)[2], three.records) == newest
        assert backup_of(ids(three)[0], three.records) == ids(three)[1]

    def test_one_that_was_not_made_is_none(self, three: History) -> None:
        three.refused()
        assert backup_of(ids(three)[2], three.records) is None

    def test_what_a_failed_way_back_left_is_of_no_state(self, three: History) -> None:
        three.broken()
        after = three.deploy()
        assert backup_of(ids(three)[2], three.records) == ids(three)[3]
        assert three.saw[after] is None


class TestRollback:
    def test_goes_to_what_the_last_deployment_found(self, three: History) -> None:
        assert rollback_state(three.records, None) == ids(three)[1]

    def test_twice_goes_back_twice(self, three: History) -> None:
        three.rollback()
        assert rollback_state(three.records, None) == ids(three)[0]

    def test_what_was_rolled_back_from_is_not_where_the_next_one_goes(self, three: History) -> None:
        three.rollback()
        three.deploy()
        assert rollback_state(three.records, None) == ids(three)[1]

    def test_forward_again_by_name(self, three: History) -> None:
        three.rollback()
        assert rollback_state(three.records, ids(three)[2]) == ids(three)[2]

    def test_failures_and_empty_deployments_in_between_are_passed_over(self) -> None:
        made = history(
            "deploy", "deploy", "undone", "refused", "deploy_nothing", "deploy", "undone"
        )
        assert rollback_state(made.records, None) == ids(made)[1]

    def test_after_a_failed_way_back_to_what_was_before_it(self, three: History) -> None:
        three.broken()
        assert rollback_state(three.records, None) == ids(three)[2]

    @pytest.mark.parametrize("steps", [(), ("deploy",), ("undone",), ("deploy", "undone")])
    def test_refused_where_there_is_nothing(self, steps: tuple[str, ...]) -> None:
        with pytest.raises(DeployError, match="nothing to roll back to"):
            rollback_state(history(*steps).records, None)

    @pytest.mark.parametrize("status", ["running", "failed", "rolled-back", "interrupted"])
    def test_one_that_did_not_succeed_is_refused(self, three: History, status: Status) -> None:
        name = three.undone(status)
        with pytest.raises(DeployError, match=f"is {status}: only a deployment that succ") as told:
            rollback_state(three.records, name)
        assert ids(three)[1] in str(told.value.hint)

    def test_a_backup_or_a_rollback_is_no_deployment(self, three: History) -> None:
        for name in (three.back_up(), three.rollback()):
            with pytest.raises(DeployError, match="only a deployment"):
                rollback_state(three.records, name)

    def test_the_state_that_the_host_has_is_refused(self, three: History) -> None:
        with pytest.raises(DeployError, match="already"):
            rollback_state(three.records, ids(three)[2])

    def test_an_empty_deployment_stands_for_the_state_it_found(self, three: History) -> None:
        empty = three.deploy_nothing()
        three.deploy()
        assert rollback_state(three.records, empty) == ids(three)[2]

    def test_one_without_a_backup_is_refused(self, three: History) -> None:
        lost = [*three.records[:1], three.records[1].model_copy(update={"backup": False})]
        with pytest.raises(DeployError, match="no backup of the state") as told:
            rollback_state([*lost, three.records[2]], ids(three)[0])
        assert ids(three)[1] in str(told.value.hint)

    def test_an_unknown_one_is_refused_with_those_that_are_known(self, three: History) -> None:
        with pytest.raises(DeployError, match="no deployment x") as told:
            rollback_state(three.records, "x")
        assert told.value.hint == f"use one of: {ids(three)[1]}, {ids(three)[0]}"

    def test_the_beginning_of_an_id_is_enough(self, three: History) -> None:
        first, second, third = (record.id for record in three.records)
        assert rollback_state(three.records, first[:-1]) == first
        # Of several, those that cannot be gone back to are no choice.
        one_way = history("deploy", "refused", "deploy")
        assert rollback_state(one_way.records, "2025") == one_way.records[0].id
        with pytest.raises(DeployError, match="the beginning of 2 deployments"):
            rollback_state(three.records, "2025")
        with pytest.raises(DeployError, match="already"):
            rollback_state(three.records, third)
        assert rollback_state(three.records, second) == second

    def test_where_one_is_damaged_the_one_before_it_is_offered(self, three: History) -> None:
        assert next_state(three.records, ids(three)[1]) == ids(three)[0]
        assert next_state(three.records, ids(three)[0]) is None


steps_taken = st.lists(st.sampled_from(STEPS), max_size=14)


class TestWhateverHappened:
    @given(steps_taken)
    def test_the_state_is_the_one_that_the_host_has(self, steps: list[str]) -> None:
        made = history(*steps)
        assert current_state(made.records) == made.is_in

    @given(steps_taken)
    def test_only_succeeded_deployments_with_a_true_backup_are_offered(
        self, steps: list[str]
    ) -> None:
        made = history(*steps)
        by_id = {record.id: record for record in made.records}
        for state in states(made.records):
            chosen = by_id[state]
            assert (chosen.kind, chosen.status) == ("deploy", "succeeded")
            assert state != made.is_in
            backup = backup_of(state, made.records)
            assert backup is not None
            assert made.saw[backup] == state

    @given(steps_taken)
    def test_the_default_is_one_of_those_offered(self, steps: list[str]) -> None:
        made = history(*steps)
        try:
            chosen = rollback_state(made.records, None)
        except DeployError:
            return
        assert chosen in states(made.records)

    @given(steps_taken, st.randoms(use_true_random=False))
    def test_the_order_of_the_files_is_nothing(
        self, steps: list[str], shuffle: random.Random
    ) -> None:
        made = history(*steps)
        mixed = list(made.records)
        shuffle.shuffle(mixed)
        assert newest_first(mixed) == made.records[::-1]
        assert states(mixed) == states(made.records)
        assert current_state(mixed) == current_state(made.records)

    @given(steps_taken)
    def test_a_record_comes_back_from_its_json(self, steps: list[str]) -> None:
        for record in history(*steps).records:
            document = record.model_dump(mode="json", by_alias=True)
            assert "startedAt" in document
            assert Record.model_validate(document) == record


def running(name: str, reason: str | None = None) -> Record:
    return Record(id=name, started_at=BEGIN, status="running", reason=reason)


class TestInterrupted:
    def test_one_that_does_not_hold_the_lock(self) -> None:
        records = [running("20250131_120000-aaaa"), running("20250131_110000-bbbb", "why")]
        found = interrupted_without({"20250131_120000-aaaa"}, records, "its operator died")
        assert [each.status for each in found] == ["running", "interrupted"]
        assert found[1].reason == "why"
        found = interrupted_without((), records, "its operator died")
        assert [each.reason for each in found] == ["its operator died", "why"]
        assert records[0].status == "running"

    def test_what_has_ended_stays(self, three: History) -> None:
        assert interrupted_without((), three.records, "no") == three.records


def test_an_exact_id_is_that_one_and_no_other() -> None:
    records = [running("20250131_120000-aaaa"), running("20250131_120000-aaaa-dirty")]
    assert one_named(records, "20250131_120000-aaaa").id == "20250131_120000-aaaa"
    assert one_named(records, "20250131_120000-aaaa-").id == "20250131_120000-aaaa-dirty"
    with pytest.raises(DeployError, match="no deployment 2026"):
        one_named(records, "2026")
