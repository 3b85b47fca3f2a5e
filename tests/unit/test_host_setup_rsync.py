"""Failures of rsync: afterwards the host is asked for its free space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from polydev.errors import CommandError, DeployError
from polydev.host_setup import rsync
from polydev.processes import Completed
from polydev.ssh import SshTarget

TARGET = SshTarget("browsers-1", "browsers-1.example.com")
CUT_OFF = "rsync: connection unexpectedly closed (12 bytes received so far) [sender]"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A host that refuses files; status and text are its answer about free space."""
    room: dict[str, Any] = {}

    def run(argv: Sequence[str], *, check: bool = True) -> Completed:
        if argv[0] == "rsync":
            raise CommandError(argv, 12, CUT_OFF)
        assert not check
        return Completed(tuple(argv), room["status"], room["said"], "", 0.1)

    monkeypatch.setattr(rsync, "run", run)
    return room


def test_full_disk_is_reported_with_figures(host: dict[str, Any]) -> None:
    host.update(status=0, said="   Avail\n 1048576\n")
    with pytest.raises(DeployError) as failure:
        rsync.send(["rsync"], TARGET, "/opt/x/wheels", 30_000_000)
    assert failure.value.message == (
        "browsers-1: no space left in /opt/x/wheels: 1.0 MB are free, 30.0 MB were to be sent"
    )
    assert failure.value.hint
    assert isinstance(failure.value.__cause__, CommandError)


@pytest.mark.parametrize(
    ("status", "said"),
    [(0, "Avail\n30000000\n"), (255, ""), (1, "Avail\n"), (0, ""), (0, "Avail\n-\n")],
    ids=["room", "no-answer", "no-folder", "silent", "no-figure"],
)
def test_other_failures_raise_the_rsync_error(host: dict[str, Any], status: int, said: str) -> None:
    host.update(status=status, said=said)
    with pytest.raises(CommandError, match="unexpectedly closed"):
        rsync.send(["rsync"], TARGET, "/opt/x/wheels", 30_000_000)
