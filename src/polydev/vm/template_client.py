"""The launcher's side of the template holder: get the files of a template as descriptors.

The launcher sends the key of a template. The answer is `ok` with one descriptor for each of FILES,
or `refused` with the reason. Each clone waits for what is imported here, so imports are few.
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
# The first answer waits until the template was read from the disk. Together with LOAD_SECONDS of
# polydev.vm.template this is less than the TimeoutStartSec= of a VM's unit.
ANSWER_SECONDS = 45.0


def fetch(key: str, place: Path = SOCKET) -> tuple[int, ...]:
    """Ask the template holder for a template; return descriptors in the order of FILES.

    Raises VmError with the reason if it refuses or does not answer.
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
    raise VmError(f"no template from its holder: {why or 'it closed the connection'}")


def clone_files(key: str, disk: Path) -> tuple[int, int]:
    """Return descriptors of a template's memory and state, and copy its disk.

    Raises VmError, OSError.
    """
    memory, state, template_disk = fetch(key)
    source = _reopened(template_disk)
    with disk.open("wb") as copy:
        copy_data(source, copy.fileno())
    os.close(source)
    return memory, _reopened(state)


def copy_data(source: int, copy: int) -> None:
    """Copy a file into an empty one, with its holes."""
    size, at = os.fstat(source).st_size, 0
    os.ftruncate(copy, size)
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # only a hole follows
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(copy, at, os.SEEK_SET)
        while at < end:
            at += os.sendfile(copy, source, at, end - at)


def _reopened(descriptor: int) -> int:
    """Replace a descriptor by a new one of the same file, which has its own position."""
    own = os.open(descriptor_path(descriptor), os.O_RDONLY)
    os.close(descriptor)
    return own
