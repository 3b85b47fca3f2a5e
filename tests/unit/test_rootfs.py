"""Commands that make the root filesystem: its size, mkfs's arguments, debugfs's commands."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.image.rootfs import (
    BLOCK_BYTES,
    INODE_BYTES,
    MIB,
    SPARE_INODES,
    filesystem_bytes,
    mkfs_argv,
    time_commands,
)

IDENTITY = uuid.UUID(int=7)


@given(st.lists(st.integers(0, 10**9), max_size=50), st.integers(0, 4096))
def test_size_covers_content_inodes_and_free_space(sizes: list[int], free_space_mib: int) -> None:
    size = filesystem_bytes(sizes, free_space_mib)
    blocks = sum(-(-each // BLOCK_BYTES) for each in sizes)
    inodes = (len(sizes) + SPARE_INODES) * INODE_BYTES
    assert size >= blocks * BLOCK_BYTES + inodes + free_space_mib * MIB
    assert size % (4 * MIB) == 0


def test_size_grows_with_free_space_and_content() -> None:
    empty = filesystem_bytes([], 0)
    assert filesystem_bytes([], 64) - empty == 64 * MIB
    assert filesystem_bytes([100 * MIB], 0) - empty >= 100 * MIB
    # A file of one byte takes a block.
    assert filesystem_bytes([1] * 100_000, 0) >= 100_000 * (BLOCK_BYTES + INODE_BYTES)


def option(argv: list[str], name: str) -> str:
    return argv[argv.index(name) + 1]


def test_mkfs_gets_every_value_it_would_choose() -> None:
    argv = mkfs_argv(Path("/out/rootfs.ext4"), Path("/tree"), 1000, IDENTITY)
    assert argv[0] == "mkfs.ext4"
    assert argv[-3:] == ["-d", "/tree", "/out/rootfs.ext4"]
    assert option(argv, "-U") == str(IDENTITY)
    extended = option(argv, "-E").split(",")
    assert {f"hash_seed={IDENTITY}", "lazy_itable_init=0", "root_owner=0:0"} <= set(extended)
    assert int(option(argv, "-N")) > 1000
    assert option(argv, "-m") == "0"


@pytest.mark.parametrize("feature", ["has_journal", "metadata_csum"])
def test_filesystem_has_neither_journal_nor_checksums(feature: str) -> None:
    argv = mkfs_argv(Path("/out"), Path("/tree"), 1, IDENTITY)
    assert f"^{feature}" in option(argv, "-O").split(",")


def test_time_commands_set_ctime_and_atime_of_every_inode() -> None:
    assert time_commands(11, 12, 5).splitlines() == [
        "set_inode_field <2> ctime @5",
        "set_inode_field <2> atime @5",
        "set_inode_field <11> ctime @5",
        "set_inode_field <11> atime @5",
        "set_inode_field <12> ctime @5",
        "set_inode_field <12> atime @5",
    ]
