"""The file in which a tool keeps its credentials: read, written and removed below a home.

This runs with the rights of the home's user, who may have put anything in the file's place: it
follows no link, waits for nothing, and reads no more bytes than credentials may have.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from errno import ELOOP, ENOTDIR
from stat import S_ISREG

from polydev.agent.errors import CheckFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from polydev.agent.providers import CredentialsFile

MAX_BYTES = 64 * 1024
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def read(home: str, credentials: CredentialsFile) -> dict[str, object] | None:
    """Return the JSON object in the file; None if there is no file. Raises CheckFailed."""
    with _as_check_failed(f"cannot read ~/{credentials.file}"):
        try:
            data = _data(home, credentials.file)
        except FileNotFoundError:
            return None
    try:
        value = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise CheckFailed(f"~/{credentials.file} is not JSON") from None
    check(value, credentials)
    return value  # type: ignore[no-any-return]


def check(value: object, credentials: CredentialsFile) -> None:
    """Raise CheckFailed unless the value has the keys of the provider's credentials."""
    if not isinstance(value, dict):
        raise CheckFailed(f"~/{credentials.file} is not a JSON object")
    missing = [key for key in credentials.requires if not _member(value, key)]
    if missing:
        raise CheckFailed(f"~/{credentials.file} lacks {', '.join(missing)}")


def write(home: str, credentials: CredentialsFile, value: object) -> None:
    """Write credentials, and the other files that the tool needs."""
    check(value, credentials)
    for path, content in {credentials.file: value, **credentials.also}.items():
        with _as_check_failed(f"cannot write ~/{path}"):
            _write(home, path, json.dumps(content, separators=(",", ":")).encode())


def remove(home: str, credentials: CredentialsFile) -> None:
    """Remove the files that `write` makes, whoever wrote them."""
    for path in (credentials.file, *credentials.also):
        with (
            _as_check_failed(f"cannot remove ~/{path}"),
            suppress(FileNotFoundError),
            _folder_of(home, path) as (folder, name),
        ):
            os.unlink(name, dir_fd=folder)


def _data(home: str, path: str) -> bytes:
    with _folder_of(home, path) as (folder, name):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(name, flags, dir_fd=folder), "rb", buffering=0) as file:
            state = os.fstat(file.fileno())
            if not S_ISREG(state.st_mode) or state.st_uid != os.geteuid():
                raise CheckFailed(f"~/{path} is not a regular file of its user")
            data = b""
            while len(data) <= MAX_BYTES and (chunk := file.read(MAX_BYTES + 1 - len(data))):
                data += chunk
    if len(data) > MAX_BYTES:
        raise CheckFailed(f"~/{path} has more than {MAX_BYTES} bytes")
    return data


def _write(home: str, path: str, data: bytes) -> None:
    """Write a file for its user alone, replacing whatever is there and following no link."""
    with _folder_of(home, path, make=True) as (folder, name):
        new = f"{name}.new"
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600, dir_fd=folder), "wb") as file:
            file.write(data)
        os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)


@contextmanager
def _folder_of(home: str, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
    """Open the folder of a path below the home, part by part; yield it and the file's name."""
    *parts, name = path.split("/")
    folder = os.open(home, FOLDER)
    try:
        for part in parts:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=folder)
            above, folder = folder, os.open(part, FOLDER, dir_fd=folder)
            os.close(above)
        yield folder, name
    finally:
        os.close(folder)


def _member(value: object, dotted_key: str) -> object:
    for key in dotted_key.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@contextmanager
def _as_check_failed(what: str) -> Iterator[None]:
    """Turn OSError into CheckFailed with a message."""
    try:
        yield
    except OSError as error:
        is_link = error.errno in (ELOOP, ENOTDIR)  # of a link that is not followed
        why = "a link or a file is in its way" if is_link else error.strerror
        raise CheckFailed(f"{what}: {why}") from error
