"""A VM under QEMU: start it, read its console, stop it.

QEMU ends with the process that started it, unless that process records QEMU's PID to let it
continue. QEMU inherits the lock of the image that it runs from, so that the kernel knows which
images are in use.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from polydev.errors import VmError
from polydev.processes import KILLED_SECONDS, run, spawn
from polydev.vm.config import Ports, VmConfig
from polydev.vm.cpu_time import CpuWatch, cpu_sample
from polydev.vm.cpu_wait_time import CpuSample
from polydev.vm.qemu_command_line import overlay_argv, qemu_argv

START_ATTEMPTS = 3
POLL_SECONDS = 0.05


@dataclass
class Machine:
    """A running VM; `pid` is QEMU's."""

    config: VmConfig
    pid: int

    def alive(self) -> bool:
        """Return whether QEMU still runs, and reap it if it was a child of this process."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return process_runs(self.pid, str(self.config.qmp_socket))

    def serial(self) -> str:
        """Return all output of the guest's serial console so far."""
        try:
            return self.config.serial_log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def cpu_sample(self) -> CpuSample:
        """Return how long QEMU's threads have run and waited for a CPU."""
        return cpu_sample(self.pid)

    def watch_cpu(self) -> CpuWatch:
        return CpuWatch(self.cpu_sample)

    def qemu_said(self) -> str:
        log = self.config.qemu_log
        return log.read_text(errors="replace").strip() if log.exists() else ""

    def stop(self, grace_seconds: float = 5.0) -> None:
        """End QEMU, without asking the guest, whose disk is removed afterwards.

        Raises VmError if another user started it.
        """
        for sent, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, KILLED_SECONDS)):
            try:
                os.kill(self.pid, sent)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise VmError(
                    f"cannot stop QEMU, process {self.pid}: another user started it",
                    "run the command as that user, usually root",
                ) from error
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not self.alive():
                    return
                time.sleep(POLL_SECONDS)


def start(
    config: VmConfig,
    pass_fds: tuple[int, ...] = (),
    *,
    record: Callable[[Machine], None] | None = None,
) -> Machine:
    """Start a VM and return when QEMU runs.

    The VM gets a fresh overlay of its image; the folder of a clone already has its disk. Ports
    that are 0 are chosen here. `pass_fds` stay open in QEMU while it runs. With `record`, which is
    called with the VM at once, QEMU outlives this process. Raises VmError with QEMU's own message.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, START_ATTEMPTS + 1):
        ports = config.ports if config.tap else free_ports(config.ports)
        chosen = replace(config, ports=ports)
        machine = _start_once(chosen, pass_fds, stays=record is not None)
        try:
            if record is not None:
                record(machine)
            if _greets(machine):
                return machine
        except BaseException:
            machine.stop()
            raise
        port_was_taken = "Could not set up host forwarding rule" in machine.qemu_said()
        if not port_was_taken or attempt == START_ATTEMPTS:
            break
    raise VmError(
        f"QEMU did not start: {machine.qemu_said() or 'it printed nothing'}",
        "check that qemu-system-x86 is installed and that enough memory is free (free -m)",
    )


def _start_once(config: VmConfig, pass_fds: tuple[int, ...], *, stays: bool) -> Machine:
    config.serial_log.unlink(missing_ok=True)
    config.qmp_socket.unlink(missing_ok=True)
    if not config.is_clone:
        run(overlay_argv(config))
    with config.qemu_log.open("wb") as log:
        process = spawn(qemu_argv(config), stdout=log, stderr=log, pass_fds=pass_fds, stays=stays)
    # Machine.alive reaps the process. A return code keeps Popen from warning about that.
    process.returncode = 0
    return Machine(config, process.pid)


def _greets(machine: Machine) -> bool:
    """Wait until QEMU greets on its QMP socket or ends; return whether it greeted."""
    while machine.alive():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(machine.config.qmp_socket))
            # QEMU may close an early connection, which it did not accept yet, without greeting.
            if b"QMP" in client.recv(256):
                return True
        time.sleep(POLL_SECONDS)
    return False


def free_ports(wanted: Ports) -> Ports:
    """Replace ports that are 0 by loopback ports that nothing listens on."""
    with contextlib.ExitStack() as open_sockets:

        def choose(port: int) -> int:
            if port:
                return port
            listener = open_sockets.enter_context(socket.socket())
            listener.bind((wanted.host, 0))
            return int(listener.getsockname()[1])

        return Ports(
            agent=choose(wanted.agent),
            vnc=choose(wanted.vnc),
            novnc=choose(wanted.novnc),
            host=wanted.host,
        )


def process_runs(pid: int, mark: str) -> bool:
    """Return whether process `pid` runs and has `mark` in its command line: PIDs are reused.

    Not for a process that was just started: its command line is empty at first.
    """
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
