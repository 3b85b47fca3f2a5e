"""Comparing two images: records, then listings of files."""

from __future__ import annotations

import gzip
import json
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.errors import ImageError
from polydev.image.file_diff import tree_diff
from polydev.image_diff import (
    FileChange,
    ImageDiff,
    LayerChange,
    PackageChange,
    SettingChange,
    TreeDiff,
    diff,
)
from polydev.image_layout import ROOTFS, TREE
from polydev.image_record import FileEntry, ImageRecord, LayerEntry, Package

pytestmark = pytest.mark.unit


def record(
    digest: str,
    packages: list[Package] | None = None,
    layers: dict[str, str] | None = None,
    size_bytes: int = 0,
) -> ImageRecord:
    return ImageRecord(
        digest=digest * 64,
        recipe="golden",
        created_at=datetime(2025, 1, 1, tzinfo=timezone.utc),
        source_date_epoch=0,
        kernel_version="6.1.0",
        files={
            ROOTFS: FileEntry(sha256="", size_bytes=1 << 30, allocated_bytes=size_bytes * 2),
        },
        content_bytes=size_bytes,
        layers=[LayerEntry(name=n, id=i, seconds=None) for n, i in (layers or {}).items()],
        packages=packages or [],
        builder={},
    )


def package(name: str, version: str, kind: Literal["deb", "npm"] = "deb") -> Package:
    return Package(kind=kind, name=name, version=version)


def changed(name: str, old: str | None, new: str | None, kind: str = "deb") -> PackageChange:
    return PackageChange(kind=kind, name=name, old=old, new=new)


def listing(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / TREE, "wt", encoding="utf-8") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in rows)
    return folder


def row(path: str, **fields: Any) -> dict[str, Any]:
    return {"path": path, "type": "file", "mode": 0o644, "uid": 0, "gid": 0, **fields}


def test_same_image_has_no_differences() -> None:
    same = record("a", [package("curl", "1")], {"base": "x"}, 5)
    found = diff(same, same)
    assert found.packages_added == found.packages_removed == found.packages_changed == []
    assert (found.content_change_bytes, found.layers_changed, found.files) == (0, [], None)


def test_packages_are_compared_by_name_and_manager() -> None:
    found = diff(
        record("a", [package("curl", "1"), package("vim", "9"), package("pm2", "5", "npm")]),
        record("b", [package("pm2", "5", "deb"), package("curl", "2"), package("pm2", "5", "npm")]),
    )
    assert found.packages_added == [changed("pm2", None, "5")]
    assert found.packages_removed == [changed("vim", "9", None)]
    assert found.packages_changed == [changed("curl", "1", "2")]
    assert (found.old, found.new) == ("a" * 64, "b" * 64)


def test_package_in_several_versions_is_compared() -> None:
    found = diff(
        record("a", [package("ws", "7", "npm"), package("ws", "8", "npm")]),
        record("b", [package("ws", "8", "npm"), package("ws", "9", "npm")]),
    )
    assert found.packages_changed == [changed("ws", "7", "9", "npm")]
    grown = diff(record("a", [package("ws", "8")]), record("b", [package("ws", v) for v in "789"]))
    assert grown.packages_added == [changed("ws", None, "7"), changed("ws", None, "9")]


def test_size_changes_are_signed() -> None:
    found = diff(record("a", size_bytes=10), record("b", size_bytes=7))
    assert (found.content_change_bytes, found.rootfs_allocated_change_bytes) == (-3, -6)


def test_new_removed_and_changed_layers_are_listed() -> None:
    found = diff(
        record("a", layers={"base": "1", "node": "2", "old": "3"}),
        record("b", layers={"base": "1", "node": "9", "tools": "4"}),
    )
    assert found.layers_changed == [
        LayerChange(name="node", old="2", new="9"),
        LayerChange(name="tools", old=None, new="4"),
        LayerChange(name="old", old="3", new=None),
    ]


def test_tree_diff_lists_added_removed_and_changed_files(tmp_path: Path) -> None:
    old = listing(
        tmp_path / "old",
        [row("/a", sha256="1"), row("/b", sha256="1"), row("/c", sha256="1"), row("/z")],
    )
    new = listing(
        tmp_path / "new",
        [
            row("/a", sha256="1"),
            row("/aa"),
            row("/b", sha256="2", mode=0o755),
            row("/c", type="link", target="/a"),
            row("/zz"),
        ],
    )
    found = tree_diff(old, new)
    assert found == TreeDiff(
        added=["/aa", "/zz"],
        removed=["/z"],
        changed=[
            FileChange(path="/b", fields=["mode", "sha256"]),
            FileChange(path="/c", fields=["sha256", "target", "type"]),
        ],
    )
    assert diff(record("a"), record("b"), found).files == found


