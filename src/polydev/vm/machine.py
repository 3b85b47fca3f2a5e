"""A VM's life under QEMU: start, look at, stop.

QEMU ends with the process that started it, unless it is to stay: then the starter records its
PID. The image that it runs from is held by a lock that QEMU itself inherits, so that the kernel
knows what is in use.
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
from polydev.run import run, spawn
from polydev.vm.config import Ports, VmConfig
from polydev.vm.cpu_time import CpuWatch, cpu_sample
from polydev.vm.cpu_wait import CpuSample
from polydev.vm.qemu import overlay_argv, qemu_argv

START_ATTEMPTS = 3
POLL_SECONDS = 0.05


@dataclass
class Machine:
    """A running VM; `pid` is QEMU's."""

    config: VmConfig
    pid: int

    def alive(self) -> bool:
        """Whether QEMU still runs; a dead child of ours is reaped on the way."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return process_runs(self.pid, str(self.config.qmp_socket))

    def serial(self) -> str:
        """All that the guest's serial console said so far."""
        try:
            return self.config.serial_log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def cpu_sample(self) -> CpuSample:
        """How long its threads ran and waited for a CPU so far."""
        return cpu_sample(self.pid)

    def watch_cpu(self) -> CpuWatch:
        return CpuWatch(self.cpu_sample)

    def qemu_said(self) -> str:
        log = self.config.qemu_log
        return log.read_text(errors="replace").strip() if log.exists() else ""

    def stop(self, grace_seconds: float = 5.0) -> None:
        """End QEMU. The disk of a VM is thrown away with it, so the guest is not asked.

        Raises VmError where it is another user's.
        """
        for sent in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.kill(self.pid, sent)
            except ProcessLookupError:
                pass
            except PermissionError as error:
                raise VmError(
                    f"cannot end QEMU, process {self.pid}: it is another user's",
                    "run it as the user who started it, usually root",
                ) from error
            deadline = time.monotonic() + grace_seconds
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
    """Start a VM and return once QEMU runs.

    It gets a fresh overlay of its image; a clone has its disk in its folder already. Ports that
    are 0 are chosen here. `pass_fds` stay open in QEMU for as long as it runs. With `record`, which
    is given the VM at once, it outlives this process. Raises VmError with what QEMU said.
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
        f"QEMU ended at once: {machine.qemu_said() or 'without a word'}",
        "see that qemu-system-x86 is installed and that memory is left (free -m)",
    )


def _start_once(config: VmConfig, pass_fds: tuple[int, ...], *, stays: bool) -> Machine:
    config.serial_log.unlink(missing_ok=True)
    config.qmp_socket.unlink(missing_ok=True)
    if not config.is_clone:
        run(overlay_argv(config))
    with config.qemu_log.open("wb") as log:
        process = spawn(qemu_argv(config), stdout=log, stderr=log, pass_fds=pass_fds, stays=stays)
    # Machine.alive reaps it; Popen, which would complain of that, is told it is over.
    process.returncode = 0
    return Machine(config, process.pid)


def _greets(machine: Machine) -> bool:
    """Wait until QEMU greets on its QMP socket, or has ended."""
    while machine.alive():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(machine.config.qmp_socket))
            # An early connection may be closed without a word: QEMU was not yet listening to it.
            if b"QMP" in client.recv(256):
                return True
        time.sleep(POLL_SECONDS)
    return False


def free_ports(wanted: Ports) -> Ports:
    """Loopback ports that nothing listens on, in place of those that are 0."""
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
    """Whether process `pid` is there and has `mark` in its command line: PIDs come again.

    Not for a process started this moment: its command line is empty until it has begun.
    """
    try:
        return mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
