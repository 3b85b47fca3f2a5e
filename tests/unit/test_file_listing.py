"""A layer's tree in a temporary folder, listed; listings merged as overlayfs does."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from polydev.file_checksum import file_sha256
from polydev.image.file_listing import (
    OPAQUE_XATTR,
    list_tree,
    merge_listings,
    read_listing,
    write_listing,
)
from polydev.image.reproducible import clamp_times

EPOCH = 1_000_000_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes a device and a trusted attribute")


def fill(tree: Path, *names: str) -> Path:
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    return tree


def entry(path: str, kind: str = "file", **more: Any) -> dict[str, Any]:
    return {"path": path, "type": kind, "size": 1, **more}


def paths(*layers: list[dict[str, Any]]) -> list[str]:
    return [each["path"] for each in merge_listings(layers)]


def test_listing_has_all_attributes_of_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "etc/tool")
    (tmp_path / "etc/tool").chmod(0o4755)
    (tmp_path / "etc").chmod(0o751)
    (tmp_path / "etc/link").symlink_to("tool")
    clamp_times(tmp_path, EPOCH)
    owner = {"uid": os.getuid(), "gid": os.getgid(), "mtime": EPOCH}
    digest = hashlib.sha256(b"etc/tool").hexdigest()
    assert list(list_tree(tmp_path)) == [
        {"path": "/etc", "type": "dir", "mode": 0o751, "size": 0, **owner},
        {
            "path": "/etc/link",
            "type": "symlink",
            "mode": 0o777,
            "size": 0,
            "target": "tool",
            **owner,
        },
        {
            "path": "/etc/tool",
            "type": "file",
            "mode": 0o4755,
            "size": 8,
            "sha256": digest,
            **owner,
        },
    ]


def test_hard_links_are_listed_as_files_with_equal_content(tmp_path: Path) -> None:
    fill(tmp_path, "a")
    os.link(tmp_path / "a", tmp_path / "b")
    first, second = list_tree(tmp_path)
    assert first["sha256"] == second["sha256"]


@needs_root
def test_whiteouts_and_opaque_folders_are_listed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    try:
        os.mknod(tmp_path / "gone", 0o020644, os.makedev(0, 0))
        os.setxattr(tmp_path / "folder", OPAQUE_XATTR, b"y")
    except OSError as error:
        pytest.skip(f"this file system or container does not allow it: {error}")
    listed = {each["path"]: each for each in list_tree(tmp_path)}
    assert listed["/gone"]["type"] == "whiteout"
    assert listed["/folder"]["opaque"] is True


def test_listing_is_byte_identical_when_written_again(tmp_path: Path) -> None:
    entries = [entry("/a", mode=1), entry("/b")]
    write_listing(entries, tmp_path / "one")
    # The order of keys does not matter either.
    write_listing([dict(reversed(each.items())) for each in entries], tmp_path / "two.gz")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two.gz").read_bytes()
    assert read_listing(tmp_path / "one") == entries


def test_file_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / os.fsdecode(b"caf\xe9")).touch()
    listed = list(list_tree(tree))
    write_listing(listed, tmp_path / "listing")
    assert read_listing(tmp_path / "listing") == listed


def test_upper_layers_add_and_replace() -> None:
    lower = [entry("/etc", "dir"), entry("/etc/a", size=1), entry("/etc/b", size=1)]
    upper = [entry("/etc", "dir", mode=0o700), entry("/etc/a", size=2), entry("/etc/c", size=3)]
    merged = merge_listings([lower, upper])
    assert [(each["path"], each["size"]) for each in merged] == [
        ("/etc", 1),
        ("/etc/a", 2),
        ("/etc/b", 1),
        ("/etc/c", 3),
    ]
    assert merged[0]["mode"] == 0o700


def test_whiteout_hides_a_file_and_a_whole_folder() -> None:
    lower = [entry("/a"), entry("/d", "dir"), entry("/d/x", "dir"), entry("/d/x/y"), entry("/d.e")]
    assert paths(lower, [entry("/a", "whiteout")]) == ["/d", "/d.e", "/d/x", "/d/x/y"]
    assert paths(lower, [entry("/d", "whiteout")]) == ["/a", "/d.e"]


def test_whiteout_without_a_file_is_dropped() -> None:
    assert paths([entry("/a")], [entry("/b", "whiteout")]) == ["/a"]


def test_file_above_its_whiteout_is_listed() -> None:
    assert paths([entry("/a")], [entry("/a", "whiteout")], [entry("/a")]) == ["/a"]


def test_opaque_folder_hides_lower_files_only() -> None:
    lower = [entry("/d", "dir"), entry("/d/old"), entry("/dd")]
    upper = [entry("/d", "dir", opaque=True), entry("/d/new")]
    merged = merge_listings([lower, upper])
    assert [each["path"] for each in merged] == ["/d", "/d/new", "/dd"]
    assert all("opaque" not in each for each in merged)


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_folder_replaced_by_a_file_hides_its_files(kind: str) -> None:
    assert paths([entry("/d", "dir"), entry("/d/x")], [entry("/d", kind)]) == ["/d"]


def test_file_replaced_by_a_folder() -> None:
    assert paths([entry("/d")], [entry("/d", "dir"), entry("/d/x")]) == ["/d", "/d/x"]


def test_merged_listing_is_sorted_by_path() -> None:
    lower = [entry("/a", "dir"), entry("/a-b"), entry("/a/c")]
    assert paths(lower) == ["/a", "/a-b", "/a/c"]


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (0, {}),
        (3, {0: b"abc"}),
        (5_000_003, {}),
        (5_000_003, {0: b"x" * 5000, 2_000_000: b"y" * 9}),
    ],
    ids=["empty", "short", "one hole", "data between holes"],
)
def test_holes_are_hashed_as_zeros(tmp_path: Path, size: int, data: dict[int, bytes]) -> None:
    file = tmp_path / "file"
    with file.open("wb") as stream:
        stream.truncate(size)
        for place, content in data.items():
            stream.seek(place)
            stream.write(content)
    assert file_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
