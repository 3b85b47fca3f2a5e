"""Guests' paths: where they lead in a tree, compared with the kernel; which paths collide."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import struct
from pathlib import Path

import pytest

from polydev.image import sandbox_program
from polydev.image.guest_paths import (
    FOLDER,
    LayerConflict,
    Node,
    follow,
    in_tree,
    landings,
    on_disk,
)
from polydev.image.reproducible import scrub
from polydev.image.tree_merge import folder_inside, link_or_copy, matches, remove_inside

OPENAT2, RESOLVE_IN_ROOT = 437, 0x10
LINKS = {
    "abs": "/usr/lib",
    "var/run": "/run",
    "var/up": "../../../../../usr",
    "var/here": ".",
    "usr/lib/back": "../../var/run",
    "chain": "var/up/lib/back/",
    "loop": "loop",
    "var/ring": "../usr/ring",
    "usr/ring": "../var/ring",
    "dangling": "/srv/none",
    "file": "/etc/plain",
    "root": "/",
}
PARTS = (
    *("abs", "chain", "dangling", "etc", "file", "lib", "loop", "plain", "ring", "root", "run"),
    *("up", "usr", "var", "here", "back", "..", ".", ""),
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for folder in ("usr/lib", "var", "etc"):
        (tree / folder).mkdir(parents=True)
    (tree / "etc/plain").write_text("plain")
    (tree / "run").mkdir()
    for path, target in LINKS.items():
        (tree / path).symlink_to(target)
    return tree


def kernel_follow(tree: Path, path: str) -> str | int:
    """Return where the kernel follows a path in a chroot of the tree, or its error."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("QQQ", os.O_PATH, 0, RESOLVE_IN_ROOT)
    root = os.open(tree, os.O_PATH)
    try:
        while (found := libc.syscall(OPENAT2, root, os.fsencode(path), how, len(how))) < 0:
            # EAGAIN: something was renamed or mounted meanwhile, anywhere on the machine.
            if (error := ctypes.get_errno()) != errno.EAGAIN:
                return error
        try:
            return os.path.relpath(os.readlink(f"/proc/self/fd/{found}"), tree)
        finally:
            os.close(found)
    finally:
        os.close(root)


def test_follow_agrees_with_the_kernel(tree: Path) -> None:
    at = on_disk(tree)
    reached = 0
    for parts in itertools.product(PARTS, repeat=3):
        path = "/" + "/".join(parts)
        expected = kernel_follow(tree, path)
        if expected in (errno.ENOENT, errno.ENOTDIR):
            continue  # the kernel does not tell the target of a missing path
        if expected == errno.ELOOP:
            with pytest.raises(OSError, match="Too many levels"):
                follow(path, at)
            continue
        reached += 1
        assert (follow(path, at) or ".") == expected, path
    assert reached > 300


@pytest.mark.parametrize(
    ("path", "leads", "itself"),
    [
        ("/var/run/x", "run/x", "run/x"),
        ("/var/run", "run", "var/run"),
        ("/var/run/", "run", "var/run"),
        ("/dangling/a", "srv/none/a", "srv/none/a"),
        ("/not/../../there", "there", "there"),
        ("/", "", ""),
    ],
)
def test_last_link_of_a_path_is_followed_or_kept(
    tree: Path, path: str, leads: str, itself: str
) -> None:
    assert follow(path, on_disk(tree)) == leads
    assert in_tree(tree, path, last=False) == tree / itself


USR = {"usr": FOLDER, "usr/lib": FOLDER, "lib": Node("link", "usr/lib"), "run": FOLDER}
BELOW = {
    **USR,
    "var": FOLDER,
    "var/run": Node("link", "/run"),
    "var/lock": Node("link", "/run/lock"),
    "etc": FOLDER,
    "etc/plain": Node("file"),
    "etc/alias": Node("link", "plain"),
    "etc/loop": Node("link", "loop"),
    "etc/below": Node("link", "plain/below"),
    "devices": Node("link", "dev"),
    "dev": FOLDER,
}


