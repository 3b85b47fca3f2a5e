"""A killed verification: its VM ends with it, and the image can be used at once."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import polydev
from polydev.image.boot import Boot, wait_until_ready
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image_record import ImageRecord
from polydev.processes import spawn
from polydev.settings import Settings
from polydev.vm.qemu_process import start
from polydev.vm.temp_folders import abandoned_temp_folders
from tests.hosts import ROOT
from tests.quickvm import MEMORY_MIB, make_quick_image

pytestmark = pytest.mark.integration

SOURCE = str(Path(polydev.__file__).parent.parent)
SPECS = ROOT / "tests" / "spec" / "image"
DEADLINE_SECONDS = 300.0
POLL_SECONDS = 0.05

VERIFY = """
import sys
from pathlib import Path
from polydev.image.store import ImageStore
from polydev.image.verify import VerifyOptions, verify
from polydev.progress import Steps
from polydev.settings import Settings

digest, store, cache, state, specs, memory = sys.argv[1:]
settings = Settings(Path(store), Path(cache), Path(state))
options = VerifyOptions(memory_mib=int(memory))
verify(digest, settings, ImageStore(settings.store), Path(specs), Steps(), options)
"""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files of the test's own, with a short path."""
    with tempfile.TemporaryDirectory(prefix="k-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def pids_that_name(text: str) -> list[int]:
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if os.fsencode(text) in line.read_bytes():
                found.append(int(line.parent.name))
    return found


def wait_for_machine(verification: subprocess.Popen[bytes], name: str) -> list[int]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (pids := pids_that_name(name)):
        assert verification.poll() is None, "the verification ended by itself"
        assert time.monotonic() < deadline, "no VM was started"
        time.sleep(POLL_SECONDS)
    return pids


def test_killed_verification_ends_its_vm_and_releases_the_image(
    settings: Settings, store: ImageStore, image: ImageRecord, tmp_path: Path, temporary: Path
) -> None:
    golden = store.path(image.digest)
    quick = make_quick_image(golden, tmp_path / "store/images")
    own = ImageStore(tmp_path / "store")
    state = tmp_path / "state"
    state.mkdir()
    known = settings.state / "accelerator.json"
    if known.exists():
        shutil.copy(known, state)
    places = (own.root, settings.cache, state, SPECS)
    words = [sys.executable, "-c", VERIFY, quick.name, *map(str, places), str(MEMORY_MIB)]
    environment = {"PYTHONPATH": SOURCE, "TMPDIR": str(temporary)}
    verification = spawn(words, env=environment, stderr=subprocess.DEVNULL)
    (machine, *others) = wait_for_machine(verification, f"polydev-verify-{quick.name[:8]}")
    assert others == []
    assert own.in_use(quick.name)
    watched = os.pidfd_open(machine)
    verification.send_signal(signal.SIGKILL)
    verification.wait()
    try:
        assert select.select([watched], [], [], DEADLINE_SECONDS)[0], "QEMU outlived its parent"
    finally:
        os.close(watched)
    assert not own.in_use(quick.name)
    (scratch,) = abandoned_temp_folders(remove=True)
    assert scratch.parent == temporary
    assert own.record(quick.name).verification.passed  # type: ignore[union-attr]

    config = replace(
        vm_config(quick, "again", tmp_path / "again", "tcg"), cpus=1, memory_mib=MEMORY_MIB
    )
    again = start(config)
    try:
        wait_until_ready(Boot(again), DEADLINE_SECONDS, lambda stage: None)
    finally:
        again.stop()
