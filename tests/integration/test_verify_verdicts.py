"""Verdicts of verifications: faults of the image against a machine that is too busy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from polydev.errors import BootError, Error, ImageError, MachineBusy, SpecError, SpecTimeout
from polydev.file_checksum import file_sha256
from polydev.image import verify
from polydev.image.verify import _Attempt, image_fault
from polydev.image_layout import BOOT_FILES
from polydev.image_record import FileEntry
from polydev.processes import run
from polydev.progress import Steps
from polydev.vm.cpu_wait_time import CpuWait

QUIET, BUSY = CpuWait(60, 3), CpuWait(60, 43)
STARVED = MachineBusy("the guest was not ready by then, stage reached: init", BUSY)


@pytest.mark.parametrize(
    ("faults", "wait", "kind"),
    [
        ([None, SpecTimeout("slow")], QUIET, SpecError),
        ([None, SpecTimeout("slow")], BUSY, MachineBusy),
        ([SpecTimeout("slow"), SpecTimeout("slow")], BUSY, MachineBusy),
        ([None, SpecError("wrong")], BUSY, SpecError),
        ([SpecTimeout("slow"), SpecError("wrong")], BUSY, SpecError),
        ([None, STARVED], QUIET, MachineBusy),
        ([SpecTimeout("slow"), STARVED], QUIET, MachineBusy),
        ([SpecError("wrong at rest"), STARVED], BUSY, SpecError),
        ([None, BootError("kernel panic")], BUSY, BootError),
    ],
)
def test_image_fault_or_busy_machine(
    faults: list[ImageError | MachineBusy | None], wait: CpuWait, kind: type[Error]
) -> None:
    try:
        found: Error | None = image_fault(faults, wait)
    except MachineBusy as error:
        found = error
    assert isinstance(found, kind)
    if kind is MachineBusy:
        assert "the VM waited 43 s of 60 s for a CPU" in found.message


def test_sound_image_has_no_fault() -> None:
    assert image_fault([None, None], BUSY) is None


SPECS = """
import asyncio, socket, pytest
from polydev import http_client
from polydev.errors import VmTimeout

@pytest.fixture
def console():
    raise VmTimeout("the test console did not answer within 30 s")

def test_passes(): pass
def test_wrong(): assert 1 == 2
def test_console(console): pass
def test_socket():
    server = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(server.getsockname(), timeout=0.01) as client:
        client.recv(1)
def test_http():
    server = socket.create_server(("127.0.0.1", 0))
    http_client.get(f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_seconds=0.01)
def test_asyncio():
    asyncio.run(asyncio.wait_for(asyncio.sleep(9), 0.01))
"""


def test_timed_out_specs_are_distinguished_from_failed_ones(tmp_path: Path) -> None:
    (tmp_path / "test_specs.py").write_text(SPECS)
    report = tmp_path / "report.json"
    argv = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider"]
    argv += [
        "-p",
        "testinfra.plugin",
        "-p",
        "polydev.image.pytest_spec_plugin",
        f"--spec-report={report}",
    ]
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    run([*argv, str(tmp_path)], cwd=tmp_path, env=alone, check=False)
    told = {each["name"]: each["timed_out"] for each in json.loads(report.read_text())}
    assert told == {
        "test_passes": False,
        "test_wrong": False,
        "test_console": True,
        "test_socket": True,
        "test_http": True,
        "test_asyncio": True,
    }


RUNS = {
    "passes": "def test_it(): pass",
    "fails": "def test_it(): assert False, 'port 8080 is closed'",
    "gives no reason": "def test_it(): assert 1 == 2",
    "lacks a key": "def test_it(): {}['failing']",
    "takes too long": "def test_it(): raise TimeoutError('the screen stays blank for 60 s')",
    "skips": "def test_it(): pytest.skip('no browser here')",
    "may fail": "@pytest.mark.xfail\ndef test_it(): assert False",
    "breaks": "import pytest\n@pytest.fixture\ndef guest(): 1 / 0\ndef test_it(guest): pass",
    "cannot be read": "def test_it(:",
    "has none": "",
}


@pytest.mark.parametrize("how", RUNS)
def test_skipped_or_failed_specs_are_a_fault(how: str, tmp_path: Path) -> None:
    specs, evidence = tmp_path / "specs", tmp_path / "evidence"
    specs.mkdir()
    evidence.mkdir()
    mark = "import pytest\npytestmark = pytest.mark.offline\n"
    (specs / "test_offline.py").write_text(mark + RUNS[how] + "\n")
    attempt = _Attempt(cast(Any, None), tmp_path, specs, evidence, Steps())
    if how == "passes":
        attempt._specs("offline", [])
        assert [(result.name, result.outcome) for result in attempt.results] == [
            ("test_it", "passed")
        ]
        return
    with pytest.raises(SpecError) as fault:
        attempt._specs("offline", [])
    said = {
        "fails": "port 8080 is closed",
        "gives no reason": "the spec gives no reason, only: assert 1 == 2",
        "lacks a key": "the spec could not be checked: KeyError: 'failing'",
        "takes too long": "the screen stays blank for 60 s",
        "skips": "skipped: no browser here",
    }
    if how in said:
        assert fault.value.message == f"1 spec failed: {said[how]} (test_it)"


@pytest.mark.parametrize("damaged", [None, *BOOT_FILES])
def test_damaged_image_file_is_the_reported_fault(
    damaged: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for name in BOOT_FILES:
        (tmp_path / name).write_text(name)
        files[name] = FileEntry(
            sha256=file_sha256(tmp_path / name), size_bytes=1, allocated_bytes=1
        )
    if damaged:
        (tmp_path / damaged).write_text("else")

    def wrong(*_words: object) -> None:
        raise SpecError("wrong")

    monkeypatch.setattr(_Attempt, "_run_offline", wrong)
    monkeypatch.setattr(_Attempt, "_run_booted", wrong)
    record = cast(Any, SimpleNamespace(files=files))
    attempt = _Attempt(record, tmp_path, tmp_path, tmp_path, Steps())
    fault = attempt.run(cast(Any, SimpleNamespace(folder=tmp_path)), 0, 1)
    assert fault is not None
    assert fault.message.startswith(f"{damaged} is damaged:" if damaged else "wrong")


@pytest.mark.parametrize(("stage", "seconds"), [("init", 5.0), ("services", 60.0), ("ready", 60.0)])
def test_screen_of_guest_with_vnc_gets_longer_for_its_greeting(
    stage: str, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image that starts its desktop has a screenshot, also on a machine that is busy."""
    kept = []
    monkeypatch.setattr(verify, "_vnc_greets", lambda _, within: within == seconds)
    monkeypatch.setattr(verify, "take_screenshot", lambda _, file: kept.append(file))
    attempt = _Attempt(cast(Any, None), tmp_path, tmp_path, tmp_path, Steps())
    attempt.boot = cast(Any, SimpleNamespace(stage=stage))
    config = SimpleNamespace(ports=None)
    machine = SimpleNamespace(serial=lambda: "", alive=lambda: True, config=config)
    attempt._keep(cast(Any, machine))
    assert kept == [tmp_path / "screenshot.png"]
