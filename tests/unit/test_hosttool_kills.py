"""Every verb of the host tool, killed at any moment and run again, completes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from stat import S_IMODE

import pytest

from polydev.hosttool import (
    backup,
    backup_manifest,
    deadman,
    deployment_records,
    golden_link,
    images,
    releases,
)
from polydev.hosttool.release_files import PROGRAM
from polydev.hosttool.release_handover import Handover
from polydev.hosttool.restore import RestoreOptions, restore_for_deadman
from polydev.hosttool.sqlite_database import BESIDE
from polydev.hosttool.systemd import UnitTimeouts
from polydev.hosttool.units import MAIN, next_unit
from polydev.image_layout import BOOT_FILES
from tests.unit.hosttool_host import FIRST, NEW, OLD, SECOND, Host, arrive, bare_host, deploy

NEW_IMAGE = "b" * 64


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def assert_restored(host: Host, before: object) -> None:
    assert host.seen() == before
    assert host.unfinished() == []
    assert host.restore()["changes"] == 0


def test_backup_completes_after_a_kill(host: Host) -> None:
    before = host.seen()
    finished = []
    for _ in host.killed_everywhere(host.backup):
        listed = backup.list_backups(host.paths)
        finished.append(len(listed))
        assert all(each["problem"] is None for each in listed)
        again = host.backup()
        backup_manifest.require_intact(again)
        assert host.unfinished() == []
        assert host.seen() == before
    assert finished == sorted(finished), "a backup counts from one moment on"
    assert set(finished) == {0, 1}


def test_restore_completes_after_a_kill(host: Host) -> None:
    before = host.seen()
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    for _ in host.killed_everywhere(host.restore):
        backup_manifest.require_intact(backup_manifest.read_backup(host.paths, FIRST))
        host.restore()
        assert_restored(host, before)


def test_restore_to_an_empty_host_completes_after_a_kill(tmp_path: Path) -> None:
    host = bare_host(tmp_path / "host")
    before = host.seen()
    host.backup()
    deploy(host)
    for _ in host.killed_everywhere(host.restore):
        host.restore()
        assert_restored(host, before)


def test_restore_of_deleted_files_completes_after_a_kill(host: Host) -> None:
    """An old journal never remains beside the new database, which would replay it. A folder
    exists with its mode or not at all.
    """
    folder = host.root / "etc/polydev/more"
    folder.chmod(0o750)
    saved = host.backup()
    shutil.rmtree(folder)
    assert saved.database
    assert saved.database.copy.stored
    wanted = saved.database.copy.stored.read_bytes()
    live = host.controller.database
    live.unlink()
    beside = [live.with_name(f"{live.name}{suffix}") for suffix in BESIDE]
    for path in beside:
        path.write_bytes(b"left over")
    for _ in host.killed_everywhere(host.restore):
        assert not folder.exists() or S_IMODE(folder.stat().st_mode) == 0o750
        if live.exists() and live.read_bytes() == wanted:
            assert not any(path.exists() for path in beside)
        host.restore()
        assert host.rows() == ["written by 1"]


def test_another_restore_completes_after_a_killed_one(host: Host) -> None:
    """Any next restore tells the units about the changes of the killed one."""
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    after = host.seen()
    host.backup(SECOND)
    for _ in host.killed_everywhere(host.restore):
        host.restore(SECOND)
        assert host.seen() == after
        assert host.unfinished() == []


def test_reach_restore_completes_after_a_kill(host: Host) -> None:
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    for _ in host.killed_everywhere(lambda: host.restore(reach=True)):
        host.restore(reach=True)
        assert host.restore(reach=True)["changes"] == 0
        assert host.unfinished() == []


def test_copy_of_a_moved_database_is_whole_after_a_kill(host: Host) -> None:
    """The first copy counts until a later one is complete, also where there was a later one."""
    backup.keep_moved_database(host.backup())
    host.execute("INSERT INTO notes VALUES ('later')")

    def keep() -> object:
        return backup.keep_moved_database(backup_manifest.read_backup(host.paths, FIRST))

    for _ in host.killed_everywhere(keep):
        backup_manifest.require_intact(backup_manifest.read_backup(host.paths, FIRST))


def test_restore_of_the_dead_man_timer_completes_after_a_kill(host: Host) -> None:
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    deadman.arm(host.paths, host.systemd, FIRST, 90)

    def fire() -> object:
        return restore_for_deadman(host.paths, host.systemd, FIRST, RestoreOptions(reach=True))

    for _ in host.killed_everywhere(fire):
        fire()
        state = deadman.status(host.paths, host.systemd)
        assert (state["armed"], state["fired"]) == (False, True)
        assert "outcome" in state
        assert host.restore(reach=True)["changes"] == 0
        assert host.unfinished() == []


def test_handover_completes_after_a_kill(host: Host) -> None:
    host.release(NEW)
    controller = host.controller

    def hand_over() -> None:
        Handover(host.systemd, controller.root, UnitTimeouts()).to(NEW)

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


def test_record_write_is_atomic(host: Host) -> None:
    deployment_records.write(host.paths, {"id": FIRST, "status": "running"})
    ends = {"id": FIRST, "status": "succeeded"}
    seen = []
    for _ in host.killed_everywhere(lambda: deployment_records.write(host.paths, ends)):
        (record,) = deployment_records.records(host.paths)
        seen.append(record["status"])
        deployment_records.write(host.paths, ends)
        assert deployment_records.records(host.paths) == [{**ends, "number": 1}]
        assert host.unfinished() == []
    assert seen == sorted(seen)
    assert set(seen) == {"running", "succeeded"}


def test_backup_prune_completes_after_a_kill(host: Host) -> None:
    host.backup()
    host.backup(SECOND)
    for _ in host.killed_everywhere(lambda: backup.prune(host.paths, keep=1)):
        assert SECOND in {each["id"] for each in backup.list_backups(host.paths)}
        assert all(each["problem"] is None for each in backup.list_backups(host.paths))
        backup.prune(host.paths, keep=1)
        assert [each["id"] for each in backup.list_backups(host.paths)] == [SECOND]
        assert host.unfinished() == []


def test_arming_the_dead_man_timer_completes_after_a_kill(host: Host) -> None:
    host.backup()
    for _ in host.killed_everywhere(lambda: deadman.arm(host.paths, host.systemd, FIRST, 90)):
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert deadman.status(host.paths, host.systemd)["timer"]
        deadman.confirm(host.paths, host.systemd)
        assert not deadman.status(host.paths, host.systemd)["timer"]


def test_image_add_completes_after_a_kill(host: Host) -> None:
    """An image that replaces a damaged one is complete as soon as it exists."""
    arrive(host.store, NEW_IMAGE)
    place = host.store / "images" / NEW_IMAGE
    place.mkdir()
    for name in ("record.json", *BOOT_FILES[1:]):
        (place / name).write_text("{}")
    wanted = {*BOOT_FILES, "record.json", images.CHECKED, "in-use.lock"}
    for _ in host.killed_everywhere(lambda: images.add(NEW_IMAGE, host.store)):
        if (place / BOOT_FILES[0]).exists():
            assert {path.name for path in place.iterdir()} == wanted
        images.add(NEW_IMAGE, host.store)
        assert images.is_intact(place)
        assert not (host.store / "incoming" / NEW_IMAGE).exists()


def test_golden_link_is_changed_atomically(host: Host) -> None:
    was = golden_link.golden_digest(host.store)
    arrive(host.store, NEW_IMAGE)
    images.add(NEW_IMAGE, host.store)
    seen = []
    for _ in host.killed_everywhere(lambda: golden_link.make_golden(NEW_IMAGE, host.store)):
        seen.append(golden_link.golden_digest(host.store))
        assert golden_link.golden_leads_to(host.store, seen[-1])
        golden_link.make_golden(NEW_IMAGE, host.store)
        assert golden_link.golden_digest(host.store) == NEW_IMAGE
        assert host.unfinished() == []
    assert set(seen) == {was, NEW_IMAGE}
    assert seen == sorted(seen, key=[was, NEW_IMAGE].index)


def test_image_prune_completes_after_a_kill(host: Host) -> None:
    arrive(host.store, NEW_IMAGE)
    images.add(NEW_IMAGE, host.store)
    files = len(list((host.store / "images" / NEW_IMAGE).iterdir()))
    for _ in host.killed_everywhere(lambda: images.prune(host.paths, host.store)):
        left = host.store / "images" / NEW_IMAGE
        assert not left.exists() or len(list(left.iterdir())) == files
        images.prune(host.paths, host.store)
        assert not left.exists()
        assert list((host.store / "incoming").iterdir()) == []
        assert golden_link.golden_leads_to(host.store, golden_link.golden_digest(host.store))


def test_release_prune_completes_after_a_kill(host: Host) -> None:
    host.release(NEW)
    root = host.controller.root
    for _ in host.killed_everywhere(lambda: releases.prune(0, host.paths, root)):
        assert (root / "releases" / OLD / PROGRAM).exists(), "it serves"
        releases.prune(0, host.paths, root)
        assert [path.name for path in (root / "releases").iterdir()] == [OLD]