def upper(**nodes: str) -> dict[str, Node]:
    """Return a tree of nodes by kind or `-> target`, with their parent folders."""
    found: dict[str, Node] = {}
    for path, kind in nodes.items():
        parts = path.split("/")
        for count in range(1, len(parts)):
            found["/".join(parts[:count])] = FOLDER
        found[path] = Node("link", kind[3:]) if kind.startswith("-> ") else Node(kind)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("nodes", "moved"),
    [
        ({"lib/a": "file"}, {"lib": "usr/lib", "lib/a": "usr/lib/a"}),
        ({"var/run/a": "file"}, {"var/run": "run", "var/run/a": "run/a"}),
        ({"var/lock/a/b": "file"}, {"var/lock": "run/lock", "var/lock/a/b": "run/lock/a/b"}),
        ({"usr/lib/a": "file", "etc/new": "-> plain"}, {}),
        # A file or a link takes the place of a file or a link.
        ({"etc/plain": "-> other", "etc/alias": "file", "etc/loop": "file"}, {}),
        # A link with another spelling of the same target.
        ({"lib": "-> /usr/lib", "var/run": "-> ../run"}, {}),
        ({"lib": "gone", "etc": "gone"}, {}),
        # The layer itself adds the missing paths.
        ({"var/lock/a": "file", "run/lock/b": "file"}, {"var/lock/a": "run/lock/a"}),
    ],
)
def test_landings_follow_links_of_the_tree_below(
    nodes: dict[str, str], moved: dict[str, str]
) -> None:
    tree = upper(**nodes)
    landed = landings(tree, BELOW.get)
    assert landed.keys() - {""} == tree.keys()
    assert {path: landed[path] for path in moved} == moved
    unmoved = tree.keys() - {path for path in tree for top in moved if path.startswith(top)}
    assert all(landed[path] == path for path in unmoved - {"var/lock"})


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"lib": "file"}, "/lib is a file in the layer, and in the image a link to usr/lib"),
        ({"lib": "-> other"}, "/lib is a link to other in the layer, and in the image a link to"),
        ({"etc": "file"}, "/etc is a file in the layer, and in the image a folder"),
        ({"etc": "-> usr"}, "/etc is a link to usr in the layer, and in the image a folder"),
        ({"etc/plain/a": "file"}, "/etc/plain is a folder in the layer, and in the image a file"),
        ({"etc/alias/a": "file"}, "/etc/alias is a folder in the layer, and in the image a link"),
        ({"etc/loop/a": "file"}, "/etc/loop is a folder in the layer, and in the image a link"),
        ({"etc/below/a": "file"}, "/etc/below is a folder in the layer, and in the image a link"),
        ({"var/run": "file"}, "/var/run is a file in the layer"),
        ({"lib/a": "file", "usr/lib/a": "file"}, "/lib/a and /usr/lib/a of the layer are both"),
        ({"dev/null": "file"}, "/dev/null lies where the guest mounts /dev"),
        ({"devices/a": "file"}, "/devices/a (/dev/a in the image) lies where the guest mounts"),
    ],
)
def test_changed_kind_of_a_path_is_a_layer_conflict(nodes: dict[str, str], words: str) -> None:
    with pytest.raises(LayerConflict) as caught:
        landings(upper(**nodes), BELOW.get)
    assert words in str(caught.value)


def test_paths_seen_by_the_layer_are_replaced() -> None:
    nodes = upper(**{"lib/a": "file", "etc": "file"})
    landed = landings(nodes, BELOW.get, seen=lambda path: True)
    assert landed == {path: path for path in ("", *nodes)}