def test_changed_time_alone_is_no_change(tmp_path: Path) -> None:
    old = listing(tmp_path / "old", [row("/a", mtime=1), row("/b", mtime=1, uid=0)])
    new = listing(tmp_path / "new", [row("/a", mtime=2), row("/b", mtime=2, uid=5)])
    found = tree_diff(old, new)
    assert found == TreeDiff(added=[], removed=[], changed=[FileChange(path="/b", fields=["uid"])])


def test_path_that_is_not_utf_8_is_escaped(tmp_path: Path) -> None:
    new = listing(tmp_path / "new", [row("/caf\udce9")])
    found = tree_diff(listing(tmp_path / "old", []), new)
    assert found is not None
    assert found.added == ["/caf\\xe9"]


@pytest.mark.parametrize("missing", ["old", "new"])
def test_missing_listing_gives_no_file_diff(tmp_path: Path, missing: str) -> None:
    for name in ("old", "new"):
        listing(tmp_path / name, [])
    (tmp_path / missing / TREE).unlink()
    assert tree_diff(tmp_path / "old", tmp_path / "new") is None


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([row("/b"), row("/a")], 2),
        ([row("/a"), row("/a")], 2),
        ([row("/a"), {"mode": 1}], 2),
        ([[]], 1),
    ],
    ids=["order", "twice", "no path", "no object"],
)
def test_malformed_listing_is_refused_with_file_and_line(
    tmp_path: Path, rows: list[Any], line: int
) -> None:
    old, new = listing(tmp_path / "old", [row("/a")]), listing(tmp_path / "new", rows)
    with pytest.raises(ImageError, match=f"{new / TREE}, line {line}: "):
        tree_diff(old, new)


@pytest.mark.parametrize("damage", ["text", "cut", "flipped"])
def test_damaged_listing_is_refused_with_its_file(tmp_path: Path, damage: str) -> None:
    folder = listing(tmp_path / "old", [row(f"/{number:03}") for number in range(200)])
    data = (folder / TREE).read_bytes()
    (folder / TREE).write_bytes(
        {
            "text": b"{}",
            "cut": data[:-20],
            "flipped": data[:40] + bytes([data[40] ^ 0xFF]) + data[41:],
        }[damage]
    )
    with pytest.raises(ImageError, match=str(folder / TREE)):
        tree_diff(folder, folder)


TREES = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.integers(0, 2))


@given(TREES, TREES)
def test_tree_diff_agrees_with_sets(old: dict[str, int], new: dict[str, int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = tree_diff(
            listing(Path(folder) / "old", [row(p, size=old[p]) for p in sorted(old)]),
            listing(Path(folder) / "new", [row(p, size=new[p]) for p in sorted(new)]),
        )
    assert found is not None
    assert found.added == sorted(new.keys() - old.keys())
    assert found.removed == sorted(old.keys() - new.keys())
    assert [each.path for each in found.changed] == sorted(
        path for path in old.keys() & new.keys() if old[path] != new[path]
    )


def test_text_has_a_line_for_each_change() -> None:
    found = ImageDiff(
        old="a" * 64,
        new="b" * 64,
        packages_added=[PackageChange(kind="deb", name="new", old=None, new="1")],
        packages_removed=[PackageChange(kind="deb", name="old", old="1", new=None)],
        packages_changed=[PackageChange(kind="npm", name="both", old="1", new="2")],
        content_change_bytes=-1_500_000,
        rootfs_allocated_change_bytes=0,
        layers_changed=[],
        settings_changed=[SettingChange(name="kernel", old="6.1", new="6.12")],
        files=TreeDiff(
            added=["/a"], removed=["/r"], changed=[FileChange(path="/c", fields=["mode", "sha256"])]
        ),
    )
    assert found.as_text().splitlines() == [
        f"{'a' * 12} → {'b' * 12}",
        "kernel 6.1 → 6.12",
        "+ deb new 1",
        "- deb old 1",
        "~ npm both 1 → 2",
        "+ /a",
        "- /r",
        "~ /c (mode, sha256)",
        "content -1.5 MB",
    ]
