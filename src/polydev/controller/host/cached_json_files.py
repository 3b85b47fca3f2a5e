"""Cached reading of JSON records that other programs write: once for each version of a file."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from polydev.validation import dotted, problems_of

T = TypeVar("T")


def cached_reader(
    parse: Callable[[bytes], T], most_bytes: int, most_kept: int
) -> Callable[[Path], T]:
    """Return a function that reads and parses a file, and keeps the newest `most_kept` results.

    It raises what `parse` raises, OSError, and ValueError for a file of more than `most_bytes`.
    Changes of such a file must replace it as a whole.
    """

    @lru_cache(most_kept)
    def parsed(file: Path, _inode: int, _changed_ns: int) -> T:
        return parse(read_limited(file, most_bytes))

    def read(file: Path) -> T:
        status = file.stat()
        return parsed(file, status.st_ino, status.st_mtime_ns)

    return read


def read_limited(file: Path, most_bytes: int) -> bytes:
    """Return the content of a file. Raises OSError, and ValueError for a larger one."""
    with file.open("rb") as opened:
        content = opened.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes} bytes")
    return content


def why_unreadable(error: OSError | ValueError, model: type[BaseModel]) -> str:
    """Return one line that says why a record of this model cannot be read."""
    if isinstance(error, ValidationError):
        path, words = next(problems_of(error, model))
        return f"{dotted(path)}: {words}" if path else words
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
