"""A deployment's operations in a slice: permitted, and ended before anything is undone."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from polydev.hosttool import backup, deadman, restore, verb_lock
from polydev.hosttool.deployment_slice import SLICE, configure_packages, in_slice, permit, stop
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore import RestoreOptions
from tests.unit.hosttool_host import FIRST, SECOND, Host


@pytest.fixture
def changed(host: Host) -> Host:
    """A host during a deployment with a running operation."""
    host.backup()
    permit(host.paths, host.systemd, SECOND)
    host.systemd.active[SLICE] = "active"
    (host.paths.controller_config / "config.yaml").write_text("other: 1\n")
    host.systemd.log.clear()
    return host


def text_of(host: Host) -> str:
    return (host.paths.controller_config / "config.yaml").read_text()


class TestRestore:
    def test_restore_ends_operations_first(
        self, changed: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        real = restore._restore

        def looked_at(*words: object) -> dict[str, object]:
            assert not changed.paths.permission.exists()
            seen.append(changed.systemd.active.get(SLICE))
            return real(*words)  # type: ignore[arg-type]

        monkeypatch.setattr(restore, "_restore", looked_at)
        changed.restore()
        assert seen == [None]
        assert changed.systemd.log[0] == f"stop {SLICE}"
        assert text_of(changed) != "other: 1\n"

    def test_restore_stops_if_operations_cannot_be_ended(self, changed: Host) -> None:
        changed.systemd.fails = lambda verb, unit: unit == SLICE
        with pytest.raises(HostError, match="cannot be ended") as refusal:
            changed.restore()
        assert refusal.value.code == "operations-run"
        assert text_of(changed) == "other: 1\n"

    def test_missing_backup_ends_no_operations(self, changed: Host) -> None:
        with pytest.raises(HostError):
            changed.restore(SECOND)
        assert changed.systemd.log == []

    def test_dead_man_timer_ends_operations(self, changed: Host) -> None:
        deadman.arm(changed.paths, changed.systemd, FIRST, 60)
        options = RestoreOptions(reach=True)
        restore.restore_for_deadman(changed.paths, changed.systemd, FIRST, options)
        assert f"stop {SLICE}" in changed.systemd.log

    def test_confirmed_dead_man_timer_ends_no_operations(self, changed: Host) -> None:
        deadman.arm(changed.paths, changed.systemd, FIRST, 60)
        deadman.confirm(changed.paths, changed.systemd)
        options = RestoreOptions(reach=True)
        restore.restore_for_deadman(changed.paths, changed.systemd, FIRST, options)
        assert f"stop {SLICE}" not in changed.systemd.log
        assert changed.paths.permission.exists()

    def test_dead_man_restores_even_if_operations_do_not_end(self, changed: Host) -> None:
        deadman.arm(changed.paths, changed.systemd, FIRST, 60)
        changed.systemd.fails = lambda verb, unit: unit == SLICE
        options = RestoreOptions(reach=True)
        done = restore.restore_for_deadman(changed.paths, changed.systemd, FIRST, options)
        assert done["id"] == FIRST


class TestPermission:
    def test_permit_ends_operations_of_another_deployment(self, changed: Host) -> None:
        assert permit(changed.paths, changed.systemd, FIRST)["stopped"]
        assert changed.paths.permission.read_text() == FIRST
        assert changed.systemd.log == [f"stop {SLICE}"]

    def test_interrupted_stop_is_completed_by_the_next(self, changed: Host) -> None:
        changed.systemd.fails = lambda verb, unit: unit == SLICE
        with pytest.raises(HostError):
            stop(changed.paths, changed.systemd)
        assert changed.paths.permission.read_text() == ""
        changed.systemd.fails = lambda verb, unit: False
        changed.systemd.active[SLICE] = "active"
        assert stop(changed.paths, changed.systemd)
        assert not changed.paths.permission.exists()

    def test_stop_without_operations_does_nothing(self, host: Host) -> None:
        assert not stop(host.paths, host.systemd)
        assert host.systemd.log == []

    @pytest.mark.parametrize(("permitted", "status"), [(FIRST, 0), (SECOND, 1), ("", 1), (None, 1)])
    def test_command_runs_only_with_the_permission(
        self, tmp_path: Path, permitted: str | None, status: int
    ) -> None:
        """The command behind systemd-run is really run."""
        paths = Paths.below(tmp_path / "it's a root")
        if permitted is not None:
            paths.permission.parent.mkdir(parents=True)
            paths.permission.write_text(permitted)
        words = shlex.split(f"{in_slice(FIRST, paths)} sh -c 'cat; echo \"$0\" ran' it")
        own = words[words.index("--") + 1 :]
        done = subprocess.run(own, input="read, ", capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert done.stdout == ("" if status else "read, it ran\n")
        assert (f"deployment {FIRST} was ended" in done.stderr) == bool(status)

    def test_commands_run_in_the_deployment_slice(self) -> None:
        words = shlex.split(in_slice(FIRST))
        assert words[0] == "systemd-run"
        assert {"--scope", f"--slice={SLICE}"} <= set(words[: words.index("--")])


class TestPackages:
    def test_configure_packages_does_nothing_without_interrupted_dpkg(self, tmp_path: Path) -> None:
        paths = Paths.below(tmp_path)
        assert configure_packages(paths) is None
        (paths.dpkg / "updates").mkdir(parents=True)
        assert configure_packages(paths) is None

    def test_interrupted_dpkg_is_completed(self, tmp_path: Path) -> None:
        """A real dpkg has a package list that is not merged yet."""
        paths = Paths.below(tmp_path)
        for folder in ("updates", "info"):
            (paths.dpkg / folder).mkdir(parents=True)
        package = "Package: nothing\nStatus: install ok unpacked\nArchitecture: all\n"
        package += "Maintainer: nobody <n@example.org>\nVersion: 1\nDescription: nothing\n"
        (paths.dpkg / "status").write_text("")
        (paths.dpkg / "info" / "nothing.list").write_text("")
        (paths.dpkg / "updates" / "0001").write_text(package)
        assert configure_packages(paths) == "configured"
        assert "Status: install ok installed" in (paths.dpkg / "status").read_text()
        assert configure_packages(paths) is None

    def test_failed_dpkg_configure_is_reported(self, tmp_path: Path) -> None:
        paths = Paths.below(tmp_path)
        (paths.dpkg / "updates").mkdir(parents=True)
        (paths.dpkg / "status").write_text("no list of packages\n")
        (paths.dpkg / "updates" / "0001").write_text("")
        assert str(configure_packages(paths)).startswith("failed: ")


@pytest.mark.parametrize(
    "verb",
    [
        lambda host: host.backup(SECOND),
        lambda host: host.restore(),
        lambda host: restore.restore_for_deadman(host.paths, host.systemd, FIRST, RestoreOptions()),
    ],
    ids=["backup", "restore", "dead man"],
)
def test_verbs_fail_without_changes_if_the_host_is_busy(
    changed: Host, verb: Callable[[Host], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    deadman.arm(changed.paths, changed.systemd, FIRST, 90)
    take = verb_lock._take
    before = changed.seen()["listing"]
    with verb_lock.lock_host(changed.paths, "another verb"):
        monkeypatch.setattr(verb_lock, "_take", lambda queue, what, _deadline: take(queue, what, 0))
        with pytest.raises(HostError, match="the host is busy: another verb"):
            verb(changed)
    assert changed.seen()["listing"] == before
    assert deadman.status(changed.paths, changed.systemd)["armed"]
    assert [each["id"] for each in backup.list_backups(changed.paths)] == [FIRST]
