"""`polydev-microvm N`: the program of the unit of slot N. It starts a VM and becomes QEMU.

    a boot     launch.json -> the image, locked -> overlay -> QEMU -> its greeting -> systemd: ready
    a clone    launch.json -> the template's files, from the template holder -> disk -> QEMU
               -> its state loaded -> systemd: ready

For systemd the unit has started when QEMU's machine is complete; that of a clone is paused then. A
failure before that fails the unit's start, with the reason in the VM's qemu.log and in the journal.
Each VM waits for what is imported here, so imports are few.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, NoReturn

from polydev.errors import Error, VmError
from polydev.image_layout import CMDLINE, IN_USE, INITRD, KERNEL, ROOTFS
from polydev.processes import become, leave_behind, run
from polydev.vm.accelerator import known_accelerator
from polydev.vm.config import Accelerator, MemoryFile, VmConfig
from polydev.vm.launch_file import CURRENT, LAUNCH_FILE, LaunchFile, read_launch_file
from polydev.vm.qemu_command_line import overlay_argv, qemu_argv
from polydev.vm.template_client import clone_files
from polydev.vm.untrusted_files import descriptor_path, last_bytes

ROOT = Path("/var/lib/microvm")
QEMU_LOG = "qemu.log"
TAIL_LINES = 5
MAX_TAIL_BYTES = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """Start the VM of a slot. Returns only if that failed."""
    (slot,) = sys.argv[1:] if argv is None else argv
    # Kept from QEMU, so that nobody who escapes from a guest can send messages to systemd.
    systemd = os.environ.pop("NOTIFY_SOCKET", "")
    try:
        launch(ROOT / slot, known_accelerator(), systemd)
    except Error as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def launch(slot: Path, accelerator: Accelerator, systemd: str = "") -> NoReturn:
    """Become the current VM of a slot, given by its folder.

    `systemd` is the address of its notification socket, or empty. Raises VmError, whose message is
    also written to qemu.log.
    """
    try:
        # Resolved, since `current` will lead to another VM later.
        folder = (slot / CURRENT).resolve(strict=True)
        # A new file, since an earlier process of this VM may have put anything in its place.
        (folder / QEMU_LOG).unlink(missing_ok=True)
        log = (folder / QEMU_LOG).open("xb", buffering=0)
    except OSError as error:
        raise VmError(f"{slot} does not name a VM: {error}") from error
    try:
        _launch(folder, accelerator, log, systemd)
    except (Error, OSError) as error:
        log.write(f"{error}\n".encode())
        raise VmError(str(error)) from error


def _launch(folder: Path, accelerator: Accelerator, log: IO[bytes], systemd: str) -> NoReturn:
    launch_file = read_launch_file(folder / LAUNCH_FILE)
    config = vm_config(launch_file, folder, accelerator)
    with ExitStack() as stack:
        kept = [stack.enter_context(held(config.rootfs.parent))]
        state = None
        if launch_file.template is None:
            run(overlay_argv(config))
        else:
            memory, state = clone_files(launch_file.template, config.disk)
            config = replace(config, memory_file=MemoryFile(descriptor_path(memory), private=True))
            kept += [memory, state]
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        config.qmp_socket.unlink(missing_ok=True)
        listener.bind(str(config.qmp_socket))
        listener.listen()
        client.connect(str(config.qmp_socket))

        qemu = os.getpid()

        def tell() -> None:
            # QEMU alone has the listener now, so its end also ends the wait for its greeting.
            listener.close()
            if not tell_systemd(client, systemd, config.qemu_log, state):
                end_waiting(qemu, config)

        leave_behind(tell)
        argv = qemu_argv(config, listener.fileno())
        become(argv, output=log, pass_fds=(*kept, listener.fileno()))


def tell_systemd(client: socket.socket, systemd: str, log: Path, state: int | None = None) -> bool:
    """Wait for QEMU's greeting and notify systemd, or write to the journal why it did not come.

    Return whether the VM is ready. `state` is the descriptor in QEMU from which the state of a
    clone's devices is loaded first.
    """
    # systemd ends all processes of a unit that fails; this one must still write the reason.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if state is None:
        why = None if greeted(client) else "QEMU ended:"
    else:
        why = not_loaded(client, state)
    if why is not None:
        lines = last_bytes(log, MAX_TAIL_BYTES).decode(errors="replace").splitlines()
        sys.stderr.write("\n".join([why, *lines[-TAIL_LINES:]]) + "\n")
        sys.stderr.flush()
    elif systemd:
        notify(systemd, "READY=1")
    return why is None


def end_waiting(qemu: int, config: VmConfig) -> None:
    """End a QEMU that has not loaded its state; it would wait until the unit's start times out.

    If QEMU ended by itself, or the launcher could not become QEMU, there is nothing to end.
    """
    from polydev.vm.qemu_process import process_runs

    if process_runs(qemu, str(config.identity_socket)):
        with suppress(ProcessLookupError):
            os.kill(qemu, signal.SIGTERM)


def not_loaded(client: socket.socket, state: int) -> str | None:
    """Let QEMU load the state of a clone's devices; return why it did not, or None."""
    # This import takes as long as QEMU's own start, and runs at the same time.
    import asyncio

    from polydev.vm.template import load

    try:
        asyncio.run(load(client, state))
    except VmError as error:
        return error.message
    return None


def vm_config(launch_file: LaunchFile, folder: Path, accelerator: Accelerator) -> VmConfig:
    """Return the VM that a launch.json describes. Raises VmError if its image is missing."""
    image = Path(launch_file.image)
    try:
        cmdline = (image / CMDLINE).read_text()
    except OSError as error:
        raise VmError(f"image {launch_file.image_digest[:12]} is missing: {error}") from error
    return VmConfig(
        vm_id=launch_file.vm_id,
        session_id=launch_file.session_id,
        folder=folder,
        kernel=image / KERNEL,
        initrd=image / INITRD,
        cmdline=cmdline,
        rootfs=image / ROOTFS,
        image_digest=launch_file.image_digest,
        tap=launch_file.tap,
        accelerator=accelerator,
        cpus=launch_file.cpus,
        memory_mib=launch_file.memory_mib,
        translation_cache_mib=launch_file.translation_cache_mib,
    )


@contextmanager
def held(image: Path) -> Iterator[int]:
    """Yield a descriptor that keeps an image from being pruned while any process has it open.

    Raises VmError if a prune removed the image first.
    """
    place = image / IN_USE
    with place.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not place.exists() or not os.path.samestat(os.fstat(lock.fileno()), place.stat()):
            raise VmError(f"image {image.name[:12]} was removed by a prune")
        yield lock.fileno()


def greeted(client: socket.socket) -> bool:
    """Wait until QEMU sends its greeting, when its machine is complete, or ends."""
    try:
        return b"QMP" in client.recv(4096)
    except ConnectionError:
        return False


def notify(address: str, news: str) -> None:
    """Notify systemd, and wait until it has read the message, which it must do before we end."""
    place = "\0" + address[1:] if address.startswith("@") else address
    heard, saying = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(place)
        channel.send(news.encode())
        # sd_notify_barrier(3): systemd closes this descriptor after the messages before it.
        socket.send_fds(channel, [b"BARRIER=1"], [saying])
    os.close(saying)
    os.read(heard, 1)
    os.close(heard)


if __name__ == "__main__":
    sys.exit(main())
