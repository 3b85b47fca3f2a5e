"""Killed at any moment and run again, every verb of the host tool ends where it should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polydev.hosttool import backup, deadman, records, saved
from polydev.hosttool.database import BESIDE
from polydev.hosttool.handover import Handover, Limits
from polydev.hosttool.units import MAIN, next_unit
from tests.unit.hosttool_host import FIRST, NEW, OLD, SECOND, Host, bare_host, deploy


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = bare_host(tmp_path / "host")
    deploy(host)
    return host


def assert_restored(host: Host, before: object) -> None:
    assert host.seen() == before
    assert host.unfinished() == []
    assert host.restore()["changes"] == 0


def test_backup(host: Host) -> None:
    before = host.seen()
    finished = []
    for _ in host.killed_everywhere(host.backup):
        listed = backup.backups(host.paths)
        finished.append(len(listed))
        assert all(each["problem"] is None for each in listed)
        again = host.backup()
        saved.require_whole(again)
        assert host.unfinished() == []
        assert host.seen() == before
    assert finished == sorted(finished), "a backup counts from one moment on"
    assert set(finished) == {0, 1}


def test_restore(host: Host) -> None:
    before = host.seen()
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    for _ in host.killed_everywhere(host.restore):
        saved.require_whole(saved.load(host.paths, FIRST))
        host.restore()
        assert_restored(host, before)


def test_restore_of_nothing(tmp_path: Path) -> None:
    host = bare_host(tmp_path / "host")
    before = host.seen()
    host.backup()
    deploy(host)
    for _ in host.killed_everywhere(host.restore):
        host.restore()
        assert_restored(host, before)


def test_restore_of_a_lost_database(host: Host) -> None:
    """A log that is left over is never beside the new file: it would be played into it."""
    saved = host.backup()
    assert saved.database
    assert saved.database.kept.stored
    wanted = saved.database.kept.stored.read_bytes()
    live = host.controller.database
    live.unlink()
    beside = [live.with_name(f"{live.name}{suffix}") for suffix in BESIDE]
    for path in beside:
        path.write_bytes(b"left over")
    for _ in host.killed_everywhere(host.restore):
        if live.exists() and live.read_bytes() == wanted:
            assert not any(path.exists() for path in beside)
        host.restore()
        assert host.rows() == ["written by 1"]


def test_restore_of_another_backup_after_a_kill(host: Host) -> None:
    """What the killed one changed reaches its units by the next one, whichever that is."""
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    after = host.seen()
    host.backup(SECOND)
    for _ in host.killed_everywhere(host.restore):
        host.restore(SECOND)
        assert host.seen() == after
        assert host.unfinished() == []


def test_restore_for_the_dead_man(host: Host) -> None:
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    for _ in host.killed_everywhere(lambda: host.restore(reach=True)):
        host.restore(reach=True)
        assert host.restore(reach=True)["changes"] == 0
        assert host.unfinished() == []


def test_handover(host: Host) -> None:
    host.release(NEW)
    controller = host.controller

    def hand_over() -> None:
        Handover(host.systemd, controller.root, Limits()).to(NEW)

    seen = []
    for _ in host.killed_everywhere(hand_over):
        seen.append(os.readlink(controller.current))
        assert {MAIN, next_unit(NEW)} & host.systemd.active.keys(), "nobody accepts"
        hand_over()
        assert os.readlink(controller.current) == f"releases/{NEW}"
        assert host.systemd.active[MAIN] == "active"
        assert next_unit(NEW) not in host.systemd.active
    assert seen == sorted(seen)
    assert set(seen) == {f"releases/{OLD}", f"releases/{NEW}"}


def test_record(host: Host) -> None:
    records.write(host.paths, {"id": FIRST, "status": "running"})
    ends = {"id": FIRST, "status": "succeeded"}
    seen = []
    for _ in host.killed_everywhere(lambda: records.write(host.paths, ends)):
        (record,) = records.records(host.paths)
        seen.append(record["status"])
        records.write(host.paths, ends)
        assert records.records(host.paths) == [{**ends, "number": 1}]
        assert host.unfinished() == []
    assert seen == sorted(seen)
    assert set(seen) == {"running", "succeeded"}


def test_prune(host: Host) -> None:
    host.backup()
    host.backup(SECOND)
    for _ in host.killed_everywhere(lambda: backup.prune(host.paths, keep=1)):
        assert SECOND in {each["id"] for each in backup.backups(host.paths)}
        assert all(each["problem"] is None for each in backup.backups(host.paths))
        backup.prune(host.paths, keep=1)
        assert [each["id"] for each in backup.backups(host.paths)] == [SECOND]
        assert host.unfinished() == []


def test_arming_the_dead_man(host: Host) -> None:
    host.backup()
    for _ in host.killed_everywhere(lambda: deadman.arm(host.paths, host.systemd, FIRST, 90)):
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert deadman.status(host.paths, host.systemd)["timer"]
        deadman.confirm(host.paths, host.systemd)
        assert not deadman.status(host.paths, host.systemd)["timer"]
