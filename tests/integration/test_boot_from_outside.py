"""Boot of a guest without a test console, seen by its agent's answer and its console alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import pytest

from polydev.image import boot as boot_module
from polydev.image.boot import Boot, GuestCheck
from polydev.vm.config import Ports
from polydev.vm.cpu_wait_time import CpuSample, CpuWait, ThreadTimes
from polydev.vm.qemu_process import Machine
from tests.loopback import Answer, served

STARTING = "[    0.0] Linux version 6.1\n"
OVER = "[  OK  ] Reached target multi-user.target - Multi-User System.\n"
FAILED = "[FAILED] Failed to start polydev-vnc.service - VNC.\n"
ILL = {"components": {"browser": {"ok": False, "detail": "it is gone"}, "vnc": {"ok": True}}}
NOBODY = Ports(1, 1, 1)


@dataclass
class Outside:
    """Everything known of a VM from outside; `waits` is its share of time without a CPU."""

    said: str
    ports: Ports
    waits: float = 0.0
    asked: list[CpuSample] = field(default_factory=list)

    @property
    def config(self) -> Outside:
        return self

    def serial(self) -> str:
        return self.said

    def watch_cpu(self) -> Outside:
        return self

    def total(self) -> CpuWait:
        return CpuWait()

    def cpu_sample(self) -> CpuSample:
        at = float(len(self.asked))
        self.asked.append(
            CpuSample(at, {1: ThreadTimes(at * (1 - self.waits), at * self.waits)}, 1)
        )
        return self.asked[-1]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be as busy as it likes."""
    monkeypatch.setattr(boot_module, "HEALTH_TIMEOUT_SECONDS", 60.0)


def look_at(machine: Outside) -> GuestCheck:
    return GuestCheck(Boot(cast("Machine", machine)), 60.0)


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (503, "browser: it is gone"),
        (500, "the agent answers 500 on /health; browser: it is gone"),
        (404, "the agent answers 404 on /health; browser: it is gone"),
    ],
)
@pytest.mark.parametrize("said", [STARTING, STARTING + OVER])
def test_unhealthy_agent_is_named_as_cause(said: str, status: int, cause: str) -> None:
    with served(lambda _asked: Answer(status, json.dumps(ILL).encode())) as server:
        check = look_at(Outside(said, Ports(urlsplit(server.url).port or 0, 1, 1)))
    assert (check.status, check.guest_state) == (status, None)
    # While units are being started, the agent may still become ready.
    assert check.is_settled == (said != STARTING)
    assert check.cause(None) == cause
    assert check.cause(90).startswith("not ready within 90 s, stage reached: none; ")


def test_silent_agent_is_named_as_cause() -> None:
    check = look_at(Outside(STARTING + FAILED + OVER, NOBODY))
    assert (check.status, check.is_settled) == (None, True)
    assert check.cause(None) == "polydev-vnc.service failed to start; the agent does not answer"
    early = look_at(Outside(STARTING, NOBODY))
    assert (early.status, early.is_settled) == (None, False)
    assert early.cause(None) == "stage reached: none; no cause was found"


def test_silent_agent_of_starved_vm_is_not_settled() -> None:
    assert not look_at(Outside(STARTING + OVER, NOBODY, waits=0.9)).is_settled
