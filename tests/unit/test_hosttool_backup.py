"""Backups: their contents, refusals, when they are valid, and how damage is reported."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polydev.durable_files import read_json
from polydev.hosttool import backup, backup_manifest, disk_reserve
from polydev.hosttool.backup_scope import Scope, scope_from
from polydev.hosttool.disk_reserve import RESERVE_BYTES
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import PathEntry
from polydev.hosttool.paths import Paths
from polydev.hosttool.units import known_units
from tests.unit.hosttool_host import FIRST, OLD, SECOND, THIRD, Host, bare_host, put


def refused(code: str, host: Host, backup_id: str = FIRST) -> str:
    """Run a restore that must be refused without changes; return its message."""
    before, log = host.seen(), list(host.systemd.log)
    with pytest.raises(HostError) as refusal:
        host.restore(backup_id)
    assert (refusal.value.code, host.seen(), host.systemd.log) == (code, before, log)
    assert not host.paths.pending.exists()
    return refusal.value.message


def test_only_root_reads_backups(host: Host) -> None:
    folder = host.backup().folder
    modes = {path.stat().st_mode & 0o077 for path in (host.paths.backups, *folder.rglob("*"))}
    assert modes == {0}


def test_list_shows_release_and_golden_image(host: Host) -> None:
    host.backup()
    (listed,) = backup.list_backups(host.paths)
    assert listed["id"] == FIRST
    assert listed["release"] == OLD
    assert listed["golden"] == "a" * 64
    assert listed["problem"] is None


def test_creating_a_backup_again_returns_the_existing_one(host: Host) -> None:
    first = host.backup()
    put(host.root / "etc" / "polydev" / "dns.conf", "later")
    assert host.backup() == first


def test_existing_backup_with_another_scope_is_refused(host: Host) -> None:
    host.backup()
    other = replace(host.scope, units=())
    with pytest.raises(HostError, match="another scope") as refusal:
        backup.create(host.paths, host.systemd, FIRST, other)
    assert refusal.value.code == "backup-exists"


def test_backup_without_enough_space_is_refused_with_figures(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(f_bavail=10, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(HostError, match=r"needs 1\d\.\d MiB in .*, 0\.0 are free") as refusal:
        host.backup()
    assert refusal.value.code == "no-space"
    assert not host.paths.backups.exists()


def test_restore_frees_the_disk_reserve(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.backup()
    assert disk_reserve.differences(host.paths) == []

    def still_full(_: Paths) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr("polydev.hosttool.restore.keep_reserve", still_full)
        host.restore()
    assert not host.paths.reserve.exists()
    missing = f"- {host.paths.reserve}: 0 MiB kept for a full disk"
    assert disk_reserve.differences(host.paths)[0] == missing


def test_reserve_is_removed_if_the_disk_is_full(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def allocate_a_part(descriptor: int, start: int, _length: int) -> None:
        allocate(descriptor, start, 4096)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "posix_fallocate", allocate_a_part)
    with pytest.raises(OSError, match="full"):
        disk_reserve.keep_reserve(host.paths)
    assert not host.paths.reserve.exists()


def test_restore_makes_the_disk_reserve_again(host: Host) -> None:
    host.backup()
    host.paths.reserve.unlink()
    host.restore()
    assert disk_reserve.differences(host.paths) == []
    os.truncate(host.paths.reserve, 0)
    os.truncate(host.paths.reserve, RESERVE_BYTES)  # a sparse file reserves no space
    assert disk_reserve.differences(host.paths) != []


def test_backup_of_a_socket_is_refused(host: Host) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(host.root / "etc/polydev", os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{here}/s")  # this path may have any length
        finally:
            os.close(here)
        with pytest.raises(HostError, match=r"etc/polydev/s \(socket\)") as refusal:
            host.backup()
    assert refusal.value.code == "bad-scope"


def test_backup_fails_if_a_file_changes_meanwhile(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = host.root / "etc" / "polydev" / "dns.conf"

    def change_meanwhile(*arguments: object) -> object:
        file.write_text("changed")
        return known_units(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(backup, "known_units", change_meanwhile)
    with pytest.raises(HostError, match=r"dns\.conf changed while"):
        host.backup()
    assert backup.list_backups(host.paths) == []


class TestDamage:
    def test_record_of_a_moved_database(self, host: Host) -> None:
        backup.keep_moved_database(host.backup())
        file = host.paths.backups / FIRST / "moved.json"
        document = json.loads(file.read_text())
        document["moved"]["rows"] = {"notes": 9}
        file.write_text(json.dumps(document))
        with pytest.raises(HostError) as refusal:
            backup_manifest.read_backup(host.paths, FIRST)
        assert refusal.value.code == "backup-damaged"

    def test_damaged_backup_is_not_returned_as_the_one_asked_for(self, host: Host) -> None:
        kept = host.backup()
        next((kept.folder / "files").iterdir()).write_bytes(b"flipped")
        with pytest.raises(HostError) as refusal:
            host.backup()
        assert refusal.value.code == "backup-damaged"

    def test_changed_content_is_refused(self, host: Host) -> None:
        kept = next(one for one in host.backup().entries if one.entry.path.name == "dns.conf")
        assert kept.stored is not None
        kept.stored.write_bytes(b"flipped")
        assert str(kept.entry.path) in refused("backup-damaged", host)
        assert backup.list_backups(host.paths)[0]["problem"] is None

    def test_missing_database_copy_is_refused(self, host: Host) -> None:
        (host.backup().folder / "database").unlink()
        assert "controller.sqlite3: No such file" in refused("backup-damaged", host)

    @pytest.mark.parametrize("name", [backup_manifest.MANIFEST, backup_manifest.SUM])
    @pytest.mark.parametrize("data", [b"", b"{}\n", None])
    def test_damaged_manifest_is_refused(self, host: Host, name: str, data: bytes | None) -> None:
        file = host.backup().folder / name
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        assert FIRST in refused("backup-damaged", host)
        (listed,) = backup.list_backups(host.paths)
        assert listed["problem"]

    def test_changed_release_file_is_refused(self, host: Host) -> None:
        host.backup()
        program = host.controller.release(OLD) / "venv/bin/master-controller"
        program.write_bytes(b"flipped")
        assert f"{program} has sha256" in refused("backup-damaged", host)

    def test_changed_release_mode_is_refused(self, host: Host) -> None:
        host.backup()
        (host.controller.release(OLD) / "venv/bin/master-controller").chmod(0o4755)
        assert "has mode 4755, not 755" in refused("backup-damaged", host)

    def test_changed_release_list_is_refused(self, host: Host) -> None:
        host.backup()
        (host.controller.release(OLD) / "files.jsonl").write_text("")
        assert "has changed since the release was installed" in refused("backup-damaged", host)

    def test_changed_release_link_is_refused(self, host: Host) -> None:
        host.backup()
        link = host.controller.release(OLD) / "venv/bin/python3"
        link.unlink()
        link.symlink_to("/usr/bin/python9")
        assert f"{link} is not the link" in refused("backup-damaged", host)

    def test_missing_release_file_is_refused(self, host: Host) -> None:
        host.backup()
        (host.controller.release(OLD) / "venv/bin/master-controller").unlink()
        assert f"release {OLD} has no" in refused("backup-damaged", host)

    def test_missing_golden_image_is_refused(self, host: Host) -> None:
        host.backup()
        (host.store / "images" / ("a" * 64) / "rootfs.ext4").unlink()
        assert "points to no image" in refused("backup-damaged", host)

    def test_promotion_of_another_image_is_refused(self, host: Host) -> None:
        host.backup()
        host.image(7, "c" * 64)
        (host.store / "promotions" / "000001").unlink()
        (host.store / "promotions" / "000007").rename(host.store / "promotions" / "000001")
        assert "points to cccc" in refused("backup-damaged", host)

    def test_reach_restore_ignores_damage_elsewhere(self, host: Host) -> None:
        host.backup()
        (host.store / "images" / ("a" * 64) / "rootfs.ext4").unlink()
        (host.controller.release(OLD) / "files.jsonl").unlink()
        host.restore(reach=True)

    def test_missing_backup_is_refused(self, host: Host) -> None:
        assert SECOND in refused("backup-missing", host, SECOND)

    def test_unknown_owner_is_refused(self, host: Host) -> None:
        kept = host.backup()
        manifest = read_json(kept.folder / backup_manifest.MANIFEST)
        assert manifest is not None
        for entry in manifest["entries"]:
            entry["owner"] = "nobody-of-this-name"
        rewrite(kept, manifest)
        assert "nobody-of-this-name" in refused("backup-damaged", host)


def rewrite(kept: backup_manifest.Backup, manifest: object) -> None:
    data = json.dumps(manifest).encode()
    (kept.folder / backup_manifest.MANIFEST).write_bytes(data)
    (kept.folder / backup_manifest.SUM).write_text(f"{hashlib.sha256(data).hexdigest()}  x\n")


def test_prune_keeps_the_newest_and_the_dead_mans_backup(host: Host) -> None:
    for backup_id in (FIRST, SECOND, THIRD):
        host.backup(backup_id)
    put(host.paths.deadman, json.dumps({"armed": True, "backup": FIRST}))
    assert backup.prune(host.paths, keep=1) == [SECOND]
    put(host.paths.deadman, json.dumps({"armed": False, "backup": FIRST}))
    assert backup.prune(host.paths, keep=1) == [FIRST]
    assert [each["id"] for each in backup.list_backups(host.paths)] == [THIRD]


class TestScope:
    @pytest.mark.parametrize("path", ["/", "/etc", "etc/polydev", "/etc/x/../../shadow", ""])
    def test_dangerous_paths_are_refused(self, path: str) -> None:
        with pytest.raises(HostError) as refusal:
            scope_from({"paths": [path]})
        assert refusal.value.code == "bad-scope"

    @pytest.mark.parametrize(
        "document",
        [{}, {"paths": 3}, {"paths": [3]}, {"paths": [], "controller": {"root": "/a/b"}}],
    )
    def test_malformed_scopes_are_refused(self, document: dict[str, object]) -> None:
        with pytest.raises(HostError) as refusal:
            scope_from(document)
        assert refusal.value.code == "bad-scope"

    def test_reach_outside_the_paths_is_refused(self) -> None:
        scope_from({"paths": ["/etc/ssh"], "reach": ["/etc/ssh/sshd_config"]})
        with pytest.raises(HostError, match="/etc/other"):
            scope_from({"paths": ["/etc/ssh"], "reach": ["/etc/other"]})

    def test_scope_survives_a_json_round_trip(self, host: Host) -> None:
        assert scope_from(host.scope.as_dict()) == host.scope
        small = Scope((Path("/etc/polydev"),))
        assert scope_from(json.loads(json.dumps(small.as_dict()))) == small

    @pytest.mark.parametrize("inside", ["", "backups", "backups/x", "..", "../../opt"])
    def test_scope_containing_the_backups_is_refused(self, host: Host, inside: str) -> None:
        place = Path(os.path.normpath(host.paths.home / inside))
        with pytest.raises(HostError, match="the backups themselves"):
            backup.create(host.paths, host.systemd, FIRST, Scope((place,)))

    def test_scope_may_contain_the_host_tool(self, host: Host) -> None:
        put(host.paths.tool, "tool", 0o755)
        scope = replace(host.scope, paths=(*host.scope.paths, host.paths.tool))
        backup.create(host.paths, host.systemd, FIRST, scope)
        put(host.paths.tool, "new tool", 0o755)
        host.restore()
        assert host.paths.tool.read_text() == "tool"


Mess = tuple[str, list[str], int]
names = st.sampled_from(["a", "b", "c"])
messes = st.lists(
    st.tuples(
        st.sampled_from(["file", "folder", "link", "remove", "mode", "bytes"]),
        st.lists(names, min_size=1, max_size=3),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(before=messes, after=messes)
def test_restore_undoes_any_changes_of_a_tree(
    tmp_path_factory: pytest.TempPathFactory, before: list[Mess], after: list[Mess]
) -> None:
    host = bare_host(tmp_path_factory.mktemp("host"))
    tree = host.root / "etc" / "polydev"
    mess_up(tree, before)
    seen = host.seen()
    host.backup()
    mess_up(tree, after)
    host.restore()
    assert host.seen() == seen
    assert host.restore()["changes"] == 0


def mess_up(tree: Path, messes: list[Mess]) -> None:
    for what, parts, number in messes:
        path = tree.joinpath(*parts)
        with suppress(OSError):  # a file in place of the parent folder, or nothing
            _mess(path, what, number)


def _mess(path: Path, what: str, number: int) -> None:
    if what == "file":
        put(path, str(number), 0o600 + number)
    elif what == "folder":
        path.mkdir(parents=True, exist_ok=True)
    elif what == "link":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(f"/nowhere/{number}")
    elif what == "remove":
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    elif what == "mode":
        path.chmod(0o700 + number)
    elif path.is_file():
        path.write_bytes(bytes([number]))


def test_malformed_ids_are_refused(tmp_path: Path) -> None:
    for text in ("", "../x", "20250131_120000", f"{FIRST}/..", f"{FIRST}\n", "latest"):
        with pytest.raises(HostError) as refusal:
            backup_manifest.read_backup(Paths.below(tmp_path), text)
        assert refusal.value.code == "bad-id"


@pytest.mark.parametrize("is_kept", [True, False])
def test_required_space_is_exact_to_the_byte(
    host: Host, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_kept:
        disk_reserve.keep_reserve(host.paths)
    live = host.controller.database
    wal = live.with_name(f"{live.name}-wal")
    wal.write_bytes(b"x" * 100)
    sizes = [7, 5000, live.stat().st_size, 100]
    needed = sum(size + backup.BLOCK_BYTES for size in sizes) + backup.SLACK_BYTES
    needed += 0 if is_kept else RESERVE_BYTES
    entries = [PathEntry(Path(f"/{size}"), "file", size_bytes=size) for size in sizes[:2]]
    entries.append(PathEntry(Path("/folder"), "folder", size_bytes=4096))

    def room(free: int) -> Any:
        return lambda _: SimpleNamespace(f_bavail=free, f_frsize=1)

    monkeypatch.setattr("os.statvfs", room(needed))
    backup._require_space(host.paths, entries, host.scope)
    monkeypatch.setattr("os.statvfs", room(needed - 1))
    with pytest.raises(HostError, match="are free") as told:
        backup._require_space(host.paths, entries, host.scope)
    assert told.value.code == "no-space"
