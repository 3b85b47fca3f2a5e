"""Facts about this VM from /proc: its ids, its uptime, the stage of its boot."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.reply_types import Stage

IMAGE_WORD = "polydev.image="
VM_WORD = "polydev.vm="
SESSION_WORD = "polydev.session="
ROUTE_UP = 0x1
CHUNK_BYTES = 65536
ANYWHERE = "00000000"


class VmFacts:
    """One reading of /proc. Any field may change when a VM is resumed as a clone."""

    def __init__(self, proc: str, identity: str) -> None:
        # The host's later words win: a clone was booted as another VM.
        command_line = f"{read_text(f'{proc}/cmdline')} {read_text(identity)}"
        self.image_digest = value_of(command_line, IMAGE_WORD)
        self.vm_id = value_of(command_line, VM_WORD)
        self.session_id = value_of(command_line, SESSION_WORD)
        self.uptime_seconds = uptime_seconds(read_text(f"{proc}/uptime"))
        self.boot_id = read_text(f"{proc}/sys/kernel/random/boot_id").strip()
        self.has_route = has_default_route(read_text(f"{proc}/net/route"))


def read_text(path: str) -> str:
    """Return the text of a small file; empty if it cannot be read.

    Python's text files run a lot of code, which an emulator translates again for each clone.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return ""
    data = b""
    try:
        while chunk := os.read(descriptor, CHUNK_BYTES):
            data += chunk
        return data.decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def value_of(command_line: str, prefix: str) -> str | None:
    """Return the last value of a word of the kernel command line."""
    values = [word[len(prefix) :] for word in command_line.split() if word.startswith(prefix)]
    return values[-1] if values and values[-1] else None


def uptime_seconds(text: str) -> float:
    return float(text.split()[0]) if text.strip() else 0.0


def has_default_route(text: str) -> bool:
    """Whether /proc/net/route (addresses in hex) has a default route that is up."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return any(
        len(row) > 7 and row[1] == row[7] == ANYWHERE and int(row[3], 16) & ROUTE_UP for row in rows
    )


def boot_stage(*, is_ready: bool, has_route: bool) -> Stage:
    """Return the current stage. When the agent runs, "kernel" and "init" are over."""
    if is_ready:
        return "ready"
    return "services" if has_route else "network"


def announce(console: str, line: str) -> None:
    """Write a line to the guest's console, which the host reads."""
    descriptor = os.open(console, os.O_WRONLY | os.O_NOCTTY | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)
