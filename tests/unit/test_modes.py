"""Modes of files and folders at each moment: nobody else may read or change them."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev import durable_files
from polydev.client import lab_access
from polydev.hosttool import deployment_records, deployment_slice, network_watch, verb_lock
from polydev.hosttool.disk_reserve import keep_reserve
from polydev.hosttool.paths import Paths
from polydev.image.image_folder import hold
from polydev.image.store_lock import store_lock
from polydev.image_layout import IN_USE, STORE_LOCK
from polydev.lab import debian_base
from polydev.vm import template, template_client, template_store
from tests.unit.hosttool_host import FIRST, Host

FILE = Path(__file__)
NOBODYS: Any = SimpleNamespace(model_dump_json=lambda **_: "{}")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0)  # the given mode is the final mode
    yield
    os.umask(before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: durable_files.write_new(path, b"secret", 0o644),
        lambda path: durable_files.copy_new(Path(__file__), path),
    ],
    ids=["write_new", "copy_new"],
)
def test_file_being_written_is_private(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    for name in ("fchmod", "fsync"):
        real = getattr(os, name)

        def look(descriptor: int, *more: Any, real: Any = real) -> None:
            modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            real(descriptor, *more)

        monkeypatch.setattr(os, name, look)
    write(tmp_path / "file")
    assert modes[0] == 0o600


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: durable_files.write_new(folder / "file", b"secret"),
        lambda folder: durable_files.copy_new(FILE, folder / "file"),
        lambda folder: lab_access.store_access(folder, NOBODYS),
    ],
    ids=["write_new", "copy_new", "access"],
)
def test_link_created_meanwhile_is_not_followed(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    for name in ("file", "access.json.new"):
        (tmp_path / name).symlink_to(victim)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(FileExistsError):
        write(tmp_path)
    assert victim.read_text() == "as it was"


@pytest.mark.parametrize(
    "write", [durable_files.write_new, lambda path, data: durable_files.copy_new(FILE, path)]
)
def test_existing_link_is_replaced_and_not_followed(write: Any, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    (tmp_path / "file").symlink_to(victim)
    write(tmp_path / "file", b"new")
    assert victim.read_text() == "as it was"
    assert not (tmp_path / "file").is_symlink()


def of_backup(host: Host) -> list[Path]:
    kept = host.backup()
    return [kept.folder / "files", kept.folder.parent]  # the outer folder protects those between


def of_files_in_backup(host: Host) -> list[Path]:
    return [path for path in host.backup().folder.rglob("*") if path.is_file()]


def of_queue(host: Host) -> list[Path]:
    with verb_lock.lock_host(host.paths, "it"):
        return [host.paths.busy]


def of_slot_queue(host: Host) -> list[Path]:
    with verb_lock.lock_slot(host.paths, 2, "it"):
        return [host.paths.slot_queue(2)]


def of_record(host: Host) -> list[Path]:
    deployment_records.write(host.paths, {"id": FIRST, "status": "running"})
    return [host.paths.records / f"{FIRST}.json"]


def of_reserve(host: Host) -> list[Path]:
    keep_reserve(host.paths)
    return [host.paths.reserve]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (of_backup, 0o700),
        (of_files_in_backup, 0o600),
        (of_queue, 0o600),
        (of_slot_queue, 0o600),
        (of_record, 0o644),
        (of_reserve, 0o600),
    ],
)
def test_modes_of_host_tool_files(
    make: Callable[[Host], list[Path]], expected: int, host: Host
) -> None:
    found = {str(path): oct(mode(path)) for path in make(host)}
    assert found == dict.fromkeys(found, oct(expected))
    assert found


def test_modes_of_created_parent_folders(tmp_path: Path) -> None:
    os.umask(0o077)
    durable_files.make_folder(tmp_path / "a/b")
    durable_files.make_folder(tmp_path / "c/d", 0o700)
    modes = {name: mode(tmp_path / name) for name in ("a", "a/b", "c", "c/d")}
    assert modes == {"a": 0o755, "a/b": 0o755, "c": 0o755, "c/d": 0o700}


def test_network_report_is_world_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0o077)
    monkeypatch.setattr(network_watch, "REPORT", tmp_path / "run/network.json")
    network_watch._write({"ok": True})
    assert mode(tmp_path / "run/network.json") == 0o644
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["network.json"]


def test_modes_of_the_files_of_a_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.umask(0o077)

    def make(argv: object, say: object) -> None:
        for path in debian_base.FILES:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(debian_base, "run_lines", make)
    debian_base._make(tmp_path, "bookworm", [], print)
    assert {path: oct(mode(tmp_path / path)) for path in debian_base.FILES} == {
        path: oct(0o440 if path == "etc/sudoers.d/deploy" else 0o644) for path in debian_base.FILES
    }
    assert (tmp_path / "etc/sudoers.d/deploy").read_text() == "deploy ALL=(ALL:ALL) NOPASSWD: ALL\n"


def test_image_lock_is_world_readable(tmp_path: Path) -> None:
    hold(tmp_path).close()
    assert mode(tmp_path / IN_USE) == 0o644


def test_store_lock_is_writable_by_its_user_only(tmp_path: Path) -> None:
    with store_lock(tmp_path, "test"):
        assert mode(tmp_path / STORE_LOCK) == 0o644


def test_templates_are_world_readable_but_their_lock_is_private(tmp_path: Path) -> None:
    os.umask(0o077)
    made = template_store.TemplateStore(tmp_path / "templates")
    with made.building(lambda: None):
        assert mode(made.folder / template_store.LOCK) == 0o600
    with made.incoming() as incoming:
        for name in template_client.FILES:
            (incoming / name).write_text(name)
        record: Any = template_store.Template(
            "k", "d", "q", "tcg", 1, 512, template_store.file_sums(incoming), 0.0, 1.0, 2.0
        )
        made.add(incoming, record)
    place = made.place("k")
    names = (*template_client.FILES, template_store.RECORD)
    assert {name: mode(place / name) for name in names} == dict.fromkeys(names, 0o644)
    made.note(template_store.Build("k", "d", 0.0, "it boots"))
    assert mode(made.folder / template_store.BUILD) == 0o644


def test_sealed_memory_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(b"as it is")
    descriptor = template.sealed(tmp_path / "memory")
    try:
        for change in (
            lambda: os.pwrite(descriptor, b"x", 0),
            lambda: os.ftruncate(descriptor, 1),
            lambda: os.ftruncate(descriptor, 100),
        ):
            with pytest.raises(PermissionError):
                change()
        assert not os.get_inheritable(descriptor)
        with pytest.raises(PermissionError):
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    finally:
        os.close(descriptor)


def test_permission_file_is_written_atomically(host: Host) -> None:
    deployment_slice.permit(host.paths, host.systemd, FIRST)
    assert host.paths.permission.read_text() == FIRST
    assert [
        path.name for path in host.paths.permission.parent.iterdir() if path.name[0] == "."
    ] == []


def test_busy_file_has_the_complete_name_of_the_holder(tmp_path: Path) -> None:
    paths = Paths.below(tmp_path)
    with verb_lock.lock_host(paths, "a verb with a long name, such as database restore"):
        pass
    with verb_lock.lock_host(paths, "it"):
        assert paths.busy.read_text() == f"it, pid {os.getpid()}"
