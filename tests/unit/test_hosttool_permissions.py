"""Rights to write to what root trusts: others' are found and taken away."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import pytest

from polydev.hosttool.permissions import Tree, find, mend

OTHER = 4242


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder as a deployment leaves it: root's, which others may read."""
    top = tmp_path / "tree"
    (top / "inner").mkdir(parents=True)
    (top / "inner/file").write_text("trusted\n")
    (top / "shared").mkdir()
    (top / "shared").chmod(0o775)  # by root's own group
    (top / "elsewhere").symlink_to("/nowhere")
    return top


def test_what_is_roots_is_as_it_should_be(tree: Path) -> None:
    assert find((Tree(tree), Tree(tree / "missing"))) == []
    assert mend((Tree(tree), Tree(tree / "missing"))) == {"mended": []}


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
def test_what_others_may_write_to_is_named_and_set_back(
    tree: Path, name: str, mode: int, owner: int, group: int, said: str
) -> None:
    path = tree / name
    os.chown(path, owner, group)
    path.chmod(mode)
    assert find((Tree(tree),)) == [f"{path}: {said}"]
    assert mend((Tree(tree),)) == {"mended": [str(path)]}
    assert find((Tree(tree),)) == []
    assert path.stat().st_uid == 0
    assert path.stat().st_mode & 0o022 == 0


def test_a_group_that_only_reads_stays(tree: Path) -> None:
    os.chown(tree / "inner/file", 0, OTHER)
    (tree / "inner/file").chmod(0o640)
    assert find((Tree(tree),)) == []


def test_whom_all_may_ask_listens_for_root(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("asked.sock")
    place = tree / "asked.sock"
    place.chmod(0o666)
    assert find((Tree(tree),)) == []
    os.chown(place, OTHER, 0)
    assert find((Tree(tree),)) == [f"{place}: mode 666 of {OTHER}:0"]


def test_a_link_at_the_top_is_followed_and_none_below(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("of somebody else")
    os.chown(outside, OTHER, OTHER)
    (tree / "inner/link").symlink_to(outside)
    current = tmp_path / "current"
    current.symlink_to(tree)
    (tree / "inner").chmod(0o777)
    assert find((Tree(current),)) == [f"{tree}/inner: mode 777 of 0:0"]
    mend((Tree(current),))
    assert outside.stat().st_uid == OTHER


def test_another_owner_may_be_trusted_in_one_tree(tree: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(tree, nobody, 0)
    os.chown(tree / "inner", OTHER, 0)
    assert find((Tree(tree, "nobody"),)) == [f"{tree}/inner: mode 755 of {OTHER}:0"]
    mend((Tree(tree, "nobody"),))
    assert {path.stat().st_uid for path in (tree, tree / "inner")} == {nobody}
    assert find((Tree(tree, "no-such-user"),)) != []
