"""Kernel code that needs no kernel: finding the ELF, reading and ordering modules."""

from __future__ import annotations

import lzma
import os
from pathlib import Path
from stat import S_IMODE

import pytest

from polydev.errors import BuildError
from polydev.image import kernel
from polydev.image.kernel import XZ_MAGIC, extract_vmlinux, load_order, parse_modules_dep

ELF = b"\x7fELF" + bytes(range(256)) * 8
SETUP_CODE = b"MZ" + b"\x90" * 510

MODULES_DEP = """\
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/fs/mbcache.ko:
kernel/lib/crc16.ko:
kernel/drivers/char/hw_random/virtio-rng.ko: kernel/drivers/char/hw_random/rng-core.ko
kernel/drivers/char/hw_random/rng-core.ko:
kernel/drivers/net/packed.ko.xz:
"""


def bz_image(*parts: bytes) -> bytes:
    """Return a fake kernel image: unpacking code, packed data, more code."""
    return SETUP_CODE + b"".join(parts) + b"\0" * 64


def test_xz_packed_kernel_is_extracted() -> None:
    assert extract_vmlinux(bz_image(lzma.compress(ELF))) == ELF


def test_xz_data_before_the_kernel_is_skipped() -> None:
    image = bz_image(XZ_MAGIC, b"no xz at all", lzma.compress(b"no ELF"), lzma.compress(ELF))
    assert extract_vmlinux(image) == ELF


@pytest.mark.parametrize(
    "image",
    [
        b"",
        bz_image(ELF),
        bz_image(lzma.compress(b"no ELF")),
        bz_image(lzma.compress(ELF, format=lzma.FORMAT_ALONE)),
    ],
)
def test_image_without_a_packed_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(BuildError, match="no xz-packed ELF kernel"):
        extract_vmlinux(image)


def test_module_names_are_those_of_modprobe() -> None:
    table = parse_modules_dep(MODULES_DEP)
    assert table["virtio_rng"] == (
        "kernel/drivers/char/hw_random/virtio-rng.ko",
        ["kernel/drivers/char/hw_random/rng-core.ko"],
    )
    assert "packed" in table
    assert table["crc16"][1] == []


@pytest.mark.parametrize("name", ["virtio-rng", "virtio_rng"])
def test_dashes_and_underscores_in_module_names_are_equal(name: str) -> None:
    loaded = load_order(parse_modules_dep(MODULES_DEP), [name])
    assert [path.rpartition("/")[2] for path in loaded] == ["rng-core.ko", "virtio-rng.ko"]


def test_load_order_puts_dependencies_first_and_once() -> None:
    loaded = load_order(parse_modules_dep(MODULES_DEP), ["jbd2", "ext4", "crc16", "ext4"])
    assert [path.rpartition("/")[2] for path in loaded] == [
        "jbd2.ko",
        "mbcache.ko",
        "crc16.ko",
        "ext4.ko",
    ]


def test_unknown_module_is_named() -> None:
    with pytest.raises(BuildError, match="no module virtio_disk") as caught:
        load_order(parse_modules_dep(MODULES_DEP), ["ext4", "virtio_disk"])
    assert "kernel.initrd_modules" in str(caught.value.hint)


def test_keep_modules_removes_other_modules_and_empty_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = tmp_path / "usr/lib/modules/6.1"
    paths = ("kernel/fs/ext4/ext4.ko", "kernel/fs/btrfs/btrfs.ko.xz", "kernel/lib/crc16.ko")
    for path in paths:
        (release / path).parent.mkdir(parents=True, exist_ok=True)
        (release / path).touch()
    (release / "modules.builtin").touch()
    monkeypatch.setattr(kernel, "run", lambda _: None)
    kernel.keep_modules(release, [paths[0]])
    left = {str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()}
    assert left == {paths[0], "modules.builtin"}
    assert not (release / "kernel/fs/btrfs").exists()
    assert not (release / "kernel/lib").exists()


def test_initrd_contains_only_the_needed_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, release = tmp_path / "scratch", tmp_path / "6.1"
    scratch.mkdir()
    (scratch / "of a build that was killed").touch()
    (release / "kernel").mkdir(parents=True)
    for name in ("ext4.ko", "other.ko"):
        (release / "kernel" / name).write_text(name)
    (tmp_path / "init").write_text("init")
    (tmp_path / "init").chmod(0o600)
    seen: dict[str, tuple[str, float]] = {}
    given: list[str] = []

    def cpio(_: object, input: str, cwd: Path) -> None:
        given.extend(input.splitlines())
        for path in cwd.rglob("*"):
            mode = oct(S_IMODE(path.stat().st_mode))
            seen[str(path.relative_to(cwd))] = (mode, path.stat().st_mtime)
        assert (cwd / "modules").read_text() == "/ext4.ko\n"
        assert (cwd / "ext4.ko").read_text() == "ext4.ko"

    monkeypatch.setattr(kernel, "run", cpio)
    before = os.umask(0o077)
    try:
        kernel.write_initrd(
            tmp_path / "initrd", scratch, tmp_path / "init", release, ["kernel/ext4.ko"], 100
        )
    finally:
        os.umask(before)
    assert given == sorted(seen)
    folders, files = ("dev", "proc", "target"), ("ext4.ko", "modules")
    assert seen == {
        **dict.fromkeys(folders, ("0o755", 100.0)),
        **dict.fromkeys(files, ("0o644", 100.0)),
        "init": ("0o755", 100.0),
    }
    assert not scratch.exists()
