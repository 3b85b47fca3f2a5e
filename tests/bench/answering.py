"""Measure how long a VM takes until its three ports answer."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from polydev import http_client
from polydev.vm.boot_stages import last_lines
from polydev.vm.config import Ports, VmConfig
from polydev.vm.qemu_process import Machine, start

POLL_SECONDS = 0.1
# QEMU accepts at once what the guest does not yet listen to, so an early question is given up.
QUESTION_SECONDS = 2.0
HEALTH_SECONDS = 10.0
# Until a boot counts as dead.
DEADLINE_SECONDS = 600.0


@dataclass(frozen=True)
class Answering:
    """Seconds from QEMU's start; `ready` once the agent's /health also says 200, if awaited."""

    ports: float
    ready: float | None


@contextmanager
def machine_of(image: VmConfig) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="polydev-bench-") as folder:
        machine = start(replace(image, folder=Path(folder)))
        try:
            yield machine
        finally:
            machine.stop()


def boot_seconds(image: VmConfig, *, until_ready: bool) -> Answering:
    """Boot an image on its own disk; return the seconds until each of its ports answers."""
    started = time.monotonic()
    with machine_of(image) as machine, ThreadPoolExecutor(3) as pool:
        ports = machine.config.ports

        def agent() -> tuple[float, float | None]:
            first = _wait(machine, started, lambda: _status(f"{ports.agent_url}/") is not None)
            return first, _wait(machine, started, lambda: _healthy(ports)) if until_ready else None

        def vnc() -> float:
            return _wait(machine, started, lambda: _greets(ports))

        def novnc() -> float:
            page = f"{ports.novnc_url}/vnc.html"
            return _wait(machine, started, lambda: _status(page) == 200)

        http, *others = pool.submit(agent), pool.submit(vnc), pool.submit(novnc)
        answered, healthy = http.result()
        last = max(answered, *(other.result() for other in others))
        return Answering(last, max(last, healthy) if healthy else None)


def _wait(machine: Machine, started: float, answers: Callable[[], bool]) -> float:
    while not answers():
        tail = "\n".join(last_lines(machine.serial()))
        assert machine.alive(), f"the VM ended: {machine.qemu_said()}\n{tail}"
        assert time.monotonic() < started + DEADLINE_SECONDS, f"no answer:\n{tail}"
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


def _status(url: str, timeout_seconds: float = QUESTION_SECONDS) -> int | None:
    try:
        return http_client.get(url, timeout_seconds).status_code
    except requests.RequestException:
        return None


def _healthy(ports: Ports) -> bool:
    return _status(f"{ports.agent_url}/health", HEALTH_SECONDS) == 200


def _greets(ports: Ports) -> bool:
    try:
        with socket.create_connection((ports.host, ports.vnc), QUESTION_SECONDS) as client:
            return client.recv(12).startswith(b"RFB ")
    except OSError:
        return False
