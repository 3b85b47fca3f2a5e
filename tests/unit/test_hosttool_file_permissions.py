"""Write permissions on files that root trusts: those of others are found and removed."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from polydev.hosttool.errors import HostError
from polydev.hosttool.file_permissions import ProtectedTree, find, mend, trees
from polydev.hosttool.paths import Paths

OTHER = 4242


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder as after a deployment: owned by root and readable by others."""
    top = tmp_path / "tree"
    (top / "inner").mkdir(parents=True)
    (top / "inner/file").write_text("trusted\n")
    (top / "shared").mkdir()
    (top / "shared").chmod(0o775)  # by root's own group
    (top / "elsewhere").symlink_to("/nowhere")
    return top


def test_tree_of_root_has_no_findings(tree: Path) -> None:
    assert find((ProtectedTree(tree), ProtectedTree(tree / "missing"))) == []
    assert mend((ProtectedTree(tree), ProtectedTree(tree / "missing"))) == {"mended": []}


@pytest.mark.parametrize("name", ["", "inner", "inner/file"])
@pytest.mark.parametrize(
    ("mode", "owner", "group", "said"),
    [
        (0o777, 0, 0, "mode 777 of 0:0"),
        (0o602, 0, 0, "mode 602 of 0:0"),
        (0o4757, 0, 0, "mode 4757 of 0:0"),
        (0o775, 0, OTHER, f"mode 775 of 0:{OTHER}"),
        (0o755, OTHER, 0, f"mode 755 of {OTHER}:0"),
    ],
)
def test_files_writable_by_others_are_found_and_mended(
    tree: Path, name: str, mode: int, owner: int, group: int, said: str
) -> None:
    path = tree / name
    os.chown(path, owner, group)
    path.chmod(mode)
    assert find((ProtectedTree(tree),)) == [f"{path}: {said}"]
    assert mend((ProtectedTree(tree),)) == {"mended": [str(path)]}
    assert find((ProtectedTree(tree),)) == []
    assert path.stat().st_uid == 0
    assert path.stat().st_mode & 0o022 == 0


def test_read_only_group_is_allowed(tree: Path) -> None:
    os.chown(tree / "inner/file", 0, OTHER)
    (tree / "inner/file").chmod(0o640)
    assert find((ProtectedTree(tree),)) == []


def test_world_writable_socket_must_belong_to_root(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("asked.sock")
    place = tree / "asked.sock"
    place.chmod(0o666)
    assert find((ProtectedTree(tree),)) == []
    os.chown(place, OTHER, 0)
    assert find((ProtectedTree(tree),)) == [f"{place}: mode 666 of {OTHER}:0"]


def test_only_a_link_at_the_top_is_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    os.chown(outside, OTHER, OTHER)
    (tree / "inner/link").symlink_to(outside)
    current = tmp_path / "current"
    current.symlink_to(tree)
    (tree / "inner").chmod(0o777)
    assert find((ProtectedTree(current),)) == [f"{tree}/inner: mode 777 of 0:0"]
    mend((ProtectedTree(current),))
    assert outside.stat().st_uid == OTHER


def test_tree_may_have_another_trusted_owner(tree: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(tree, nobody, 0)
    os.chown(tree / "inner", OTHER, 0)
    assert find((ProtectedTree(tree, "nobody"),)) == [f"{tree}/inner: mode 755 of {OTHER}:0"]
    mend((ProtectedTree(tree, "nobody"),))
    assert {path.stat().st_uid for path in (tree, tree / "inner")} == {nobody}
    assert find((ProtectedTree(tree, "no-such-user"),)) != []


@pytest.mark.parametrize(
    ("mode", "owner", "wanted"),
    [
        (0o666, 4711, 0o600),
        (0o640, 4711, 0o600),
        (0o604, 4711, 0o600),
        (0o400, 4711, 0o600),
        (0o4755, 4711, 0o700),
        (0o600, 0, 0o600),
        (0o600, OTHER, 0o600),
    ],
)
def test_private_files_are_limited_to_their_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, wanted: int
) -> None:
    monkeypatch.setattr(ProtectedTree, "owner_id", 4711)
    home = tmp_path / "home"
    (home / "alerts").mkdir(parents=True)
    (home / "alerts").chmod(0o700)
    for name in ("database", "alerts/1"):
        (home / name).touch()
        (home / name).chmod(0o600)
    for path in (home / "alerts", *home.rglob("*")):
        os.chown(path, 4711, 0)
    private = (ProtectedTree(home, "somebody", is_private=True),)
    assert find(private) == []
    os.chown(home / "alerts/1", owner, 0)
    (home / "alerts/1").chmod(mode)
    assert find(private) == [f"{home}/alerts/1: mode {mode:03o} of {owner}:0"]
    mend(private)
    assert find(private) == []
    state = (home / "alerts/1").stat()
    assert (state.st_mode & 0o7777, state.st_uid) == (wanted, 4711)


def test_private_folders_are_limited_to_their_owner(tmp_path: Path) -> None:
    (tmp_path / "home/inner").mkdir(parents=True)
    (tmp_path / "home/inner").chmod(0o755)
    private = (ProtectedTree(tmp_path / "home", is_private=True),)
    assert find(private) == [f"{tmp_path}/home/inner: mode 755 of 0:0"]
    mend(private)
    assert find(private) == []


def test_all_trees_are_below_the_root_of_the_host(tmp_path: Path) -> None:
    """The checks of a host below a folder do not read the machine's own files."""
    paths = Paths.below(tmp_path)
    assert {each.path.is_relative_to(tmp_path) for each in trees(paths)} == {True}
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/ssh").chmod(0o777)
    (paths.controller_home / "controller.sqlite3").parent.mkdir(parents=True)
    (paths.controller_home / "controller.sqlite3").touch(0o600)
    (paths.controller_home / "controller.sqlite3").chmod(0o666)
    assert [line.partition(":")[0] for line in find(trees(paths))] == [
        f"{tmp_path}/etc/ssh",
        f"{tmp_path}/var/lib/master-controller/controller.sqlite3",
    ]


def test_removed_files_are_skipped_and_failures_reported(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("inner", "inner/file"):
        (tree / name).chmod(0o777)
    lstat = Path.lstat

    def gone(path: Path) -> os.stat_result:
        if path.name == "file":
            raise FileNotFoundError
        return lstat(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", gone)
        assert [line.partition(":")[0] for line in find((ProtectedTree(tree),))] == [
            str(tree / "inner")
        ]
    chmod = Path.chmod

    def vanish(path: Path, mode: int) -> None:
        if path.name == "file":
            raise FileNotFoundError
        chmod(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", vanish)
        assert mend((ProtectedTree(tree),)) == {"mended": [str(tree / "inner")]}

    def refuse(path: Path, _: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", refuse)
        with pytest.raises(HostError, match="inner/file: Operation not permitted") as told:
            mend((ProtectedTree(tree),))
    assert told.value.code == "permissions-wrong"
