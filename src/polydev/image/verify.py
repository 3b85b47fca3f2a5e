"""golden.verify: boot an image, run all specs against it, and write the result into its record.

Three things run at the same time: the stored files are compared with their checksums, the specs
of the image at rest run on its filesystem, mounted read-only, and the image boots with a fresh
overlay.
Once the guest is ready, the specs of the running guest follow: inside over the test console, and
outside over its ports.

If the machine gave the VM too little CPU time for a verdict, nothing is recorded.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from polydev.errors import (
    BootError,
    CommandError,
    CommandTimeout,
    ConfigError,
    ImageError,
    MachineBusy,
    SpecError,
    SpecTimeout,
    VmError,
)
from polydev.file_checksum import file_sha256
from polydev.image.boot import Boot, wait_until_ready
from polydev.image.image_folder import REBUILD_HINT, vm_config
from polydev.image.sandbox import contained_argv
from polydev.image.screenshot import take_screenshot
from polydev.image.store import ImageStore
from polydev.image_layout import BOOT_FILES, KERNEL, ROOTFS
from polydev.image_record import ImageRecord, SpecResult, Verification
from polydev.processes import run
from polydev.progress import Steps
from polydev.settings import Settings
from polydev.vm.accelerator import choose_accelerator
from polydev.vm.boot_stages import last_lines
from polydev.vm.config import Ports, VmConfig
from polydev.vm.cpu_wait_time import CpuWait
from polydev.vm.qemu_process import Machine, start
from polydev.vm.temp_folders import temp_folder

log = logging.getLogger(__name__)

# On a machine without other work; on a busy one a boot may take up to four times as long.
DEADLINE_SECONDS = {"kvm": 60.0, "tcg": 240.0}
SPEC_TIMEOUT_SECONDS = 300.0
# A guest that has not started its VNC server may have no screen.
VNC_GREETING_SECONDS = 5.0
STARTED_VNC_GREETING_SECONDS = 60.0
SERIAL_LOG = "serial.log"
SCREENSHOT = "screenshot.png"

# Programs that specs start read /proc, and may write to /tmp, which is gone with the mount.
_MOUNT_ROOTFS = """
mount -o ro,loop,noload "$1" "$2"
# If these folders are missing or are links, the specs report that.
is_folder() { [ -d "$1" ] && [ ! -L "$1" ]; }
if is_folder "$2/proc"; then mount -t proc proc "$2/proc"; fi
if is_folder "$2/tmp"; then mount -t tmpfs -o mode=1777 tmp "$2/tmp"; fi
shift 2
exec "$@"
"""


@dataclass(frozen=True)
class VerifyOptions:
    """`deadline_seconds` is None for the default of the accelerator."""

    deadline_seconds: float | None = None
    cpus: int = 2
    memory_mib: int = 2048


def verify(
    digest: str,
    settings: Settings,
    store: ImageStore,
    specs: Path,
    steps: Steps,
    options: VerifyOptions,
) -> ImageRecord:
    """Verify an image and return its record with the verification in it.

    Raises SpecError, BootError or ImageError, each with the cause. A failed verification is
    recorded, too; serial log and screenshot are kept below `settings.state`. Raises MachineBusy,
    and leaves the record as it was, if the machine was too busy for a verdict.
    """
    if not specs.is_dir():
        raise ConfigError(f"no specs at {specs}", "run this in a complete checkout")
    record = store.record(digest)
    evidence = settings.state / "verify" / digest[:12]
    shutil.rmtree(evidence, ignore_errors=True)
    try:
        evidence.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(
            f"cannot remove the results of an earlier verification in {evidence}",
            "verify as the user who owns that folder, usually root",
        ) from error
    image = store.path(digest)
    accelerator = choose_accelerator(image / KERNEL, settings.state / "accelerator.json")
    started = time.monotonic()
    with store.hold(digest) as hold, temp_folder() as folder:
        config = replace(
            vm_config(image, f"verify-{digest[:8]}", folder, accelerator),
            cpus=options.cpus,
            memory_mib=options.memory_mib,
            test_console=True,
        )
        attempt = _Attempt(record, image, specs, evidence, steps)
        deadline = options.deadline_seconds or DEADLINE_SECONDS[accelerator]
        fault = attempt.run(config, hold.fileno(), deadline)
    verification = Verification(
        at=datetime.now(timezone.utc),
        passed=fault is None,
        cause=fault.message if fault else None,
        hypervisor=qemu_version(),
        accelerator=accelerator,
        stage_reached=attempt.boot.stage if attempt.boot else "none",
        boot_timings_seconds=attempt.boot.timings if attempt.boot else {},
        specs=attempt.results,
        seconds=round(time.monotonic() - started, 2),
    )
    verified = record.model_copy(update={"verification": verification})
    store.write_record(verified)
    if fault is not None:
        fault.hint = fault.hint or f"serial log, screenshot and spec reports are in {evidence}"
        raise fault
    return verified


class _Attempt:
    """One running verification and its results so far."""

    def __init__(
        self, record: ImageRecord, image: Path, specs: Path, evidence: Path, steps: Steps
    ) -> None:
        self.record = record
        self.image = image
        self.specs = specs
        self.evidence = evidence
        self.steps = steps
        self.results: list[SpecResult] = []
        self.boot: Boot | None = None
        self.damage: ImageError | None = None
        self.wait = CpuWait()

    def run(self, config: VmConfig, hold: int, deadline_seconds: float) -> ImageError | None:
        """Run all checks of the image and return the fault that they found, or None.

        Raises MachineBusy.
        """
        with ThreadPoolExecutor(2) as pool:
            sums = pool.submit(self._check_sums)
            at_rest = pool.submit(_fault_of, lambda: self._run_offline(config.folder))
            booted = _fault_of(lambda: self._run_booted(config, hold, deadline_seconds))
            sums.result()
            # A damaged file explains all other faults. Otherwise the faults of the image at rest
            # come first, since they explain the faults of the boot.
            return self.damage or image_fault([at_rest.result(), booted], self.wait)

    def _check_sums(self) -> None:
        """Note the first file whose checksum is not the record's."""
        for name in BOOT_FILES:
            found, expected = file_sha256(self.image / name), self.record.files[name].sha256
            if found != expected:
                self.damage = ImageError(
                    f"{name} is damaged: its SHA-256 is {found[:12]}…, not {expected[:12]}…",
                    REBUILD_HINT,
                )
                return

    def _run_offline(self, folder: Path) -> None:
        at = folder / "rootfs"
        at.mkdir()
        # In a separate mount namespace, so that the mount ends with the specs.
        mounted = ["sh", "-eu", "-c", _MOUNT_ROOTFS, "mount", str(self.image / ROOTFS), str(at)]
        self._specs("offline", [f"--hosts=chroot://{at}"], contained_argv(mounted))

    def _run_booted(self, config: VmConfig, hold: int, deadline_seconds: float) -> None:
        machine = start(config, pass_fds=(hold,))
        self.boot = Boot(machine)
        try:
            with self.steps.step(f"boot ({config.accelerator})") as step:
                wait_until_ready(
                    self.boot,
                    deadline_seconds,
                    lambda stage: step.say(f"stage {stage} after {self.boot_seconds()} s"),
                    lambda: self.damage.message if self.damage else None,
                    lambda wait: self.steps.note(f"the machine is busy: {wait}"),
                )
            watch = machine.watch_cpu()
            with self.steps.step("specs of the running guest"), ThreadPoolExecutor(2) as pool:
                ports = machine.config.ports
                console = f"--hosts=console://{machine.config.console_socket}"
                guest = f"--guest-ports={ports.host}:{ports.agent},{ports.vnc},{ports.novnc}"
                inside = pool.submit(_fault_of, lambda: self._specs("booted", [console]))
                outside = pool.submit(_fault_of, lambda: self._specs("outside", [guest]))
                faults = [inside.result(), outside.result()]
                self.wait = watch.total()
                fault = image_fault(faults, self.wait)
                if fault is not None:
                    raise fault
        except BootError:
            tail = "\n  ".join(last_lines(machine.serial()))
            self.steps.note(f"last lines of the serial console:\n  {tail}")
            raise
        finally:
            try:
                self._keep(machine)
            finally:
                machine.stop()

    def boot_seconds(self) -> float:
        return round(self.boot.elapsed(), 1) if self.boot else 0.0

    def _keep(self, machine: Machine) -> None:
        """Save the text of the serial console and, if there is a screen, a screenshot."""
        (self.evidence / SERIAL_LOG).write_text(machine.serial())
        stage = self.boot.stage if self.boot is not None else "none"
        has_screen = stage in ("services", "ready")
        seconds = STARTED_VNC_GREETING_SECONDS if has_screen else VNC_GREETING_SECONDS
        has_started = stage not in ("none", "kernel")
        if has_started and machine.alive() and _vnc_greets(machine.config.ports, seconds):
            take_screenshot(machine.config.ports, self.evidence / SCREENSHOT)

    def _specs(self, phase: str, options: Sequence[str], wrapper: Sequence[str] = ()) -> None:
        """Run the specs of a phase in a separate pytest process. Raises SpecError."""
        report = self.evidence / f"specs-{phase}.json"
        argv = [*wrapper, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        argv += ["-p", "testinfra.plugin", "-p", "polydev.image.pytest_spec_plugin"]
        argv += ["-c", "/dev/null", f"--confcutdir={self.specs}", "-m", phase]
        argv += [f"--spec-report={report}", *options]
        argv += map(str, sorted(self.specs.glob(f"test_{phase}*.py")))
        # Loading plugins that no spec uses would take each process part of a second.
        alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = run(argv, timeout_seconds=SPEC_TIMEOUT_SECONDS, env=alone, check=False)
        if not report.exists():
            raise SpecError(
                f"the {phase} specs could not run: {(done.stderr or done.stdout)[-800:]}"
            )
        reported = json.loads(report.read_text())
        timed_out = {each["name"] for each in reported if each.pop("timed_out")}
        results = [SpecResult(**each) for each in reported]
        self.results += results
        # A skipped spec has checked nothing.
        failed = [result for result in results if result.outcome != "passed"]
        if failed:
            shown = "; ".join(f"{result.message} ({result.name})" for result in failed[:3])
            more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
            count = "1 spec" if len(failed) == 1 else f"{len(failed)} specs"
            kind = SpecTimeout if {each.name for each in failed} <= timed_out else SpecError
            raise kind(f"{count} failed: {shown}{more}")
        if done.status != 0 or not results:
            raise SpecError(
                f"the {phase} specs ended with status {done.status}: {done.stdout[-800:]}"
            )


def _fault_of(check: Callable[[], None]) -> ImageError | MachineBusy | None:
    """Run a check of the image and return the fault that it raised, if any."""
    try:
        check()
    except (ImageError, MachineBusy) as error:
        return error
    except CommandTimeout as error:
        return SpecTimeout(error.message, error.hint)
    except CommandError as error:
        return SpecError(error.message, error.hint)
    except VmError as error:
        return BootError(error.message, error.hint)
    return None


def image_fault(
    faults: Sequence[ImageError | MachineBusy | None], wait: CpuWait
) -> ImageError | None:
    """Join several faults into one with all messages, and the kind and hint of the first.

    Raises MachineBusy if the VM's wait for a CPU may explain all of them.
    """
    busy = next((fault for fault in faults if isinstance(fault, MachineBusy)), None)
    found = [fault for fault in faults if isinstance(fault, ImageError)]
    if all(isinstance(fault, SpecTimeout) for fault in found):
        if busy:
            raise busy
        if found and wait.is_busy:
            raise MachineBusy("; ".join(fault.message for fault in found), wait)
    if found:
        found[0].message = "; ".join(fault.message for fault in found)
        found[0].args = (found[0].message,)
    return found[0] if found else None


def _vnc_greets(ports: Ports, seconds: float) -> bool:
    """Whether the VNC server answers: QEMU accepts the connection even if no guest listens."""
    try:
        with socket.create_connection((ports.host, ports.vnc), seconds) as client:
            return bool(client.recv(12))
    except OSError:
        return False


def qemu_version() -> str:
    return run(["qemu-system-x86_64", "--version"]).stdout.splitlines()[0]
