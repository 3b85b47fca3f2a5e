"""A QEMU that does not start, as a fake program of its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polydev.errors import VmError
from polydev.vm.config import VmConfig
from polydev.vm.qemu_process import Machine, start

TAKEN = "Could not set up host forwarding rule"


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    names = ("vmlinux", "initrd.img", "rootfs.ext4")
    kernel, initrd, rootfs = (tmp_path / name for name in names)
    rootfs.touch()
    return VmConfig("vm-1", tmp_path / "vm", kernel, initrd, "", rootfs, "a" * 64)


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the program that is started in place of QEMU; the test writes it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "qemu-system-x86_64"


def write(program: Path, text: str) -> None:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(("said", "starts"), [(TAKEN, 3), ("no memory", 1), ("", 1)])
def test_qemu_that_exits_at_once_is_reported_with_its_output(
    config: VmConfig, qemu: Path, tmp_path: Path, said: str, starts: int
) -> None:
    """The start is retried if another process may have taken a port meanwhile."""
    write(qemu, f"echo start >>{tmp_path}/starts; echo '{said}' >&2; exit 1")
    with pytest.raises(VmError, match=f"QEMU did not start: {said or 'it printed nothing'}$"):
        start(config)
    assert (tmp_path / "starts").read_text() == "start\n" * starts


def test_vm_that_cannot_be_recorded_is_ended(config: VmConfig, qemu: Path) -> None:
    write(qemu, "exec sleep 1000")
    started: list[Machine] = []

    def record(machine: Machine) -> None:
        started.append(machine)
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        start(config, record=record)
    (machine,) = started
    assert not Path(f"/proc/{machine.pid}").exists()