@pytest.fixture
def machine(tmp_path: Path, tree: Path) -> Path:
    """A folder outside of the tree, the target of absolute links in the tree."""
    machine = tmp_path / "machine"
    machine.mkdir()
    (machine / "canary.log").write_text("alive")
    for name in ("out", "var/log"):
        (tree / name).symlink_to(machine)
    return machine


def test_removal_never_leaves_the_tree(tree: Path, machine: Path) -> None:
    scrub(tree)
    for pattern in ("out/*", "*/canary.log", "**/canary.log", "var/log/**", "*/*/canary.log"):
        assert list(matches(tree, pattern)) == []
    remove_inside(tree, "/out/canary.log")
    assert list(machine.iterdir()) == [machine / "canary.log"]
    remove_inside(tree, "/out")
    assert not (tree / "out").is_symlink()
    assert list(machine.iterdir()) == [machine / "canary.log"]


def test_on_disk_returns_the_kind_of_a_path(tree: Path) -> None:
    paths = ("etc", "etc/plain", "abs", "none", "etc/plain/x")
    found = [FOLDER, Node("file"), Node("link", "/usr/lib"), None, None]
    assert [on_disk(tree)(path) for path in paths] == found


def test_folder_is_made_inside_the_tree(tree: Path, machine: Path) -> None:
    made = folder_inside(tree, "/out/new")
    assert made == tree / str(machine).lstrip("/") / "new"
    assert made.is_dir()
    with pytest.raises(LayerConflict, match="/file is no folder"):
        folder_inside(tree, "/file")


def test_sandbox_program_runs_known_actions_only(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sandbox_program.main(["folder", str(tree), "/new", "/etc"]) == 0
    assert capsys.readouterr().out == f"{tree}/new\n{tree}/etc\n"
    assert (
        sandbox_program.main(["fit", str(tree), str(tmp_path / "none"), str(tmp_path / "to")]) == 1
    )
    assert capsys.readouterr().err.startswith("refused: ")
    with pytest.raises(ValueError, match="erase"):
        sandbox_program.main(["erase", str(tree), "/etc"])
    assert (tree / "etc/plain").exists()


@pytest.mark.parametrize("path", ["/", "/root", "/dev/x", "/proc"])
def test_root_and_mounts_are_not_removed(tree: Path, path: str) -> None:
    (tree / "dev").mkdir()
    if path == "/root":
        remove_inside(tree, path)  # this removes the link, not its target
        assert (tree / "etc/plain").exists()
        return
    with pytest.raises(LayerConflict, match="cannot be removed"):
        remove_inside(tree, path)


def test_globs_agree_with_pathlib_without_links(tmp_path: Path) -> None:
    for name in ("a/b/c.py", "a/d.py", "e.py", "a/.hidden", "f[1]/g"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for pattern in (
        "*",
        "**/*.py",
        "a/*",
        "*/*",
        "**/*",
        "a/**/c.py",
        "**",
        "*.py",
        "e.p?",
        "[a]/*",
    ):
        expected = sorted(set(tmp_path.glob(pattern)) - {tmp_path})
        if pattern == "**":
            expected = sorted(path for path in tmp_path.rglob("*"))
        assert list(matches(tmp_path, pattern)) == expected, pattern


def test_link_or_copy_copies_across_filesystems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(*_: object, **_how: object) -> None:
        raise OSError(errno.EXDEV, "another filesystem")

    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("text")
    file.chmod(0o4755)
    link.symlink_to("nowhere")
    link_or_copy(file, tmp_path / "second")
    assert file.samefile(tmp_path / "second")
    with pytest.raises(FileExistsError):
        link_or_copy(file, tmp_path / "second")
    monkeypatch.setattr(os, "link", elsewhere)
    for each in (file, link):
        link_or_copy(each, tmp_path / f"{each.name} copied")
    copy = tmp_path / "file copied"
    assert not file.samefile(copy)
    assert (copy.read_text(), copy.stat().st_mode) == ("text", file.stat().st_mode)
    assert os.readlink(tmp_path / "link copied") == "nowhere"
