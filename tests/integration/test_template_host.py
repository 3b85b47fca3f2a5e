"""A template as a host makes, keeps and hands it out, and the launcher's clones of it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from polydev.errors import VmError
from polydev.image.record import ImageRecord
from polydev.image.store import ImageStore
from polydev.run import Process, end_group, run, spawn
from polydev.vm import template
from polydev.vm.holder import fetch
from polydev.vm.identity import Receipt, new_identity
from polydev.vm.order import CURRENT, ORDER_FILE, Order, order_text
from polydev.vm.scratch import scratch_folder
from polydev.vm.templates import FILES, MEMORY, RECORD, STATE, Templates

NETWORK = 'ip tuntap add dev tap0 mode tap && ip link set tap0 up && exec "$@"'
IN_NAMESPACE = ("unshare", "--net", "sh", "-euc", NETWORK, "network")
LAUNCH = """
import sys
from pathlib import Path
from polydev.vm import holder, launch
launch.ROOT = Path(sys.argv[1])
holder.fetch.__defaults__ = (Path(sys.argv[2]),)
sys.exit(launch.main([sys.argv[3]]))
"""
HOLD = """
import os, sys
from polydev.vm import holder
os.dup2(int(sys.argv[1]), holder.FIRST_DESCRIPTOR)
sys.exit(holder.main(sys.argv[2:]))
"""
SECONDS = 60


@dataclass(frozen=True)
class Host:
    """A store with a golden image and its template, and who hands it out."""

    folder: Path
    made: dict[str, Any]

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def socket(self) -> Path:
        return self.folder / "templates.sock"

    @property
    def templates(self) -> Templates:
        return Templates(self.folder / "store/templates")

    @property
    def key(self) -> str:
        return str(self.made["key"])

    def command(self, *words: str) -> Any:
        argv = ["unshare", "--net", sys.executable, "-m", "polydev.controller", *words]
        return json.loads(run([*argv, "--config", self.config]).stdout)


@dataclass
class Clone:
    folder: Path
    process: Process
    news: bytes

    @property
    def identity_socket(self) -> Path:
        return self.folder / "identity.sock"

    @property
    def qmp_socket(self) -> Path:
        return self.folder / "qmp.sock"

    @property
    def log(self) -> str:
        return (self.folder / "qemu.log").read_text()

    def identify(self, vm_id: str) -> Receipt:
        asyncio.run(template.run_on(self.qmp_socket))
        identity = new_identity(vm_id, None)
        return asyncio.run(template.give_identity(self.identity_socket, identity))


@pytest.fixture(scope="module")
def host(image: ImageRecord, store: ImageStore) -> Iterator[Host]:
    with scratch_folder() as folder, ExitStack() as stack:
        own = folder / "store"
        own.mkdir()
        (own / "images").symlink_to(store.root / "images")
        (own / "golden-rootfs.ext4").symlink_to(f"images/{image.digest}/rootfs.ext4")
        settings = {"image_store": str(own), "log_format": "console", "templates": True}
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        made = Host(folder, {}).command("templates", "build")
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(folder / "templates.sock"))
        listener.listen()
        argv = [sys.executable, "-c", HOLD, listener.fileno(), own / "templates"]
        holder = spawn([str(word) for word in argv], pass_fds=(listener.fileno(),))
        stack.callback(end_group, holder)
        yield Host(folder, made)


@pytest.fixture
def resume(host: Host, image: ImageRecord) -> Iterator[Callable[..., Clone]]:
    """Starts a slot's launcher with the order for a clone; until it has said or given up."""
    with ExitStack() as stack:

        def start(slot: int, key: str = host.key) -> Clone:
            folder = host.folder / str(slot) / f"vm-{slot}"
            folder.mkdir(parents=True)
            order = Order(
                f"vm-{slot}",
                None,
                str(host.folder / "store/images" / image.digest),
                image.digest,
                2,
                2048,
                1024,
                template=key,
            )
            (folder / ORDER_FILE).write_text(order_text(order))
            (folder.parent / CURRENT).symlink_to(folder.name)
            systemd = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            systemd.bind(str(folder / "notify"))
            systemd.settimeout(SECONDS)
            argv = [*IN_NAMESPACE, sys.executable, "-c", LAUNCH, host.folder, host.socket, slot]
            with (folder / "journal").open("wb") as journal:
                process = spawn(
                    [str(word) for word in argv],
                    env={"NOTIFY_SOCKET": str(folder / "notify")},
                    stdout=journal,
                    stderr=journal,
                )
            stack.callback(end_group, process)
            return Clone(folder, process, _heard(systemd, process))

        yield start


def _heard(systemd: socket.socket, process: Process) -> bytes:
    """The first news, which may be that the launcher ended; its barrier is let go."""
    while True:
        systemd.settimeout(1)
        try:
            said = systemd.recv(100)
            _, descriptors, _, _ = socket.recv_fds(systemd, 100, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            return said
        except TimeoutError:
            if process.poll() is not None:
                return b""


def test_a_template_is_made_once_and_whole(host: Host, image: ImageRecord) -> None:
    assert host.made["made"]
    assert host.made["image_digest"] == image.digest
    assert sorted(path.name for path in host.templates.place(host.key).iterdir()) == sorted(
        (*FILES, RECORD)
    )
    again = host.command("templates", "build")
    assert (again["made"], again["key"]) == (False, host.key)
    (listed,) = host.command("templates", "list")
    assert listed["key"] == host.key


def test_clones_come_up_side_by_side_each_as_its_own_vm(
    host: Host, resume: Callable[..., Clone]
) -> None:
    clones = [resume(slot) for slot in (2, 3)]
    assert [clone.news for clone in clones] == [b"READY=1"] * 2, [each.log for each in clones]
    receipts = [clone.identify(f"vm-{slot}") for slot, clone in zip((2, 3), clones, strict=True)]
    assert [receipt.vm_id for receipt in receipts] == ["vm-2", "vm-3"]
    assert receipts[0].random != receipts[1].random


def test_a_key_without_a_template_is_refused_with_the_reason(
    host: Host, resume: Callable[..., Clone]
) -> None:
    clone = resume(4, "0" * 64)
    assert clone.news == b""
    assert "no template from its holder: there is no template 000000000000" in clone.log


def test_a_damaged_template_is_refused_by_its_holder(host: Host, tmp_path: Path) -> None:
    damaged = Templates(host.folder / "store/templates")
    other = "1" * 64
    place = damaged.place(other)
    place.mkdir()
    try:
        for name in (MEMORY, STATE, "disk.qcow2"):
            os.link(damaged.place(host.key) / name, place / name)
        record = {**json.loads((damaged.place(host.key) / RECORD).read_text()), "key": other}
        record["files"][STATE] = "0" * 64
        (place / RECORD).write_text(json.dumps(record))
        with pytest.raises(VmError, match="is damaged: state has another checksum"):
            fetch(other, host.socket)
    finally:
        damaged.remove(other)


def test_what_is_handed_out_cannot_be_written(host: Host) -> None:
    for descriptor in fetch(host.key, host.socket):
        with pytest.raises(PermissionError):
            os.pwrite(descriptor, b"x", 0)
        os.close(descriptor)


def test_an_unreachable_holder_is_told(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="the holder of templates does not answer"):
        fetch("0" * 64, tmp_path / "nobody.sock")
