"""apt's locks: their holders, and how a deployment waits; with real processes and real locks."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polydev.errors import DeployError
from polydev.host_setup.packages import packages, wait_for_apt
from polydev.hosttool import apt_locks
from polydev.hosttool.paths import Paths
from polydev.ssh import SshTarget
from tests.unit.fake_host import HERE, fake_host

HOLDER = """
import fcntl, sys
files = [open(name, "a") for name in sys.argv[1:]]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("holds", flush=True)
sys.stdin.read()
"""
Hold = Callable[..., "subprocess.Popen[str]"]


@dataclass(frozen=True)
class Here(SshTarget):
    """The host tool of this checkout, run here below a folder."""

    root: str = ""

    def argv(self, *words: str, timeout_seconds: int = 10) -> list[str]:
        return [sys.executable, "-m", "polydev.hosttool", "--root", self.root, *words[1:]]


@pytest.fixture
def paths(paths: Paths) -> Paths:
    for lock in apt_locks.locks(paths):
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch(0o640)
    return paths


@pytest.fixture
def target(tmp_path: Path) -> Here:
    return Here("browsers", "browsers.example", root=str(tmp_path))


@pytest.fixture
def hold() -> Iterator[Hold]:
    with ExitStack() as stack:

        def start(*locks: Path) -> subprocess.Popen[str]:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", HOLDER, *map(str, locks)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            assert process.stdout
            assert process.stdout.readline() == "holds\n"
            return process

        yield start


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.close()
    process.wait()


@pytest.mark.parametrize("number", range(4))
def test_holder_of_each_apt_lock_is_found(paths: Paths, hold: Hold, number: int) -> None:
    lock = apt_locks.locks(paths)[number]
    process = hold(lock)
    found = apt_locks.held(paths)["held"]
    name = Path(f"/proc/{process.pid}/comm").read_text().strip()
    assert found == [{"lock": str(lock), "pid": process.pid, "name": name}]
    end(process)
    assert apt_locks.held(paths) == {"held": []}


def test_no_apt_locks_if_apt_never_ran(tmp_path: Path) -> None:
    assert apt_locks.held(Paths.below(tmp_path)) == {"held": []}


def test_waiting_for_apt_logs_the_holder(
    paths: Paths, target: Here, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    frontend, _, lists, _ = apt_locks.locks(paths)
    process = hold(frontend, lists)
    told: list[str] = []

    class Progress(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            end(process)

    logger = logging.getLogger("pyinfra")
    caplog.set_level(logging.INFO, logger="pyinfra")
    progress = Progress()
    logger.addHandler(progress)
    try:
        wait_for_apt(target, 60, 0.01)
    finally:
        logger.removeHandler(progress)
    (line,) = told
    assert re.match(rf"waiting for \S+ \(pid {process.pid}\) holds {frontend}, {lists} \(", line)


def test_waiting_for_apt_times_out_with_the_holder(paths: Paths, target: Here, hold: Hold) -> None:
    lock = apt_locks.locks(paths)[3]
    process = hold(lock)
    with pytest.raises(DeployError) as caught:
        wait_for_apt(target, 0, 0.01)
    assert f"(pid {process.pid}) holds {lock}" in caught.value.message
    assert caught.value.message.startswith("browsers: cannot install packages")
    assert process.poll() is None


def planned(target: SshTarget, answers: dict[str, Any]) -> dict[str, list[str]]:
    with fake_host(answers) as host:
        packages(target)
        return host.planned


def test_each_apt_operation_waits_for_the_locks(target: Here) -> None:
    plan = planned(target, {})
    names = [name.partition(" | ")[2] for name in plan]
    assert names == [
        *("apt is free for its lists", "package lists"),
        *("apt is free for packages", "packages"),
    ]
    waits = [commands for name, commands in plan.items() if "is free" in name]
    assert waits == [[HERE], [HERE]]
    assert "DPkg::Lock::Timeout=600" in plan["Packages | packages"][-1]
