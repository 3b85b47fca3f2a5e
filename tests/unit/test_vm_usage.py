"""A VM's usage, read from files laid out as the kernel has them."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from polydev.controller.host import vm_usage as module
from polydev.controller.host.vm_usage import (
    VmUsage,
    allocated_bytes,
    cpu_seconds_of,
    measure_vm,
    unit_cgroup,
)

UNIT = "/system.slice/system-microvm.slice/microvm@2.service"
PID = 4711


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (f"0::{UNIT}\n", UNIT),
        (f"4:memory:/other\n0::{UNIT}\n", UNIT),
        (f"0::{UNIT}/below\n", UNIT),
        ("0::/system.slice/system-microvm.slice/microvm@22.service\n", None),
        ("0::/\n", None),
        ("4:memory:/other\n", None),
        ("", None),
    ],
)
def test_unit_cgroup_is_only_that_of_the_vm_unit(text: str, path: str | None) -> None:
    assert unit_cgroup(text, 2) == (path and PurePosixPath(path))


def test_cpu_seconds_are_parsed() -> None:
    assert cpu_seconds_of("usage_usec 1500000\nuser_usec 1000000\n") == 1.5


class TestAllocated:
    def test_allocated_bytes_of_sparse_files(self, tmp_path: Path) -> None:
        with (tmp_path / "disk.qcow2").open("wb") as disk:
            disk.write(b"x" * 4096)
            disk.truncate(1 << 30)
        below = tmp_path / "below"
        below.mkdir()
        (below / "serial.log").write_bytes(b"x" * 4096)
        (tmp_path / "link").symlink_to("/dev/zero")
        assert 8192 <= allocated_bytes(tmp_path) < 1 << 20

    def test_allocated_bytes_of_a_missing_folder(self, tmp_path: Path) -> None:
        assert allocated_bytes(tmp_path / "gone") == 0


class Machine:
    """The kernel's files for one VM, and psutil's figures of its process."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.unit = self.cgroups / UNIT.removeprefix("/")
        self.folder = root / "vm"
        self.cable = {"vm-2": SimpleNamespace(bytes_recv=11, bytes_sent=22)}
        self.there = True
        for folder in (self.proc / str(PID), self.unit, self.folder):
            folder.mkdir(parents=True)
        (self.proc / str(PID) / "cgroup").write_text(f"0::{UNIT}\n")
        (self.unit / "cpu.stat").write_text("usage_usec 2500000\n")
        (self.unit / "memory.current").write_text("1048576\n")
        (self.folder / "serial.log").write_bytes(b"x" * 4096)

    def process(self, pid: int) -> Any:
        assert pid == PID
        if not self.there:
            raise psutil.NoSuchProcess(pid)
        return SimpleNamespace(
            cpu_times=lambda: SimpleNamespace(user=3.0, system=1.0),
            memory_info=lambda: SimpleNamespace(rss=2097152),
        )

    def ask(self, pid: int | None = PID) -> VmUsage:
        return asyncio.run(measure_vm(2, pid, self.folder))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(module, "PROC", made.proc)
    monkeypatch.setattr(module, "CGROUPS", made.cgroups)
    monkeypatch.setattr(module, "CPU_SPAN_SECONDS", 0.001)
    monkeypatch.setattr(psutil, "Process", made.process)
    monkeypatch.setattr(psutil, "net_io_counters", lambda **_: made.cable)
    return made


def test_usage_is_read_from_the_unit_cgroup(machine: Machine) -> None:
    told = machine.ask().model_dump(by_alias=True)
    assert told.pop("diskBytes") >= 4096
    assert told == {
        "cpuSeconds": 2.5,
        "cpuPercent": 0.0,
        "memoryBytes": 1048576,
        "receivedBytes": 22,
        "sentBytes": 11,
    }


def test_memory_falls_back_to_the_process(machine: Machine) -> None:
    (machine.unit / "memory.current").unlink()
    told = machine.ask()
    assert (told.cpu_seconds, told.memory_bytes) == (2.5, 2097152)


def test_usage_of_a_process_in_another_cgroup(machine: Machine) -> None:
    (machine.proc / str(PID) / "cgroup").write_text("0::/user.slice\n")
    told = machine.ask()
    assert (told.cpu_seconds, told.memory_bytes) == (4.0, 2097152)


def test_usage_of_an_ended_process_is_unavailable(machine: Machine) -> None:
    (machine.proc / str(PID) / "cgroup").unlink()
    machine.there = False
    told = machine.ask()
    assert (told.cpu_seconds, told.memory_bytes) == (None, None)
    assert told.unavailable == dict.fromkeys(("cpu", "memory"), "the VM's process has ended")
    assert told.sent_bytes == 11


def test_usage_without_a_process_is_unavailable(machine: Machine) -> None:
    assert machine.ask(None).unavailable == dict.fromkeys(
        ("cpu", "memory"), "the VM has no process"
    )


def test_network_usage_without_a_port_is_unavailable(machine: Machine) -> None:
    machine.cable.clear()
    told = machine.ask()
    assert (told.received_bytes, told.sent_bytes) == (None, None)
    assert told.unavailable == {"network": "network port vm-2 is missing"}
    assert told.memory_bytes == 1048576
