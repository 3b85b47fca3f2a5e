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

    Ids and times are unordered, as if each deployment came from a machine with a wrong clock.
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
    def test_no_state_without_records(self) -> None:
        assert current_state([]) is None

    def test_state_is_the_last_succeeded_deployment(self, three: History) -> None:
        assert current_state(three.records) == ids(three)[2]

    @pytest.mark.parametrize("status", ["running", "failed", "rolled-back", "interrupted"])
    def test_unsuccessful_deployments_do_not_change_the_state(
        self, three: History, status: Status
    ) -> None:
        three.undone(status)
        assert current_state(three.records) == ids(three)[2]

    def test_a_deployment_without_changes_keeps_the_state(self, three: History) -> None:
        three.deploy_nothing()
        assert current_state(three.records) == ids(three)[2]

    def test_a_manual_backup_keeps_the_state(self, three: History) -> None:
        three.back_up()
        assert current_state(three.records) == ids(three)[2]

    def test_state_after_a_rollback_is_its_target(self, three: History) -> None:
        three.rollback()
        assert current_state(three.records) == ids(three)[1]

    def test_state_is_unknown_after_a_failed_restore(self, three: History) -> None:
        three.broken()
        assert current_state(three.records) is None


class TestBackup:
    def test_newest_backup_of_a_state_is_returned(self, three: History) -> None:
        three.back_up()
        newest = three.back_up()
        assert backup_of(ids(three)[2], three.records) == newest
        assert backup_of(ids(three)[0], three.records) == ids(three)[1]

    def test_no_backup_if_the_deployment_made_none(self, three: History) -> None:
        three.refused()
        assert backup_of(ids(three)[2], three.records) is None

    def test_backup_made_after_a_failed_restore_belongs_to_no_state(self, three: History) -> None:
        three.broken()
        after = three.deploy()
        assert backup_of(ids(three)[2], three.records) == ids(three)[3]
        assert three.saw[after] is None


class TestRollback:
    def test_rollback_goes_to_the_state_before_the_last_deployment(self, three: History) -> None:
        assert rollback_state(three.records, None) == ids(three)[1]

    def test_second_rollback_goes_one_state_further_back(self, three: History) -> None:
        three.rollback()
        assert rollback_state(three.records, None) == ids(three)[0]

    def test_rollback_skips_a_state_that_was_rolled_back_from(self, three: History) -> None:
        three.rollback()
        three.deploy()
        assert rollback_state(three.records, None) == ids(three)[1]

    def test_named_rollback_can_go_forward_again(self, three: History) -> None:
        three.rollback()
        assert rollback_state(three.records, ids(three)[2]) == ids(three)[2]

    def test_rollback_skips_failed_and_empty_deployments(self) -> None:
        made = history(
            "deploy", "deploy", "undone", "refused", "deploy_nothing", "deploy", "undone"
        )
        assert rollback_state(made.records, None) == ids(made)[1]

    def test_rollback_after_a_failed_restore_goes_to_the_state_before(self, three: History) -> None:
        three.broken()
        assert rollback_state(three.records, None) == ids(three)[2]

    @pytest.mark.parametrize("steps", [(), ("deploy",), ("undone",), ("deploy", "undone")])
    def test_rollback_without_an_earlier_state_is_refused(self, steps: tuple[str, ...]) -> None:
        with pytest.raises(DeployError, match="nothing to roll back to"):
            rollback_state(history(*steps).records, None)

    @pytest.mark.parametrize("status", ["running", "failed", "rolled-back", "interrupted"])
    def test_rollback_to_an_unsuccessful_deployment_is_refused(
        self, three: History, status: Status
    ) -> None:
        name = three.undone(status)
        with pytest.raises(DeployError, match=f"is {status}: only a deployment that succ") as told:
            rollback_state(three.records, name)
        assert ids(three)[1] in str(told.value.hint)

    def test_rollback_to_a_backup_or_rollback_record_is_refused(self, three: History) -> None:
        for name in (three.back_up(), three.rollback()):
            with pytest.raises(DeployError, match="only a deployment"):
                rollback_state(three.records, name)

    def test_rollback_to_the_current_state_is_refused(self, three: History) -> None:
        with pytest.raises(DeployError, match="already"):
            rollback_state(three.records, ids(three)[2])

    def test_rollback_to_an_empty_deployment_goes_to_the_state_it_found(
        self, three: History
    ) -> None:
        empty = three.deploy_nothing()
        three.deploy()
        assert rollback_state(three.records, empty) == ids(three)[2]

    def test_rollback_to_a_state_without_a_backup_is_refused(self, three: History) -> None:
        lost = [*three.records[:1], three.records[1].model_copy(update={"backup": False})]
        with pytest.raises(DeployError, match="no backup of the state") as told:
            rollback_state([*lost, three.records[2]], ids(three)[0])
        assert ids(three)[1] in str(told.value.hint)

    def test_unknown_id_is_refused_with_a_list_of_valid_ids(self, three: History) -> None:
        with pytest.raises(DeployError, match="no deployment x") as told:
            rollback_state(three.records, "x")
        assert told.value.hint == f"use one of: {ids(three)[1]}, {ids(three)[0]}"

    def test_id_can_be_abbreviated_if_unambiguous(self, three: History) -> None:
        first, second, third = (record.id for record in three.records)
        assert rollback_state(three.records, first[:-1]) == first
        # Deployments that no rollback can reach do not make an id ambiguous.
        one_way = history("deploy", "refused", "deploy")
        assert rollback_state(one_way.records, "2025") == one_way.records[0].id
        with pytest.raises(DeployError, match="the beginning of 2 deployments"):
            rollback_state(three.records, "2025")
        with pytest.raises(DeployError, match="already"):
            rollback_state(three.records, third)
        assert rollback_state(three.records, second) == second

    def test_next_state_is_the_older_one(self, three: History) -> None:
        assert next_state(three.records, ids(three)[1]) == ids(three)[0]
        assert next_state(three.records, ids(three)[0]) is None


