"""A template's files, from the holder that has them in memory: what a VM's launcher needs of them.

A launcher says a template's key; the answer is `ok` with a descriptor for each of FILES, or
`refused` with the reason. Each clone pays for what is imported here, before its QEMU starts.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from polydev.errors import VmError
from polydev.vm.untrusted_files import descriptor_path

MEMORY, STATE, DISK = "memory", "state", "disk.qcow2"
FILES = (MEMORY, STATE, DISK)
SOCKET = Path("/run/polydev/templates.sock")
OK, REFUSED = b"ok", b"refused "
MAX_ANSWER_BYTES = 4096
# A template is read from the disk once; a VM that waits for it has a minute to start.
ANSWER_SECONDS = 45.0


def fetch(key: str, place: Path = SOCKET) -> tuple[int, ...]:
    """Ask the holder for a template: descriptors in the order of FILES.

    Raises VmError with its reason, or where there is no holder.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(ANSWER_SECONDS)
            client.connect(str(place))
            client.sendall(key.encode())
            answer, found, _, _ = socket.recv_fds(client, MAX_ANSWER_BYTES, len(FILES))
    except OSError as error:
        raise VmError(f"the holder of templates does not answer: {error}") from error
    if answer == OK and len(found) == len(FILES):
        return tuple(found)
    for descriptor in found:
        os.close(descriptor)
    why = answer.removeprefix(REFUSED).decode("ascii", "replace")
    raise VmError(f"no template from its holder: {why or 'it said nothing'}")


def clone_files(key: str, disk: Path) -> tuple[int, int]:
    """Descriptors of a template's memory and state; its disk is copied. Raises VmError, OSError."""
    memory, state, template_disk = fetch(key)
    source = _reopened(template_disk)
    with disk.open("wb") as copy:
        copy_data(source, copy.fileno())
    os.close(source)
    return memory, _reopened(state)


def copy_data(source: int, copy: int) -> None:
    """Copy a file into an empty one; what is a hole stays one."""
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(copy, size)
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(copy, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(copy, source, at, end - at)


def _reopened(descriptor: int) -> int:
    """In place of a descriptor, another of the same file, with a position of its own."""
    own = os.open(descriptor_path(descriptor), os.O_RDONLY)
    os.close(descriptor)
    return own
