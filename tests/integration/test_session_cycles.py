"""Hundreds of concurrent sessions, started and ended, leave nothing behind in the controller.

The VMs are fake, so that a session takes no CPU but the controller's; test_sessions.py does the
same with fewer sessions on VMs that boot.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from polydev.http_client import HttpSession
from polydev.processes import PIPE, end_group, spawn
from tests.hosts import ROOT
from tests.sessions import FROM_HERE_ON, Api, wait_for

WARM_UP_CYCLES = 60
CYCLES = 260
SOME_GROWTH = 1.1


@dataclass(frozen=True)
class FakeService:
    """The process, and a caller for each of its users."""

    process: psutil.Process
    users: list[Api]
    vms: Path

    def memory(self) -> int:
        """The private memory of the process in bytes."""
        return int(self.process.memory_full_info().uss)

    def descriptors(self) -> int:
        """Return how many files, sockets and pipes it has open.

        But for the database's own file, which SQLite opens once for each connection that there was
        at the same time, and does not close. Its journal counts: each open connection has that.
        """
        found = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed just now
                found.append(link.readlink().name)
        return len([name for name in found if name != "controller.sqlite3"])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    argv = [sys.executable, "-m", "tests.fake_service", str(tmp_path)]
    process = spawn(argv, cwd=ROOT, stdin=PIPE, stdout=PIPE)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        base = f"http://127.0.0.1:{told['port']}"
        with HttpSession(base) as http:
            users = [Api(http, token, user) for user, token in told["tokens"].items()]
            yield FakeService(psutil.Process(process.pid), users, tmp_path / "microvm")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        end_group(process)


def test_hundreds_of_concurrent_sessions_leave_nothing_behind(service: FakeService) -> None:
    chance = random.Random(400)

    def cycle(user: Api) -> None:
        session = user.start()
        if states := chance.choice([("vm_created",), *FROM_HERE_ON, ()]):
            user.wait(session["id"], *states)
        user.end(session["id"])
        path = f"/api/vm/{session['vmId']}"
        wait_for("the end of its VM", lambda: user.call("GET", path)["releasedAt"])

    def all_cycles(count: int) -> None:
        def share(user: Api) -> None:
            for _ in range(count // len(service.users)):
                cycle(user)

        with ThreadPoolExecutor(len(service.users)) as pool:
            list(pool.map(share, service.users))

    all_cycles(WARM_UP_CYCLES)
    memory, descriptors = service.memory(), service.descriptors()
    all_cycles(CYCLES)
    assert service.memory() < memory * SOME_GROWTH
    wait_for("closed descriptors", lambda: service.descriptors() <= descriptors or None)
    assert list(service.vms.glob("*/*")) == []
