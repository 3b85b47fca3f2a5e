"""The time for which `lock hold` keeps a lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import cast

import pytest

from polydev.hosttool import lock_verbs
from polydev.hosttool.deployment_lock import HeldLock
from polydev.hosttool.lock_verbs import _End

SECONDS = 60


class Pipe:
    """The operator's end of the pipe, and a clock that advances 50 s with each renewal."""

    def __init__(self, lines: list[bytes]) -> None:
        self.reader, self._writer = os.pipe()
        self._lines = iter(lines)
        self.now = 0.0
        self.renewals = 0
        self.say()

    def say(self) -> None:
        line = next(self._lines, None)
        if line is not None:
            os.write(self._writer, line)

    def renew(self) -> None:
        self.now += 50
        self.renewals += 1
        self.say()

    def close(self) -> None:
        os.close(self.reader)
        os.close(self._writer)


def heard(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> _End:
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: pipe.now)
        return lock_verbs._listen(cast(HeldLock, pipe), pipe.reader, SECONDS)


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    made = Pipe(request.param)
    yield made
    made.close()


@pytest.mark.parametrize(
    "pipe",
    [[b"renew\n", b"renew\n", b"renew\n", b"release\n"], [b"renew\nre", b"lease\n"]],
    indirect=True,
)
def test_each_renewal_extends_the_lock(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert heard(pipe, monkeypatch) is _End.RELEASED
    assert pipe.renewals in (1, 3)


@pytest.mark.parametrize("pipe", [[b"rene"]], indirect=True)
def test_incomplete_line_does_not_renew_the_lock(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read = os.read

    def read(descriptor: int, size: int) -> bytes:
        found = real_read(descriptor, size)
        pipe.now += 50
        if pipe.now < SECONDS:
            os.write(pipe._writer, b"w")
        return found

    monkeypatch.setattr(os, "read", read)
    assert heard(pipe, monkeypatch) is _End.EXPIRED
    assert pipe.renewals == 0
