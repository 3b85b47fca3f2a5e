"""The shell script that uploads a file to a host, run in folders of the test."""

from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from polydev.durable_files import unfinished
from polydev.hosttool.upload import Upload, file_upload

SECRET = b"correct horse battery staple\x00\xff\n" * 1000
AWAIT_SECONDS = 60.0


@pytest.fixture(params=["secret", "it's $HOME; a name"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def placed(path: Path, data: bytes = SECRET, mode: str = "640") -> Upload:
    return file_upload(str(path), data, mode=mode, owner=f"{os.getuid()}:{os.getgid()}")


def begin(command: str) -> subprocess.Popen[bytes]:
    """Start the script in its own process group, with a umask that lets everybody read."""
    return subprocess.Popen(
        ["sh", "-c", f"umask 0; exec sh -c {shlex.quote(command)}"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def send(process: subprocess.Popen[bytes], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text.encode())
    process.stdin.flush()


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + AWAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def half_sent(path: Path) -> subprocess.Popen[bytes]:
    """Start an upload that waits for the second half."""
    wanted = placed(path)
    process = begin(wanted.command)
    send(process, wanted.input[: len(wanted.input) // 2])
    fresh = unfinished(path)
    await_that(lambda: fresh.is_file() and fresh.stat().st_size > 0)
    return process


def names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_incomplete_file_is_readable_by_root_only(path: Path) -> None:
    process = half_sent(path)
    assert mode_of(unfinished(path)) == 0o600
    assert not path.exists()
    send(process, placed(path).input[len(placed(path).input) // 2 :])
    process.communicate(timeout=AWAIT_SECONDS)
    assert process.returncode == 0
    assert (path.read_bytes(), mode_of(path)) == (SECRET, 0o640)
    assert names(path.parent) == [path.name]


def test_cut_connection_keeps_the_existing_file(path: Path) -> None:
    path.write_bytes(b"former")
    process = half_sent(path)
    _, said = process.communicate(timeout=AWAIT_SECONDS)
    assert process.returncode != 0
    assert f"{path}: it did not arrive whole" in said.decode()
    assert path.read_bytes() == b"former"
    assert names(path.parent) == [path.name]


def test_terminated_upload_leaves_no_file(path: Path) -> None:
    process = half_sent(path)
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=AWAIT_SECONDS)
    assert process.returncode != 0
    assert names(path.parent) == []


def test_next_upload_replaces_the_rest_of_a_killed_one(path: Path) -> None:
    process = half_sent(path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=AWAIT_SECONDS)
    assert mode_of(unfinished(path)) == 0o600
    run(placed(path))
    assert path.read_bytes() == SECRET
    assert names(path.parent) == [path.name]


@pytest.mark.parametrize("there", ["link", "dangling", "folder", "file"])
def test_upload_does_not_write_through_links(path: Path, there: str) -> None:
    other = path.parent / "other"
    for place in (path, unfinished(path)):
        if there == "link":
            other.write_bytes(b"a stranger's")
            place.symlink_to(other)
        elif there == "dangling":
            place.symlink_to(other)
        elif there == "file":
            place.write_bytes(b"x" * 10)
            place.chmod(0o666)
    if there == "folder":
        unfinished(path).mkdir()
    run(placed(path))
    assert not path.is_symlink()
    assert (path.read_bytes(), mode_of(path)) == (SECRET, 0o640)
    if there == "link":
        assert other.read_bytes() == b"a stranger's"
    elif there == "dangling":
        assert not other.exists()


def test_folder_at_the_target_is_an_error(path: Path) -> None:
    path.mkdir()
    assert run(placed(path), check=False) != 0
    assert names(path.parent) == [path.name]
    assert names(path) == []


def test_missing_folder_is_an_error(path: Path) -> None:
    assert run(placed(path / "below"), check=False) != 0
    assert not path.exists()


def test_empty_file_is_uploaded(path: Path) -> None:
    run(placed(path, b""))
    assert path.read_bytes() == b""


def test_command_and_repr_do_not_show_the_content(path: Path) -> None:
    wanted = placed(path, b"correct horse")
    assert "correct horse" not in wanted.command
    assert wanted.input not in wanted.command
    assert wanted.input not in repr(wanted)


def run(wanted: Upload, *, check: bool = True) -> int:
    process = begin(wanted.command)
    _, said = process.communicate(wanted.input.encode(), timeout=AWAIT_SECONDS)
    assert process.returncode == 0 or not check, said
    return process.returncode
