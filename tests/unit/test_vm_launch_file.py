"""The launch file of a slot's VM: written by one program, read by another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.errors import VmError
from polydev.vm.launch import vm_config
from polydev.vm.launch_file import LaunchFile, launch_file_text, read_launch_file

LAUNCH_FILE = LaunchFile(
    vm_id="7f0c",
    session_id="a1-b2",
    image="/images/x",
    image_digest="d" * 64,
    cpus=3,
    memory_mib=512,
    translation_cache_mib=64,
)


def written(folder: Path, **changed: Any) -> Path:
    file = folder / "launch.json"
    file.write_text(json.dumps({**json.loads(launch_file_text(LAUNCH_FILE)), **changed}))
    return file


def test_launch_file_is_read_as_written(tmp_path: Path) -> None:
    file = tmp_path / "launch.json"
    file.write_text(launch_file_text(LAUNCH_FILE))
    assert read_launch_file(file) == LAUNCH_FILE


def test_launch_file_without_a_session(tmp_path: Path) -> None:
    assert read_launch_file(written(tmp_path, session_id=None)).session_id is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("vm_id", text) for text in ("", "a b", "a,b", "-x", "../x", 7, None)),
        *(("session_id", text) for text in ("", "a b", 7)),
        *(("image", text) for text in ("images/x", "/x,readonly=on", 1)),
        *(("image_digest", text) for text in ("d" * 63, "D" * 64, None)),
        *(("cpus", number) for number in (0, -1, "2", 1.5, True)),
        *(("memory_mib", number) for number in (0, None)),
        ("tap", "tap0,script=/bin/sh"),
    ],
)
def test_values_unsafe_for_a_command_line_are_refused(
    tmp_path: Path, name: str, value: Any
) -> None:
    with pytest.raises(VmError, match=f"{name} is not valid"):
        read_launch_file(written(tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 4000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "missing or unknown keys: cpus"),
    ],
)
def test_malformed_launch_file_is_refused_with_a_reason(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "launch.json"
    file.write_text(text)
    with pytest.raises(VmError, match=words) as failure:
        read_launch_file(file)
    assert str(file) in failure.value.message


def test_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="missing or unknown keys: rootfs"):
        read_launch_file(written(tmp_path, rootfs="/x"))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VmError, match=r"launch\.json cannot be read: No such file"):
        read_launch_file(tmp_path / "launch.json")


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(tmp_path_factory: Any, data: bytes) -> None:
    file = tmp_path_factory.mktemp("launch_file") / "launch.json"
    file.write_bytes(data)
    with pytest.raises(VmError):
        read_launch_file(file)


def test_vm_config_of_a_launch_file(tmp_path: Path) -> None:
    (tmp_path / "cmdline").write_text("root=/dev/vda")
    config = vm_config(
        LaunchFile(**{**vars(LAUNCH_FILE), "image": str(tmp_path)}), Path("/vms/2/7f0c"), "kvm"
    )
    assert (config.kernel, config.rootfs) == (tmp_path / "vmlinux", tmp_path / "rootfs.ext4")
    assert (config.cmdline, config.session_id, config.tap) == ("root=/dev/vda", "a1-b2", "tap0")
    assert (config.cpus, config.memory_mib, config.translation_cache_mib) == (3, 512, 64)
    assert (config.accelerator, config.disk) == ("kvm", Path("/vms/2/7f0c/disk.qcow2"))


def test_missing_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="image dddddddddddd is missing"):
        vm_config(LaunchFile(**{**vars(LAUNCH_FILE), "image": str(tmp_path)}), tmp_path, "tcg")
