"""Waiting for a held lock, for as long as requested."""

from __future__ import annotations

import pytest

from polydev.deployment import lock as lock_module
from polydev.deployment.lock import wait_for_lock
from polydev.errors import LockHeld


class HeldLock:
    """A lock that is free from `free_at` on; its clock advances while a caller waits."""

    def __init__(self, free_at: float) -> None:
        self.now = 0.0
        self.free_at = free_at
        self.said: list[str] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def take(self) -> str:
        if self.now < self.free_at:
            raise LockHeld(f"ben holds the deployment lock since {self.now:g}")
        return "taken"


def wait(monkeypatch: pytest.MonkeyPatch, lock: HeldLock, seconds: float) -> str:
    monkeypatch.setattr(lock_module, "time", lock)
    return wait_for_lock(lock.take, seconds, lock.said.append)


def test_a_free_lock_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = HeldLock(0)
    assert wait(monkeypatch, lock, 0) == "taken"
    assert (lock.now, lock.said) == (0, [])


def test_a_held_lock_is_refused_at_once_without_waiting_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock = HeldLock(1)
    with pytest.raises(LockHeld):
        wait(monkeypatch, lock, 0)
    assert (lock.now, lock.said) == (0, [])


def test_lock_is_taken_when_it_becomes_free(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = HeldLock(7)
    assert wait(monkeypatch, lock, 60) == "taken"
    assert lock.said == ["waiting up to 60 s: ben holds the deployment lock since 0"]


def test_waiting_for_the_lock_ends_after_the_given_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = HeldLock(61)
    with pytest.raises(LockHeld):
        wait(monkeypatch, lock, 59)
    assert lock.now == 59
