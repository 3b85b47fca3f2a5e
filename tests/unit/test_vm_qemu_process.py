"""A VM's process from outside, with a fake program in place of QEMU."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from polydev.errors import VmError
from polydev.vm import qemu_process
from polydev.vm.config import MemoryFile, Ports, VmConfig
from polydev.vm.qemu_process import Machine, free_ports, process_runs

NO_PROCESS = 2**22 + 1


@pytest.fixture
def config(tmp_path: Path) -> VmConfig:
    return VmConfig(
        vm_id="one",
        folder=tmp_path / "vm",
        kernel=tmp_path / "vmlinux",
        initrd=tmp_path / "initrd",
        cmdline="quiet",
        rootfs=tmp_path / "rootfs",
        image_digest="a" * 64,
        ports=Ports(0, 0, 0),
        accelerator="tcg",
    )


class Qemu:
    """A record of overlays and starts; `ends` has the output of each failing start, else None."""

    def __init__(self, config: VmConfig) -> None:
        self.config = config
        self.log: list[str] = []
        self.ends: list[str | None] = [None]
        self.stopped = 0

    def spawn(self, argv: list[str], **options: Any) -> Any:
        self.log.append(f"start, stays={options['stays']}, {options['pass_fds']}")
        said = self.ends[0]
        if said:
            options["stdout"].write(said.encode())
        assert options["stdout"] is options["stderr"]

        class Process:
            pid = NO_PROCESS
            returncode: int | None = None

        return Process()

    def greets(self, _: Machine) -> bool:
        return self.ends.pop(0) is None

    def stop(self) -> None:
        self.stopped += 1


@pytest.fixture
def qemu(config: VmConfig, monkeypatch: pytest.MonkeyPatch) -> Qemu:
    made = Qemu(config)
    monkeypatch.setattr(qemu_process, "spawn", made.spawn)
    monkeypatch.setattr(qemu_process, "run", lambda _: made.log.append("overlay"))
    monkeypatch.setattr(qemu_process, "_greets", made.greets)
    monkeypatch.setattr(Machine, "stop", made.stop)
    return made


def test_start_removes_files_of_an_earlier_run(config: VmConfig, qemu: Qemu) -> None:
    config.folder.mkdir()
    for file in (config.serial_log, config.qmp_socket, config.qemu_log):
        file.write_text("of an earlier one")
    made = qemu_process.start(config, (7,))
    assert qemu.log == ["overlay", "start, stays=False, (7,)"]
    assert made.serial() == ""
    assert made.qemu_said() == ""
    assert not config.qmp_socket.exists()
    assert made.pid == NO_PROCESS


def test_start_of_a_clone_keeps_its_disk(config: VmConfig, qemu: Qemu) -> None:
    from dataclasses import replace

    clone = replace(config, memory_file=MemoryFile(Path("/memory"), private=True))
    qemu_process.start(clone)
    assert qemu.log == ["start, stays=False, ()"]


def test_vm_is_recorded_before_its_start_is_awaited(config: VmConfig, qemu: Qemu) -> None:
    made = qemu_process.start(config, record=lambda vm: qemu.log.append(f"record {vm.pid}"))
    assert made.pid == NO_PROCESS
    assert qemu.log == ["overlay", "start, stays=True, ()", f"record {NO_PROCESS}"]


def test_vm_that_cannot_be_recorded_is_stopped(config: VmConfig, qemu: Qemu) -> None:
    def fail(_: Machine) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        qemu_process.start(config, record=fail)
    assert qemu.stopped == 1


def test_start_is_retried_with_new_ports(config: VmConfig, qemu: Qemu) -> None:
    qemu.ends = ["Could not set up host forwarding rule", None]
    qemu_process.start(config)
    assert qemu.log.count("overlay") == 2


def test_number_of_start_attempts_is_limited(config: VmConfig, qemu: Qemu) -> None:
    qemu.ends = ["Could not set up host forwarding rule"] * (qemu_process.START_ATTEMPTS + 1)
    with pytest.raises(VmError, match="Could not set up"):
        qemu_process.start(config)
    assert qemu.log.count("overlay") == qemu_process.START_ATTEMPTS


@pytest.mark.parametrize(
    ("said", "shown"), [("no memory\n", "no memory"), (" ", "it printed nothing")]
)
def test_other_start_failures_are_reported_at_once(
    said: str, shown: str, config: VmConfig, qemu: Qemu
) -> None:
    qemu.ends = [said]
    with pytest.raises(VmError, match=f"QEMU did not start: {shown}"):
        qemu_process.start(config)
    assert qemu.log.count("overlay") == 1


@pytest.fixture
def child() -> Iterator[int]:
    """A child process that only SIGKILL ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(writing, b"x")
        while True:
            signal.pause()
    os.read(reading, 1)
    yield pid
    os.close(reading)
    os.close(writing)


def test_process_that_ignores_sigterm_is_killed(config: VmConfig, child: int) -> None:
    made = Machine(config, child)
    assert made.alive()
    made.stop(grace_seconds=0.05)
    with suppress(ChildProcessError):  # it was reaped already
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not made.alive()


def test_stop_waits_for_end_of_killed_process(config: VmConfig, child: int) -> None:
    Machine(config, child).stop(grace_seconds=0)
    assert not Path(f"/proc/{child}").exists()


def test_stop_of_an_ended_process_does_nothing(config: VmConfig) -> None:
    Machine(config, NO_PROCESS).stop(grace_seconds=0.05)


def test_stop_of_another_users_process_is_refused(
    config: VmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(VmError, match="another user started it"):
        Machine(config, NO_PROCESS).stop()


def test_process_is_identified_by_pid_and_command() -> None:
    command = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()
    assert process_runs(os.getpid(), command)
    assert not process_runs(os.getpid(), "/no/such/socket")
    assert not process_runs(NO_PROCESS, command)


def test_free_ports_are_unused_and_different() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        given = taken.getsockname()[1]
        ports = free_ports(Ports(given, 0, 0))
    assert ports.agent == given
    assert ports.host == "127.0.0.1"
    assert len({ports.agent, ports.vnc, ports.novnc, 0}) == 4
    for port in (ports.vnc, ports.novnc):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
