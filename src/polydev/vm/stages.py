"""How far a boot has come, read from what the serial console said. Pure."""

from __future__ import annotations

import re
from typing import Literal

Stage = Literal["none", "kernel", "init", "network", "services", "ready"]
STAGES: tuple[Stage, ...] = ("none", "kernel", "init", "network", "services", "ready")

_MARKS: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    ("kernel", re.compile(r"Linux version \d")),
    ("init", re.compile(r"Welcome to |systemd\[1\]: systemd \d")),
    ("network", re.compile(r"Reached target network\.target")),
    ("services", re.compile(r"Started polydev-vnc\.service")),
    ("ready", re.compile(r"polydev: ready after")),
)
_BOOT_OVER = re.compile(r"Reached target multi-user\.target")
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_NO_ROOT = re.compile(r"Timeout while waiting for devices|initramfs: Waiting for (\S+) to appear")
_FAILED_UNIT = re.compile(r"\[ ?FAILED ?\] Failed to start ([\w@.:\\-]+)")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bM|[\x00-\x08\x0b-\x1f\x7f]")


def boot_stage(serial: str) -> Stage:
    """The furthest stage of which the console shows a mark."""
    reached: Stage = "none"
    for stage, mark in _MARKS:
        if mark.search(serial):
            reached = stage
    return reached


def boot_is_over(serial: str) -> bool:
    """Whether systemd has reached its target: what does not run now was not started."""
    return _BOOT_OVER.search(serial) is not None


def kernel_panic(serial: str) -> str | None:
    """Why the kernel gave up, in words, or None if it did not."""
    panic = _PANIC.search(serial)
    if panic is None:
        return None
    if _NO_ROOT.search(serial):
        return f"the kernel cannot find its root filesystem (panic: {panic[1].strip()})"
    return f"kernel panic: {panic[1].strip()}"


def missing_root(serial: str) -> str | None:
    """The device that the initrd waits for, while nothing after it has started."""
    waits = re.search(r"initramfs: Waiting for (\S+) to appear", serial)
    return waits[1] if waits and boot_stage(serial) in ("none", "kernel") else None


def failed_units(serial: str) -> list[str]:
    """Units that systemd said on the console it could not start."""
    return sorted(set(_FAILED_UNIT.findall(serial)))


def last_lines(serial: str, count: int = 15) -> list[str]:
    """The end of the console's text, without colours and progress animation."""
    plain = [_CONTROL.sub("", line).strip() for line in serial.splitlines()]
    return [line for line in plain if line and "/start running (" not in line][-count:]
