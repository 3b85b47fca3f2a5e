"""The stage that a boot has reached, and its failures, read from the serial console. Pure."""

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
_ROOT_AWAITED = re.compile(r"initramfs: Waiting for (\S+) to appear")
_ROOT_NEVER_CAME = re.compile(r"initramfs: Timeout while waiting for devices")
_ROOT_NOT_MOUNTED = re.compile(r"initramfs: (Failed to mount root filesystem .*)")
_ROOT_UNKNOWN = re.compile(r"VFS: (Unable to mount root fs on .*)")
# systemd prints this twice: in its list, which truncates long names, and to the kernel's log.
_FAILED_UNIT = re.compile(r"Failed to start ([\w@.:\\-]+\.(?:service|socket|mount|target))\b")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bM|[\x00-\x08\x0b-\x1f\x7f]")


def printable(text: str) -> str:
    """Return text with characters that are not printable replaced by blanks."""
    return "".join(each if each.isprintable() else " " for each in text)


def stages_seen(serial: str) -> list[Stage]:
    """Return the stages that the console shows; some may come in another order."""
    return [stage for stage, mark in _MARKS if mark.search(serial)]


def boot_stage(serial: str) -> Stage:
    """Return the furthest stage that the console shows."""
    return (stages_seen(serial) or ["none"])[-1]


def boot_is_over(serial: str) -> bool:
    """Return whether systemd has reached its target, after which it starts nothing more."""
    return _BOOT_OVER.search(serial) is not None


def kernel_panic(serial: str) -> str | None:
    """Return why the kernel or its initrd gave up before init, or None.

    The initrd prints the reason some seconds before the kernel panics.
    """
    panic = _PANIC.search(serial)
    refused = _ROOT_NOT_MOUNTED.search(serial) or _ROOT_UNKNOWN.search(serial)
    if refused:
        return f"the kernel cannot mount its root filesystem: {_plain(refused[1])}"
    if _ROOT_NEVER_CAME.search(serial) or (panic and missing_root(serial)):
        return no_root(missing_root(serial) or "its device")
    return f"kernel panic: {_plain(panic[1])}" if panic else None


def missing_root(serial: str) -> str | None:
    """Return the device that the initrd waits for; None once something after it has started."""
    awaited = _ROOT_AWAITED.search(serial)
    return awaited[1] if awaited and boot_stage(serial) in ("none", "kernel") else None


def no_root(device: str) -> str:
    return f"the kernel cannot find its root filesystem: {device} does not appear"


def failed_units(serial: str) -> list[str]:
    """Return the units whose start failed, as systemd prints on the console."""
    return sorted(set(_FAILED_UNIT.findall(serial)))


def last_lines(serial: str, count: int = 15) -> list[str]:
    """Return the last lines of the console, without colours and progress animation."""
    plain = [_plain(line) for line in serial.splitlines()]
    return [line for line in plain if line and "/start running (" not in line][-count:]


def _plain(line: str) -> str:
    return _CONTROL.sub("", line).strip()
