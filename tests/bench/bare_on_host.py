"""Measure a bare resume, for comparison with session starts: QEMU alone, without a controller.

It runs on a host as root, in a network of its own. Each line on stdin is one thing to do:

    resume      resume the golden image's template; its seconds and its process, as JSON
    stop        end that VM

The first screen that is seen is the template's: it is kept, for others to be compared with.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from socket import create_connection
from subprocess import PIPE, Popen
from typing import Any

from tests.bench.screen import GREETING, Screen, likeness

CONFIG = Path("/etc/master-controller/config.yaml")
TEMPLATES_SCREEN = Path("template.screen")
# The cursor blinks.
ALIKE = 0.95
FRAME_SECONDS = 120.0


@dataclass(frozen=True)
class Resumed:
    """Seconds until the first bytes of RFB, and until the screen was the template's."""

    seconds: float
    first_frame_seconds: float
    pid: int


def see_first_frame(screen: Screen) -> None:
    """Open a screen after its greeting, and read it until it shows the template's picture."""
    deadline = time.monotonic() + FRAME_SECONDS
    screen.open()
    screen.ask(is_all=True)
    screen.update()
    if not TEMPLATES_SCREEN.exists():
        TEMPLATES_SCREEN.write_bytes(screen.pixels)
    expected = TEMPLATES_SCREEN.read_bytes()
    while (alike := likeness(screen.pixels, expected)) < ALIKE:
        if time.monotonic() > deadline:
            raise SystemExit(f"error: {alike:.0%} of the screen is as the template's")
        screen.ask(is_all=False)
        screen.update()


def main() -> None:
    from polydev.controller.machines.template_maker import add_tap
    from polydev.controller.machines.template_selection import wanted_template
    from polydev.controller.settings import load_settings
    from polydev.vm.launch import held
    from polydev.vm.template_client import fetch

    wanted = wanted_template(load_settings(CONFIG))
    add_tap()
    memory, state, disk = fetch(wanted.key)
    with held(wanted.config.rootfs.parent) as image:
        for _ in sys.stdin:
            with running(wanted.config, memory, state, disk, image) as resumed:
                print(json.dumps(asdict(resumed)), flush=True)
                sys.stdin.readline()


@contextmanager
def running(config: Any, memory: int, state: int, disk: int, image: int) -> Iterator[Resumed]:
    """Run one more VM of the template for the block."""
    from polydev.host_layout import GUEST_ADDRESS, VNC_PORT
    from polydev.vm import template
    from polydev.vm.config import MemoryFile
    from polydev.vm.qemu_process import start
    from polydev.vm.template_client import DISK, copy_data
    from polydev.vm.untrusted_files import descriptor_path

    with tempfile.TemporaryDirectory(prefix="polydev-bench-") as folder:
        began = time.perf_counter()
        with Path(folder, DISK).open("wb") as copy:
            copy_data(disk, copy.fileno())
        os.lseek(state, 0, os.SEEK_SET)
        private = MemoryFile(descriptor_path(memory), private=True)
        clone = replace(config, vm_id="bare", folder=Path(folder), memory_file=private)
        machine = start(clone, (memory, state, image))
        try:
            asyncio.run(template.load(clone.qmp_socket, state))
            asyncio.run(template.run_on(clone.qmp_socket))
            yield Resumed(*_seen(GUEST_ADDRESS, VNC_PORT, began), machine.pid)
        finally:
            machine.stop()


def _seen(address: str, port: int, began: float) -> tuple[float, float]:
    while True:
        with suppress(OSError), create_connection((address, port), 5) as connection:
            if connection.recv(len(GREETING)) != GREETING:
                continue
            seconds = time.perf_counter() - began
            connection.settimeout(FRAME_SECONDS)
            see_first_frame(Screen(lambda: connection.recv(1 << 20), connection.sendall))
            return seconds, time.perf_counter() - began


class Bare:
    """This program, in a network namespace of its own."""

    def __init__(self, process: Popen[str]) -> None:
        self._process = process

    def resume(self) -> Resumed:
        assert self._process.stdout is not None
        self._say("resume")
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("error: the template could not be resumed without the controller")
        return Resumed(**json.loads(line))

    def stop(self) -> None:
        self._say("stop")

    def timed(self) -> Resumed:
        """Resume a VM and end it; return its times."""
        resumed = self.resume()
        self.stop()
        _until_gone(resumed.pid)
        return resumed

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()


def _until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


@contextmanager
def bare_resumes() -> Iterator[Bare]:
    argv = ["unshare", "--net", sys.executable, "-m", __name__]
    with Popen(argv, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            yield Bare(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


if __name__ == "__main__":
    main()
