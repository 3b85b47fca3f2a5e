"""Changes to the file system that happen completely or not at all, and survive a power cut."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

# Suffixes of files that are not complete; a killed process leaves such a file.
UNFINISHED, UNFINISHED_TEXT = ".polydev-new", ".new"


def unfinished(path: Path) -> Path:
    """Return where the next `path` is written: one name, so that a kill leaves one file."""
    return path.with_name(f".{path.name}{UNFINISHED}")


def sync(path: Path) -> None:
    """Write the contents of a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a new file, or replace a leftover, and sync it."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def copy_new(source: Path, path: Path) -> None:
    """Copy the content of a file to a new file, or to a leftover, and sync it."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with source.open("rb") as content, os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
        file.flush()
        os.fsync(descriptor)


def write_durably(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file in one step; a power cut after that does not undo it."""
    _replace(path, unfinished(path), data, mode)


def write_text_durably(path: Path, text: str) -> None:
    """Replace a text file in one step; several processes may do so at the same time."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED_TEXT}")
    try:
        _replace(path, fresh, text.encode(), 0o644)
    except BaseException:  # nobody else would remove this name
        with suppress(OSError):
            fresh.unlink()
        raise


def _replace(path: Path, fresh: Path, data: bytes, mode: int) -> None:
    try:
        write_new(fresh, data, mode)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise
    sync(path.parent)


def write_json(path: Path, value: object) -> None:
    write_durably(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no such file. Raises ValueError for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def point_link(link: Path, target: str) -> None:
    """Create or replace a symbolic link to `target` in one step."""
    fresh = unfinished(link)
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    sync(link.parent)


def target_of(link: Path) -> str | None:
    """Return the target of a symbolic link; None if there is no link."""
    try:
        return os.readlink(link)
    except OSError:
        return None


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Create a folder and its parents, if they are missing."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with suppress(FileExistsError):  # another process was faster
        path.mkdir(mode)
        path.chmod(mode)
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with its contents, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    else:
        return
    sync(path.parent)