steps_taken = st.lists(st.sampled_from(STEPS), max_size=14)


class TestRandomHistories:
    @given(steps_taken)
    def test_current_state_matches_the_host(self, steps: list[str]) -> None:
        made = history(*steps)
        assert current_state(made.records) == made.is_in

    @given(steps_taken)
    def test_states_are_succeeded_deployments_with_a_correct_backup(self, steps: list[str]) -> None:
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
    def test_default_rollback_state_is_among_states(self, steps: list[str]) -> None:
        made = history(*steps)
        try:
            chosen = rollback_state(made.records, None)
        except DeployError:
            return
        assert chosen in states(made.records)

    @given(steps_taken, st.randoms(use_true_random=False))
    def test_order_of_records_does_not_matter(
        self, steps: list[str], shuffle: random.Random
    ) -> None:
        made = history(*steps)
        mixed = list(made.records)
        shuffle.shuffle(mixed)
        assert newest_first(mixed) == made.records[::-1]
        assert states(mixed) == states(made.records)
        assert current_state(mixed) == current_state(made.records)

    @given(steps_taken)
    def test_record_survives_a_json_round_trip(self, steps: list[str]) -> None:
        for record in history(*steps).records:
            document = record.model_dump(mode="json", by_alias=True)
            assert "startedAt" in document
            assert Record.model_validate(document) == record


def running(name: str, reason: str | None = None) -> Record:
    return Record(id=name, started_at=BEGIN, status="running", reason=reason)


class TestInterrupted:
    def test_running_record_without_the_lock_becomes_interrupted(self) -> None:
        records = [running("20250131_120000-aaaa"), running("20250131_110000-bbbb", "why")]
        found = interrupted_without({"20250131_120000-aaaa"}, records, "its operator died")
        assert [each.status for each in found] == ["running", "interrupted"]
        assert found[1].reason == "why"
        found = interrupted_without((), records, "its operator died")
        assert [each.reason for each in found] == ["its operator died", "why"]
        assert records[0].status == "running"

    def test_ended_records_stay_unchanged(self, three: History) -> None:
        assert interrupted_without((), three.records, "no") == three.records


def test_deployment_that_changed_nothing_is_no_state_to_go_back_to() -> None:
    names = ("20250131_110000-aaaa", "20250131_120000-bbbb", "20250131_130000-cccc")
    first, idle, last = (
        Record(
            id=name, number=number, started_at=BEGIN, status="succeeded", state=name, backup=True
        )
        for number, name in enumerate(names, 1)
    )
    first.changes = last.changes = 1
    idle.previous, last.previous = first.id, idle.id
    assert states([first, idle, last]) == [first.id]


def test_exact_id_wins_over_a_longer_id_with_the_same_beginning() -> None:
    records = [running("20250131_120000-aaaa"), running("20250131_120000-aaaa-dirty")]
    assert one_named(records, "20250131_120000-aaaa").id == "20250131_120000-aaaa"
    assert one_named(records, "20250131_120000-aaaa-").id == "20250131_120000-aaaa-dirty"
    with pytest.raises(DeployError, match="no deployment 2026"):
        one_named(records, "2026")
