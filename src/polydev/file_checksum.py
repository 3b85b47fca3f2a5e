"""Checksums of files."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

HASH_CHUNK_BYTES = 1 << 18


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Holes count as the zeros they stand for but are not read: reading them would fill the page
    cache with zeros, which takes longer than hashing.
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
