"""`polydev-microvm N`: what the unit of slot N runs. It becomes QEMU.

    launch.json -> the image, held -> overlay -> QEMU, its greeting -> systemd hears "ready"
    ... -> a template's files, from its holder -> disk -> QEMU, its state loaded -> "ready"

The unit has started when QEMU's machine is complete; that of a clone is paused then. So whatever
hinders that fails the start, with words in the VM's qemu.log and in the journal. Every VM pays for
what is imported here.
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
from polydev.run import become, leave_behind, run
from polydev.vm.accelerator import known_accelerator
from polydev.vm.config import Accelerator, MemoryFile, VmConfig
from polydev.vm.launch_file import CURRENT, LAUNCH_FILE, LaunchFile, read_launch_file
from polydev.vm.qemu import overlay_argv, qemu_argv
from polydev.vm.template_client import clone_files
from polydev.vm.untrusted_files import descriptor_path, last_bytes

ROOT = Path("/var/lib/microvm")
QEMU_LOG = "qemu.log"
TAIL_LINES = 5
MAX_TAIL_BYTES = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """Does not return where all is well."""
    (slot,) = sys.argv[1:] if argv is None else argv
    # Not QEMU's to know: who escapes from a guest has nothing to tell systemd.
    systemd = os.environ.pop("NOTIFY_SOCKET", "")
    try:
        launch(ROOT / slot, known_accelerator(), systemd)
    except Error as error:
        sys.stderr.write(f"{error.message}\n")
        return 1


def launch(slot: Path, accelerator: Accelerator, systemd: str = "") -> NoReturn:
    """Become the VM that `slot`, a folder, names as its current one.

    `systemd` is the address where it waits for news; empty, where nobody does. Raises VmError;
    qemu.log says the same.
    """
    try:
        # By its own name: `current` will be another VM one day.
        folder = (slot / CURRENT).resolve(strict=True)
        # A file of ours, whatever an earlier process of this VM left in its place.
        (folder / QEMU_LOG).unlink(missing_ok=True)
        log = (folder / QEMU_LOG).open("xb", buffering=0)
    except OSError as error:
        raise VmError(f"{slot} names no VM: {error}") from error
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
            # It ends with QEMU now, and with it the wait for a greeting that does not come.
            listener.close()
            if not tell_systemd(client, systemd, config.qemu_log, state):
                end_waiting(qemu, config)

        leave_behind(tell)
        argv = qemu_argv(config, listener.fileno())
        become(argv, output=log, pass_fds=(*kept, listener.fileno()))


def tell_systemd(client: socket.socket, systemd: str, log: Path, state: int | None = None) -> bool:
    """Wait for QEMU's greeting or its end; tell systemd of the one, the journal of the other.

    Return whether the VM is ready.

    `state`: the descriptor in QEMU from which a clone's devices are loaded before that.
    """
    # systemd ends what is left of a unit that fails: there is still something to say then.
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
    """End a QEMU that has not loaded its state: it would wait for it until the start is given up.

    One that ended by itself is left alone, and so is a launcher that could not become QEMU.
    """
    from polydev.vm.machine import process_runs

    if process_runs(qemu, str(config.identity_socket)):
        with suppress(ProcessLookupError):
            os.kill(qemu, signal.SIGTERM)


def not_loaded(client: socket.socket, state: int) -> str | None:
    """Let QEMU load a clone's devices; why it did not, None where it did."""
    # This takes as long as QEMU's own start, beside which it is done.
    import asyncio

    from polydev.vm.template import load

    try:
        asyncio.run(load(client, state))
    except VmError as error:
        return error.message
    return None


def vm_config(launch_file: LaunchFile, folder: Path, accelerator: Accelerator) -> VmConfig:
    """The VM of an launch_file. Raises VmError where its image is not there."""
    image = Path(launch_file.image)
    try:
        cmdline = (image / CMDLINE).read_text()
    except OSError as error:
        raise VmError(f"image {launch_file.image_digest[:12]} is not there: {error}") from error
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
    """A descriptor that keeps an image from being pruned for as long as any process has it.

    Raises VmError where a prune was quicker.
    """
    place = image / IN_USE
    with place.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not place.exists() or not os.path.samestat(os.fstat(lock.fileno()), place.stat()):
            raise VmError(f"image {image.name[:12]} is not there any more")
        yield lock.fileno()


def greeted(client: socket.socket) -> bool:
    """Wait until QEMU, whose machine is complete then, greets on its QMP socket, or has ended."""
    try:
        return b"QMP" in client.recv(4096)
    except ConnectionError:
        return False


def notify(address: str, news: str) -> None:
    """Tell systemd, and wait until it has heard: of the dead it would not know whose news it is."""
    place = "\0" + address[1:] if address.startswith("@") else address
    heard, saying = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(place)
        channel.send(news.encode())
        # sd_notify_barrier(3): systemd closes what it is given once all before it is done.
        socket.send_fds(channel, [b"BARRIER=1"], [saying])
    os.close(saying)
    os.read(heard, 1)
    os.close(heard)


if __name__ == "__main__":
    sys.exit(main())
