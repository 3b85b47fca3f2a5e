"""Write and remove files in the folder of a VM, without following links.

The VM's own process may write there, so whatever has a file's name may have been put there by it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from polydev.errors import CommandTimeout
from polydev.processes import run

FILE_MODE = 0o644
REMOVAL_SECONDS = 45
FOLDERS_AT_ONCE = 100


def write_file(folder: int, name: str, text: str) -> None:
    """Replace a file in a folder, given by its descriptor, whatever has that name now."""
    fresh = f".{name}"
    with suppress(FileNotFoundError):
        os.unlink(fresh, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(fresh, flags, FILE_MODE, dir_fd=folder), "w") as file:
        os.fchmod(file.fileno(), FILE_MODE)
        file.write(text)
    os.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in a folder; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return [each.name for each in entries if each.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def clear_folder(folder: Path, descriptor: int, kept: Iterable[str]) -> str:
    """Remove all but the files to be kept; return why something is left, or an empty text."""
    left, folders = "", []
    device = os.fstat(descriptor).st_dev
    with os.scandir(descriptor) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.stat(follow_symlinks=False).st_dev == device:
                    folders.append(entry.name)
                else:
                    left = f"{entry.name!a}: something is mounted there"
            elif entry.name not in kept or not entry.is_file(follow_symlinks=False):
                left = _unlink(entry.name, descriptor) or left
    names = iter(folders)
    while some := list(islice(names, FOLDERS_AT_ONCE)):
        left = _remove_trees([folder / name for name in some]) or left
    return left


def _unlink(name: str, folder: int) -> str:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{name!a}: {error.strerror}"
    return ""


def _remove_trees(folders: list[Path]) -> str:
    """Remove folders of any depth. A VM can make some only if it broke its unit's sandbox."""
    argv: list[str | Path] = ["rm", "-rf", "--one-file-system", "--", *folders]
    try:
        removed = run(argv, timeout_seconds=REMOVAL_SECONDS, check=False)
    except CommandTimeout:
        return f"not done within {REMOVAL_SECONDS} s"
    return removed.stderr.strip().rpartition("\n")[2]
