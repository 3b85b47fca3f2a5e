"""Backup, changes, restore: the host is as before, and services are told."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE

import pytest

from polydev.durable_files import unfinished
from polydev.hosttool import backup, backup_manifest, restore_controller, sqlite_database
from polydev.hosttool.backup_manifest import BackupEntry
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry
from polydev.hosttool.restore import RestoreOptions, restore
from polydev.hosttool.restore_files import file_changes
from polydev.hosttool.units import MAIN, SOCKET, TEMPLATE_HOLDER, TEMPLATE_MAKER, next_unit
from polydev.processes import PIPE, end_group, spawn
from tests.disk import recorded
from tests.unit.hosttool_host import (
    FIREWALL,
    FIRST,
    FOREIGN_UNITS,
    NETWORK,
    NEW,
    OLD,
    SECOND,
    SLOTS,
    THIRD,
    Host,
    bare_host,
    deploy,
    put,
)

NEW_FOLDERS = {
    "/etc/a": "folder",
    "/etc/a/deep": "folder",
    "/etc/a/deep/file": "file",
    "/etc/b": "folder",
    "/etc/b/file": "file",
    "/etc/kept": "folder",
    "/etc/kept/new": "file",
    "/etc/none": "absent",
}


def assert_second_restore_does_nothing(host: Host, backup_id: str = FIRST) -> None:
    host.systemd.log.clear()
    again = host.restore(backup_id)
    assert (again["changes"], host.systemd.log, host.unfinished()) == (0, [], [])


def test_restore_undoes_a_deployment(host: Host) -> None:
    before = host.seen()
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    assert host.seen() != before
    done = host.restore()
    assert host.seen() == before
    assert done["database"] == "replaced"
    assert done["handover"] == OLD
    assert done["golden"] == "a" * 64
    assert_second_restore_does_nothing(host)


def test_restore_undoes_a_first_deployment(tmp_path: Path) -> None:
    host = bare_host(tmp_path / "host")
    before = host.seen()
    host.backup()
    deploy(host)
    host.restore()
    assert host.seen() == before
    assert not os.path.lexists(host.controller.current)
    assert not os.path.lexists(host.store / "golden-rootfs.ext4")
    assert not host.controller.database.exists()
    assert host.systemd.active.keys() == {*FOREIGN_UNITS}
    assert "reload-or-restart ssh.service" in host.systemd.log
    assert list(host.paths.stamps.iterdir()) == []
    assert_second_restore_does_nothing(host)


def test_units_stop_before_their_files_are_unloaded(tmp_path: Path) -> None:
    host = bare_host(tmp_path / "host")
    host.backup()
    deploy(host)
    host.restore()
    log = host.systemd.log
    stopped = [line for line in log if line.startswith("stop")]
    assert stopped == [
        f"stop {unit}" for unit in (MAIN, SOCKET, f"{SLOTS}2.service", FIREWALL, NETWORK)
    ]
    assert max(map(log.index, stopped)) < log.index("daemon-reload")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "nothing"])
@pytest.mark.parametrize("was", ["file", "folder", "link", "nothing"])
def test_restore_replaces_any_kind_of_path(host: Host, was: str, kind: str) -> None:
    place = host.root / "etc" / "polydev" / "place"

    def make(what: str) -> None:
        if what == "file":
            put(place, "text", 0o600)
        elif what == "folder":
            put(place / "within" / "file", "text")
            place.chmod(0o750)
        elif what == "link":
            place.symlink_to("nowhere")

    make(was)
    before = host.seen()
    host.backup()
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    make(kind)
    host.restore()
    assert host.seen() == before
    assert_second_restore_does_nothing(host)


def test_restore_changes_only_different_files(host: Host) -> None:
    host.backup()
    file = host.root / "etc" / "polydev" / "dns.conf"
    unchanged = file.with_name("firewall.nft").stat()
    file.chmod(0o666)
    assert host.restore()["changed"] == [{"path": str(file), "how": "adjusted"}]
    assert file.stat().st_mode & 0o7777 == 0o640
    assert file.with_name("firewall.nft").stat() == unchanged
    assert host.systemd.log == []


def test_restore_sets_file_times(host: Host) -> None:
    file = host.root / "etc" / "polydev" / "dns.conf"
    os.utime(file, ns=(1, 2_000_000_001))
    host.backup()
    file.write_text("other")
    host.restore()
    assert file.stat().st_mtime_ns == 2_000_000_001


def test_restore_after_unreadable_pending_changes_takes_all_for_changed(host: Host) -> None:
    """Nothing says any more what a restore before this one changed."""
    host.backup()
    host.paths.pending.write_text("{")
    done = host.restore()
    assert "daemon-reload" in host.systemd.log
    assert done["handover"] == OLD
    assert_second_restore_does_nothing(host)


def test_restore_keeps_set_user_id_bits(host: Host) -> None:
    """A change of the owner takes them away."""
    program = host.root / "etc" / "polydev" / "program"
    put(program, "first", 0o4755)
    host.backup()
    put(program, "second", 0o700)
    host.restore()
    assert (program.read_text(), S_IMODE(program.stat().st_mode)) == ("first", 0o4755)
    program.chmod(0o755)
    host.restore()
    assert S_IMODE(program.stat().st_mode) == 0o4755


def test_unit_restarts_only_if_its_configuration_differs(host: Host) -> None:
    host.backup()
    host.unit(FIREWALL, "2")
    host.unit(NETWORK, "2")
    host.start(FIREWALL)
    done = host.restore()
    assert done["units"] == [{"unit": FIREWALL, "did": "reload-or-restart"}]
    assert "daemon-reload" in host.systemd.log
    assert done["handover"] is None


def knows_of(host: Host, unit: str) -> None:
    """Add one more unit to the host."""
    paths, units = (*host.scope.paths, host.paths.units / unit), (*host.scope.units, unit)
    host.scope = replace(host.scope, paths=tuple(sorted(paths)), units=units)
    host.unit(unit, "1")


def test_template_holder_restarts_after_the_handover(host: Host) -> None:
    knows_of(host, TEMPLATE_HOLDER)
    host.start(TEMPLATE_HOLDER)
    before = host.seen()
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    host.unit(TEMPLATE_HOLDER, "2")
    host.start(TEMPLATE_HOLDER)
    assert host.restore()["handover"] == OLD
    assert host.seen() == before
    log = host.systemd.log
    assert log.index(f"reload-or-restart {TEMPLATE_HOLDER}") > log.index(f"restart {MAIN}")
    assert_second_restore_does_nothing(host)


@pytest.mark.parametrize("is_new", [False, True])
def test_template_maker_is_stopped_only_if_it_was_new(host: Host, is_new: bool) -> None:
    knows_of(host, TEMPLATE_MAKER)
    if is_new:
        (host.paths.units / TEMPLATE_MAKER).unlink()
    host.systemd.reload()
    host.backup()
    host.unit(TEMPLATE_MAKER, "2")
    host.start(TEMPLATE_MAKER)
    host.restore()
    assert (TEMPLATE_MAKER in host.systemd.active) is not is_new
    assert [line for line in host.systemd.log if TEMPLATE_MAKER in line] == [
        f"stop {TEMPLATE_MAKER}"
    ] * is_new


def test_restore_sets_units_active_or_inactive_as_before(host: Host) -> None:
    host.systemd.active.pop(FIREWALL)
    host.systemd.enabled.remove(FIREWALL)
    host.backup()
    host.start(FIREWALL)
    host.systemd.enabled.add(FIREWALL)
    host.systemd.active[NETWORK] = "failed"
    host.systemd.enabled.remove(NETWORK)
    host.restore()
    assert host.systemd.log == [
        f"enable {NETWORK}",
        f"disable {FIREWALL}",
        f"stop {FIREWALL}",
        f"reset-failed {NETWORK}",
        f"start {NETWORK}",
    ]


def test_restore_sets_template_instances_as_before(host: Host) -> None:
    host.start(f"{SLOTS}3.service")
    host.backup()
    host.systemd.active.pop(f"{SLOTS}3.service")
    host.start(f"{SLOTS}4.service")
    host.restore()
    assert host.systemd.active[f"{SLOTS}3.service"] == "active"
    assert f"{SLOTS}4.service" not in host.systemd.active


def test_sysctl_is_applied_when_its_file_changes(host: Host) -> None:
    host.backup()
    put(host.paths.sysctl / "60-polydev.conf", "net.ipv4.ip_forward=9\n")
    host.restore()
    assert host.systemd.log == ["restart systemd-sysctl.service"]


def test_socket_restarts_while_its_service_is_stopped(host: Host) -> None:
    host.backup()
    host.unit(SOCKET, "2")
    host.start(SOCKET)
    host.restore()
    log = host.systemd.log
    assert log.index(f"stop {SOCKET}") < log.index(f"stop {MAIN}")
    assert log.index(f"stop {MAIN}") < log.index(f"reload-or-restart {SOCKET}")
    assert log[-2:] == [f"reset-failed {MAIN}", f"restart {MAIN}"]


@pytest.mark.parametrize("state", ["active", "failed"])
def test_lost_socket_is_opened_again(host: Host, state: str) -> None:
    """Otherwise the service, which listens by itself, would keep the address."""
    before = host.seen()
    host.backup()
    host.systemd.lost.add(SOCKET)
    host.systemd.active[SOCKET] = state
    host.start("master-controller-next@x.service")
    done = host.restore()
    assert host.systemd.listens(SOCKET)
    assert {"unit": SOCKET, "did": "start"} in done["units"]  # type: ignore[operator]
    assert host.systemd.active[MAIN] == "active"
    host.systemd.active.pop("master-controller-next@x.service", None)
    assert host.seen() == before
    assert_second_restore_does_nothing(host)


def test_changed_controller_config_causes_a_handover(host: Host) -> None:
    host.backup()
    put(host.paths.controller_config / "config.yaml", "log_level: 2\n", 0o640)
    assert host.restore()["handover"] == OLD
    assert_second_restore_does_nothing(host)


def test_stopped_controller_gets_its_release_but_is_not_started(host: Host) -> None:
    for unit in (SOCKET, MAIN):
        del host.systemd.active[unit]
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    assert host.restore()["handover"] == OLD
    assert os.readlink(host.controller.current) == f"releases/{OLD}"
    assert MAIN not in host.systemd.active
    assert_second_restore_does_nothing(host)


def test_failed_unit_does_not_stop_the_restore(host: Host) -> None:
    host.backup()
    deploy(host, "2", NEW, "b" * 64)
    host.systemd.fails = lambda verb, unit: unit == FIREWALL
    with pytest.raises(HostError, match=FIREWALL) as refused:
        host.restore()
    assert refused.value.code == "restore-incomplete"
    assert os.readlink(host.controller.current) == f"releases/{OLD}"
    host.systemd.fails = lambda verb, unit: False
    host.restore()
    assert_second_restore_does_nothing(host)


def test_paths_and_units_of_a_later_scope_are_removed(host: Host) -> None:
    before = host.seen()
    host.backup()
    newer = host.root / "etc" / "newer.d" / "newer.conf"
    unit = "newer.service"
    wider = replace(
        host.scope,
        paths=(*host.scope.paths, newer, host.paths.units / unit),
        units=(*host.scope.units, unit),
    )
    backup.create(host.paths, host.systemd, SECOND, wider)
    put(newer, "new")
    host.unit(unit, "1")
    host.start(unit)
    backup.create(host.paths, host.systemd, THIRD, wider)
    host.restore()
    assert host.seen() == before
    assert unit not in host.systemd.active


def test_paths_outside_the_scope_of_the_backup_stay(host: Host) -> None:
    former = host.root / "etc" / "former.d" / "former.conf"
    put(former, "1")
    wider = replace(host.scope, paths=(*host.scope.paths, former))
    backup.create(host.paths, host.systemd, FIRST, wider)
    host.backup(SECOND)
    put(former, "2")
    host.restore(SECOND)
    assert former.read_text() == "2"


def test_daemon_reload_precedes_unit_restarts(host: Host) -> None:
    host.backup()
    host.unit(FIREWALL, "2")
    host.start(FIREWALL)
    host.restore()
    log = host.systemd.log
    assert log.index("daemon-reload") < log.index(f"reload-or-restart {FIREWALL}")
    assert (host.paths.stamps / FIREWALL).read_text() == "1\n"


def noted(hash_of: Callable[[Path], str | None], seen: list[Path]) -> Callable[[Path], str | None]:
    def hash_and_note(path: Path) -> str | None:
        seen.append(path)
        return hash_of(path)

    return hash_and_note


class TestReach:
    def test_reach_restore_restores_access_files_only(self, host: Host) -> None:
        host.backup()
        deploy(host, "2", NEW, "b" * 64)
        done = host.restore(reach=True)
        changed = {each["path"] for each in done["changed"]}  # type: ignore[attr-defined]
        assert changed == {str(path) for path in host.scope.reach}
        assert [each["unit"] for each in done["units"]] == ["ssh.service", NETWORK, FIREWALL]  # type: ignore[attr-defined]
        assert os.readlink(host.controller.current) == f"releases/{NEW}"
        assert host.rows() == ["written by 1", "written by 2"]
        assert MAIN not in " ".join(host.systemd.log)

    def test_full_restore_works_after_a_reach_restore(self, host: Host) -> None:
        before = host.seen()
        host.backup()
        deploy(host, "2", NEW, "b" * 64)
        host.restore(reach=True)
        host.restore()
        assert host.seen() == before

    def test_reach_restore_leaves_the_config_to_the_full_restore(self, host: Host) -> None:
        """The service must still learn of a file that a restore that was killed brought back."""
        host.backup()
        put(host.paths.controller_config / "config.yaml", "log_level: 2\n", 0o640)
        host.start(MAIN)
        host.systemd.fails = lambda verb, unit: True
        with pytest.raises(HostError):
            host.restore()
        host.systemd.fails = lambda verb, unit: False
        host.systemd.active[MAIN] = "active"
        host.restore(reach=True)
        assert host.restore()["handover"] == OLD
        assert_second_restore_does_nothing(host)

    def test_reach_restore_removes_new_files_and_their_units(self, tmp_path: Path) -> None:
        host = bare_host(tmp_path / "host")
        host.backup()
        deploy(host)
        host.restore(reach=True)
        assert not any(path.exists() for path in host.scope.reach)
        rest = {SOCKET, MAIN, f"{SLOTS}2.service"}
        assert host.systemd.active.keys() == {*FOREIGN_UNITS, *rest}


class TestDatabase:
    def test_restore_hashes_each_file_once(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.backup()
        host.execute("INSERT INTO notes VALUES ('later')")
        hashed: list[Path] = []
        for module, name in (
            (backup_manifest, "file_sha256"),
            (restore_controller, "content_sha256"),
        ):
            monkeypatch.setattr(module, name, noted(getattr(module, name), hashed))
        host.restore()
        assert host.rows() == ["written by 1"]
        assert {host.controller.database, host.paths.backups / FIRST / "database"} <= {*hashed}
        assert len(hashed) == len({*hashed})

    def test_database_with_the_same_rows_is_not_replaced(self, host: Host) -> None:
        host.backup()
        inode = host.controller.database.stat().st_ino
        host.execute("VACUUM")
        assert host.restore()["changes"] == 0
        assert host.controller.database.stat().st_ino == inode

    def test_restore_without_database_keeps_it(self, host: Host) -> None:
        host.backup()
        host.execute("INSERT INTO notes VALUES ('later')")
        restore(host.paths, host.systemd, FIRST, RestoreOptions(with_database=False))
        assert host.rows() == ["later", "written by 1"]

    def test_backup_of_a_database_in_use_has_committed_rows(self, host: Host) -> None:
        with closing(sqlite3.connect(host.controller.database)) as connection:
            connection.execute("INSERT INTO notes VALUES ('committed')")
            connection.commit()
            connection.execute("INSERT INTO notes VALUES ('not yet')")
            host.backup()
            connection.rollback()
        host.execute("DELETE FROM notes")
        host.restore()
        assert host.rows() == ["committed", "written by 1"]

    @pytest.mark.parametrize("damage", ["no database", "half"])
    def test_damaged_database_is_replaced_while_the_service_is_stopped(
        self, host: Host, damage: str
    ) -> None:
        host.backup()
        data = host.controller.database.read_bytes()
        broken = b"not a database" * 100 if damage == "no database" else data[: len(data) // 2]
        host.controller.database.write_bytes(broken)
        host.restore()
        assert host.rows() == ["written by 1"]
        # The socket is first, because it would start the service again at the next request.
        assert host.systemd.log[:2] == [f"stop {SOCKET}", f"stop {MAIN}"]
        assert host.systemd.active[SOCKET] == host.systemd.active[MAIN] == "active"

    def test_damaged_database_in_use_is_not_replaced(self, host: Host) -> None:
        host.backup()
        host.controller.database.write_bytes(b"not a database" * 100)
        with host.controller.database.open("rb"), pytest.raises(HostError) as failure:
            host.restore()
        assert failure.value.code == "database-in-use"
        assert f"process {os.getpid()}" in failure.value.message
        host.restore()
        assert host.rows() == ["written by 1"]

    def test_processes_with_skips_ended_processes(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        look = os.scandir

        def ended(path: str | Path) -> object:
            if str(path) == "/proc/1/fd":
                raise FileNotFoundError(path)
            return look(path)

        monkeypatch.setattr(os, "scandir", ended)
        with host.controller.database.open("rb"):
            assert sqlite_database.processes_with(host.controller.database) == [os.getpid()]

    def test_database_with_another_journal_mode_is_restored(self, host: Host) -> None:
        host.backup()
        host.execute("PRAGMA journal_mode=DELETE")
        host.execute("INSERT INTO notes VALUES ('later')")
        host.restore()
        assert host.rows() == ["written by 1"]

    def test_locked_database_is_refused(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_database, "LOCK_SECONDS", 0.0)
        host.backup()
        host.execute("INSERT INTO notes VALUES ('later')")
        with closing(sqlite3.connect(host.controller.database)) as writer:
            writer.execute("INSERT INTO notes VALUES ('not yet')")
            with pytest.raises(HostError) as failure:
                host.restore()
            writer.commit()
        assert failure.value.code == "database-in-use"
        assert f"process {os.getpid()}" in failure.value.message
        host.restore()
        assert host.rows() == ["written by 1"]

    def test_new_database_is_removed_once_unused(self, host: Host) -> None:
        """This happens when a deployment moves the service from PostgreSQL to SQLite."""
        live = host.controller.database
        content = live.read_bytes()
        live.unlink()
        host.backup()
        live.write_bytes(content)
        deploy(host, "2", NEW, "b" * 64)
        hold = "import sys; kept = open(sys.argv[1]); print(1); sys.stdin.read()"
        argv = [sys.executable, "-c", hold]
        service = spawn([*argv, live], stdin=PIPE, stdout=PIPE)
        try:
            assert service.stdout is not None
            service.stdout.readline()
            # The service has the file open until the handover restarts it.
            host.systemd.fails = lambda verb, unit: (
                (verb, unit) == ("restart", MAIN) and bool(service.communicate()[1])
            )
            assert host.restore()["database"] == "removed"
        finally:
            end_group(service)
        assert not live.exists()
        assert host.systemd.active[MAIN] == "active"
        assert_second_restore_does_nothing(host)

    def test_database_with_broken_foreign_keys_is_not_backed_up(self, host: Host) -> None:
        host.execute("CREATE TABLE parents (id PRIMARY KEY)")
        host.execute("CREATE TABLE children (parent REFERENCES parents)")
        host.execute("INSERT INTO children VALUES (1)")
        with pytest.raises(HostError, match="a row of children refers to a row of parents"):
            host.backup()
        assert backup.list_backups(host.paths) == []

    def test_database_with_a_damaged_index_is_not_backed_up(self, host: Host) -> None:
        host.execute("CREATE INDEX notes_text ON notes (text)")
        host.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        live = host.controller.database
        # Now the text in the row differs from that in the index.
        found = live.read_bytes()
        live.write_bytes(found.replace(b"written by 1", b"written by 2", 1))
        with pytest.raises(HostError, match=r"is damaged: .*notes_text"):
            host.backup()

    def test_replaced_database_is_synced_to_disk(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        live, saved = host.controller.database, host.backup().database
        assert saved
        assert saved.copy.stored
        done = recorded(monkeypatch)
        sqlite_database.replace_database(live, saved.copy.stored, saved.copy.entry)
        named, folder = done.index(f"name {live}"), f"sync {live.parent}"
        assert f"sync {unfinished(live)}" in done[:named]
        assert folder in done[:named], "logs are gone before"
        assert folder in done[named:]

    def test_reach_restore_leaves_the_database_to_the_full_restore(self, host: Host) -> None:
        """The service must still restart for a database that a killed restore replaced."""
        host.backup()
        host.execute("INSERT INTO notes VALUES ('later')")
        host.start(MAIN)
        host.systemd.fails = lambda verb, unit: True
        with pytest.raises(HostError):
            host.restore()
        assert host.rows() == ["written by 1"]
        host.systemd.fails = lambda verb, unit: False
        host.systemd.active[MAIN] = "active"
        host.restore(reach=True)
        assert host.restore()["handover"] == OLD

    def test_restore_sets_the_mode_of_the_database(self, host: Host) -> None:
        host.controller.database.chmod(0o640)
        host.backup()
        host.controller.database.chmod(0o666)
        assert host.restore()["database"] == "adjusted"
        assert host.controller.database.stat().st_mode & 0o777 == 0o640


def test_next_unit_stops_only_after_the_service_restarted(host: Host) -> None:
    """A handover was killed while the new release ran beside the service, which then crashed."""
    host.backup()
    deploy(host, "1", NEW, "b" * 64)
    host.systemd.come_up(next_unit(NEW))
    host.systemd.active.pop(MAIN)
    host.systemd.log.clear()
    host.restore()
    log = host.systemd.log
    assert log.index(f"restart {MAIN}") < log.index(f"stop {next_unit(NEW)}")


def test_removed_folder_is_one_change() -> None:
    now = [PathEntry(Path(path), kind) for path, kind in NEW_FOLDERS.items()]
    kept = [
        BackupEntry(PathEntry(Path("/etc/b"), "absent")),
        BackupEntry(PathEntry(Path("/etc/kept"), "folder")),
    ]
    assert [(str(each.path), each.how) for each in file_changes(kept, now)] == [
        ("/etc/a", "removed"),
        ("/etc/b", "removed"),
        ("/etc/kept/new", "removed"),
    ]


@pytest.mark.parametrize("is_there", [True, False])
def test_stopped_unit_has_no_stamp_after_a_restore(host: Host, is_there: bool) -> None:
    """Otherwise the old stamp would look current after a start with another configuration."""
    stamp = host.paths.stamps / FIREWALL
    host.systemd.act("stop", FIREWALL, timeout_seconds=1)
    stamp.unlink()
    if not is_there:
        (host.paths.units / FIREWALL).unlink()
        host.systemd.reload()
    host.backup()
    host.unit(FIREWALL, "2")
    host.start(FIREWALL)
    assert stamp.exists()
    host.restore()
    assert FIREWALL not in host.systemd.active
    assert not stamp.exists()
