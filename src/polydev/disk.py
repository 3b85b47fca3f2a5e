"""Files on disk: their checksums, and writing that survives a power cut."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

# How the name of a file ends that was not finished, where its process was killed.
UNFINISHED = ".new"
HASH_CHUNK_BYTES = 1 << 18


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hex.

    Holes count as the zeros they stand for but are not read: reading them would fill the page
    cache with zeros, which takes longer than all the rest.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(HASH_CHUNK_BYTES))
    zeros = memoryview(bytes(HASH_CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        position = 0
        while position < size:
            data = _next_data(stream.fileno(), position, size)
            for start in range(position, data, HASH_CHUNK_BYTES):
                digest.update(zeros[: data - start])
            end = os.lseek(stream.fileno(), data, os.SEEK_HOLE) if data < size else size
            stream.seek(data)
            while data < end and (count := stream.readinto(buffer[: end - data])):
                digest.update(buffer[:count])
                data += count
            position = end
    return digest.hexdigest()


def _next_data(descriptor: int, position: int, size: int) -> int:
    try:
        return os.lseek(descriptor, position, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return size


def sync(path: Path) -> None:
    """Write the contents of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replace a file in one step; a power cut after that does not undo it."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with fresh.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise
    sync(path.parent)
