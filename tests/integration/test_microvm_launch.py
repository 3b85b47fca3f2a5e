"""The program of a VM's unit, with a stand-in for QEMU and a socket in systemd's place."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polydev.run import Process, end_group, run, spawn
from polydev.vm.order import Order, order_text

LAUNCH = """
import sys
from pathlib import Path
from polydev.vm import launch
launch.ROOT = Path(sys.argv[1])
sys.exit(launch.main(["2"]))
"""
# It greets on the socket that it was handed, and says who it is.
QEMU = """#!{python}
import json, os, re, socket, sys
listener = socket.socket(fileno=int(re.search(r"fd=(\\d+)", " ".join(sys.argv))[1]))
print(json.dumps({{"pid": os.getpid(), "notify": os.environ.get("NOTIFY_SOCKET")}}), flush=True)
client, _ = listener.accept()
client.sendall(b'{{"QMP": {{}}}}')
client.recv(1)
listener.accept()
"""
BROKEN_QEMU = """#!/bin/sh
echo 'could not configure /dev/net/tun (tap0)' >&2
exit 3
"""
QEMU_IMG = '#!/bin/sh\nfor disk; do :; done; : >"$disk"\n'
SECONDS = 30


@dataclass
class Slot:
    """A slot's folder with the order for a VM, an image, programs and systemd's socket."""

    root: Path
    systemd: socket.socket

    @property
    def folder(self) -> Path:
        return self.root / "2" / "vm"

    @property
    def lock(self) -> Path:
        return self.root / "image" / "in-use.lock"

    def program(self, name: str, text: str) -> None:
        file = self.root / "bin" / name
        file.write_text(text)
        file.chmod(0o755)

    def launch(self) -> Process:
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        env = {"PATH": path, "NOTIFY_SOCKET": str(self.root / "notify")}
        with (self.root / "journal").open("wb") as journal:
            argv = [sys.executable, "-c", LAUNCH, str(self.root)]
            return spawn(argv, env=env, stdout=journal, stderr=journal)

    def hear(self) -> str:
        """What systemd is told next; a barrier is let go at the end."""
        size = array.array("i", [0]).itemsize
        said, extra, *_ = self.systemd.recvmsg(100, socket.CMSG_SPACE(size))
        for _level, _kind, data in extra:
            os.close(int.from_bytes(data[:size], sys.byteorder))
        return said.decode()

    def said(self, name: str) -> str:
        return (self.root / name).read_text()


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[Slot]:
    for name in ("2/vm", "image", "bin"):
        (tmp_path / name).mkdir(parents=True)
    order = Order("vm", "mine", str(tmp_path / "image"), "d" * 64, 1, 128, 32)
    (tmp_path / "2/vm/launch.json").write_text(order_text(order))
    (tmp_path / "2/current").symlink_to("vm")
    (tmp_path / "image/cmdline").write_text("root=/dev/vda")
    (tmp_path / "image/in-use.lock").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(SECONDS)
        slot = Slot(tmp_path, systemd)
        slot.program("qemu-img", QEMU_IMG)
        yield slot


def is_held(lock: Path, wait_seconds: int = 0) -> bool:
    words = ("--wait", str(wait_seconds))
    return run(["flock", *words, lock, "true"], check=False).status != 0


def is_let_go(lock: Path) -> bool:
    """Whether it comes free: who has told systemd ends beside the VM, with the lock in hand."""
    return not is_held(lock, SECONDS)


def test_it_becomes_qemu_and_systemd_hears_when_that_is_ready(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", QEMU.format(python=sys.executable))
    process = slot.launch()
    try:
        assert [slot.hear(), slot.hear()] == ["READY=1", "BARRIER=1"]
        known = json.loads((slot.folder / "qemu.log").read_text())
        assert known == {"pid": process.pid, "notify": None}
        assert (slot.folder / "disk.qcow2").exists()
        assert is_held(slot.lock)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        assert children == "", "somebody stays beside it"
    finally:
        end_group(process)
    assert is_let_go(slot.lock)


def test_a_qemu_that_ends_ends_the_unit_and_its_words_are_kept(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", BROKEN_QEMU)
    assert slot.launch().wait(SECONDS) == 3
    words = "could not configure /dev/net/tun (tap0)\n"
    assert (slot.folder / "qemu.log").read_text() == words
    slot.systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        slot.hear()
    assert is_let_go(slot.lock)


def test_a_qemu_that_is_killed_before_it_greets(slot: Slot) -> None:
    slot.program("qemu-system-x86_64", "#!/bin/sh\nkill -9 $$\n")
    assert slot.launch().wait(SECONDS) == -signal.SIGKILL


def test_no_qemu(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert slot.launch().wait(SECONDS) == 1
    assert "program not found: qemu-system-x86_64" in slot.said("2/vm/qemu.log")


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("image/cmdline", "image dddddddddddd is not there"),
        ("image/in-use.lock", "in-use.lock"),
        ("2/vm/launch.json", "launch.json cannot be read"),
    ],
)
def test_what_is_missing_is_said_to_both(slot: Slot, gone: str, words: str) -> None:
    (slot.root / gone).unlink()
    assert slot.launch().wait(SECONDS) == 1
    assert words in slot.said("journal")
    assert words in slot.said("2/vm/qemu.log")


def test_a_slot_that_names_no_vm(slot: Slot) -> None:
    (slot.root / "2/current").unlink()
    assert slot.launch().wait(SECONDS) == 1
    assert f"{slot.root}/2 names no VM" in slot.said("journal")
