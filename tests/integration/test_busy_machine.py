"""On a busy machine a VM is slow, which is not blamed on its image.

Real VMs with the smallest guest: all threads of QEMU share one CPU with processes that never
rest, so the VM gets a known part of it at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.errors import BootError, MachineBusy
from polydev.image import verify as verify_module
from polydev.image.boot import Boot, wait_until_ready
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image.verify import VerifyOptions, verify
from polydev.image_layout import BOOT_FILES, CMDLINE, INITRD, KERNEL, ROOTFS
from polydev.image_record import ImageRecord
from polydev.processes import end_group, run, spawn
from polydev.progress import Steps
from polydev.settings import Settings
from polydev.vm.config import VmConfig
from polydev.vm.cpu_wait_time import CpuWait
from polydev.vm.qemu_process import Machine, start
from tests.quickguest import cpio_archive
from tests.quickvm import MEMORY_MIB, golden_parts, make_quick_image, quick_record

pytestmark = pytest.mark.usefixtures("nothing_left")

BURNS = "while :; do :; done"
SLEEPS = "/bin/busybox sleep 1000000000"
A_SPEC = "import pytest\n\npytestmark = pytest.mark.offline\n\n\ndef test_nothing() -> None: ...\n"


@contextmanager
def busy_cpu(processes: int) -> Iterator[int]:
    """A CPU on which so many processes never rest, each of a session of its own.

    By that each is given as much of it as a VM, whether the kernel shares it out among
    processes or among sessions.
    """
    cpu = max(os.sched_getaffinity(0))
    with ExitStack() as ended:
        for _ in range(processes):
            process = spawn(["/bin/sh", "-c", BURNS])
            ended.callback(end_group, process)
            os.sched_setaffinity(process.pid, {cpu})
        yield cpu


def start_on(
    cpu: int, config: VmConfig, pass_fds: tuple[int, ...] = (), *, first: bool = False
) -> Machine:
    """A VM whose threads all run on one CPU, `first` before everybody else's."""
    small = replace(config, cpus=1, memory_mib=MEMORY_MIB, test_console=False)
    machine = start(small, pass_fds)
    for task in Path(f"/proc/{machine.pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {cpu})
            if first:
                os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))
    return machine


def boot(image: Path, folder: Path, cpu: int, deadline_seconds: float) -> tuple[Boot, CpuWait]:
    """Boot it until it is ready."""
    boot = Boot(start_on(cpu, vm_config(image, "vm-1", folder, "tcg")))
    try:
        wait_until_ready(boot, deadline_seconds, lambda stage: None)
        return boot, boot.cpu.total()
    finally:
        boot.machine.stop()


def test_vm_with_part_of_a_cpu_becomes_ready(
    store: ImageStore, image: ImageRecord, tmp_path: Path
) -> None:
    quick = make_quick_image(store.path(image.digest), tmp_path)
    with busy_cpu(0) as cpu:
        _, alone = boot(quick, tmp_path / "alone", cpu, 60)
    # By the clock it takes four times as long with three others, and so far over the deadline; a
    # CPU that shares its core with a busy one takes longer for the same, too.
    deadline_seconds = 2.4 * alone.undisturbed_seconds
    with busy_cpu(3) as cpu:
        booted, wait = boot(quick, tmp_path / "busy", cpu, deadline_seconds)
    assert booted.stage == "ready"
    assert wait.seconds > deadline_seconds
    assert wait.undisturbed_seconds < deadline_seconds


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("specs")
    (folder / "test_offline.py").write_text(A_SPEC)
    return folder


@pytest.fixture
def hanging(
    store: ImageStore, image: ImageRecord, tmp_path: Path, request: pytest.FixtureRequest
) -> ImageRecord:
    """An image that was never verified, whose guest does nothing but run this command."""
    golden = store.path(image.digest)
    parts = golden_parts(golden)
    init = f"#!/bin/busybox sh\necho 'Welcome to nothing!'\n{request.param}\n"
    with store.new_incoming() as made:
        os.link(parts.kernel, made / KERNEL)
        files = {"init": init.encode(), "bin/busybox": parts.busybox}
        (made / INITRD).write_bytes(cpio_archive(files))
        quick = make_quick_image(golden, tmp_path)
        (made / CMDLINE).write_text((quick / CMDLINE).read_text())
        with (made / ROOTFS).open("wb") as disk:
            disk.truncate(4 << 20)
        run(["mkfs.ext4", "-q", made / ROOTFS])
        record = quick_record(made, parts.kernel_version, "hanging")
        record = record.model_copy(update={"verification": None})
        store.add(made, record)
    assert set(record.files) == set(BOOT_FILES)
    return record


@pytest.mark.parametrize("hanging", [BURNS], indirect=True)
def test_verify_on_busy_machine_does_not_fail_the_image(
    hanging: ImageRecord,
    settings: Settings,
    store: ImageStore,
    specs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with busy_cpu(9) as cpu:
        monkeypatch.setattr(
            verify_module, "start", lambda config, pass_fds: start_on(cpu, config, pass_fds)
        )
        with pytest.raises(MachineBusy) as error:
            verify(hanging.digest, settings, store, specs, Steps(), VerifyOptions(2))
    assert "the machine is too busy: the VM waited" in error.value.message
    assert store.record(hanging.digest).verification is None


@pytest.mark.parametrize("hanging", [BURNS, SLEEPS], indirect=True, ids=["burns", "sleeps"])
def test_verify_of_hanging_guest_fails_the_image(
    hanging: ImageRecord,
    settings: Settings,
    store: ImageStore,
    specs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start_first(config: VmConfig, pass_fds: tuple[int, ...]) -> Machine:
        return start_on(max(os.sched_getaffinity(0)), config, pass_fds, first=True)

    monkeypatch.setattr(verify_module, "start", start_first)
    with pytest.raises(BootError, match="not ready within 4 s"):
        verify(hanging.digest, settings, store, specs, Steps(), VerifyOptions(4))
    verification = store.record(hanging.digest).verification
    assert verification is not None
    assert not verification.passed
    assert "not ready within 4 s" in (verification.cause or "")
