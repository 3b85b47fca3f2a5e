"""Setting a guest's clock from the host, over a channel as slow as the guest."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from polydev.errors import VmError
from polydev.vm.template import CLOCK_TRIES, set_clock

NOW = 1000.0


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is long on its way would count as a clock that is behind."""
    monkeypatch.setattr(time, "time", lambda: NOW)


def set_with_answers(folder: Path, late_answers: int) -> int:
    """Return how often the clock was set on a guest whose clock stays behind at first."""
    asked = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while await reader.readline():
            asked += 1
            behind = 1.0 if asked <= late_answers else 0.0
            writer.write(f"clock time={NOW - behind:.6f}\n".encode())
        writer.close()

    async def story() -> None:
        place = folder / "identity.sock"
        server = await asyncio.start_unix_server(guest, place)
        async with server:
            await set_clock(place, seconds=600)

    asyncio.run(story())
    return asked


@pytest.mark.parametrize("late_answers", [0, 1, CLOCK_TRIES])
def test_clock_is_set_until_it_is_right(tmp_path: Path, late_answers: int) -> None:
    assert set_with_answers(tmp_path, late_answers) == late_answers + 1


def test_clock_that_stays_wrong_is_reported(tmp_path: Path) -> None:
    words = f"the guest's clock is off by -1.* s after {CLOCK_TRIES} settings"
    with pytest.raises(VmError, match=words):
        set_with_answers(tmp_path, CLOCK_TRIES + 1)
