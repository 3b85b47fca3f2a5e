"""The sound image: verified by a cold boot and all specs, then promotable; no shell in use."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev import local
from polydev.image.record import ImageRecord, Verification
from polydev.image.store import ImageStore
from polydev.image.verify import SCREENSHOT, SERIAL_LOG
from polydev.settings import Settings
from polydev.vm.health import agent_health
from polydev.vm.stages import STAGES

pytestmark = pytest.mark.integration

A_SPEC_OF_EACH_PHASE = {"test_root_has_no_password", "test_no_unit_failed", "test_vnc_speaks_rfb"}


@pytest.fixture(scope="module")
def verification(verified_image: ImageRecord) -> Verification:
    assert verified_image.verification is not None
    return verified_image.verification


def test_verification_is_in_the_record(
    verified_image: ImageRecord, verification: Verification, store: ImageStore
) -> None:
    assert verification.passed
    assert verification.cause is None
    assert store.record(verified_image.digest).verification == verification


def test_every_stage_is_timed(verification: Verification) -> None:
    timings = verification.boot_timings_seconds
    assert verification.stage_reached == "ready"
    assert set(timings) == set(STAGES) - {"none"}
    # The network and the services come up side by side; the others follow each other.
    assert timings["kernel"] <= timings["init"] <= timings["network"] <= timings["ready"]
    assert timings["init"] <= timings["services"] <= timings["ready"] <= verification.seconds


def test_specs_of_all_phases_passed(verification: Verification) -> None:
    assert {spec.outcome for spec in verification.specs} == {"passed"}
    assert {spec.name for spec in verification.specs} >= A_SPEC_OF_EACH_PHASE


def test_evidence_is_kept(verified_image: ImageRecord, settings: Settings) -> None:
    evidence = settings.state / "verify" / verified_image.digest[:12]
    assert "polydev: ready after" in (evidence / SERIAL_LOG).read_text()
    assert (evidence / SCREENSHOT).read_bytes().startswith(b"\x89PNG")


def test_verified_image_is_promoted(verified_image: ImageRecord, store: ImageStore) -> None:
    store.promote(verified_image.digest)
    assert store.golden() == verified_image.digest
    assert store.golden_link.resolve().parent == store.path(verified_image.digest).resolve()


@pytest.fixture(scope="module")
def vm(
    verified_image: ImageRecord, settings: Settings, store: ImageStore
) -> Iterator[local.LocalVm]:
    """A VM as it is in use, not under test."""
    vm, _ = local.bring_up(verified_image.digest, settings, store, lambda stage: None)
    yield vm
    local.take_down(settings)


def test_vm_in_use_is_ready(vm: local.LocalVm, verified_image: ImageRecord) -> None:
    status, body = agent_health(vm.config.ports)
    assert (status, body["status"]) == (200, "ready")
    assert body["image_digest"] == verified_image.digest


def test_vm_in_use_has_no_test_console(vm: local.LocalVm) -> None:
    # In the guest: nobody asked systemd for a shell, and it started none.
    serial = vm.machine.serial()
    assert "Kernel command line:" in serial
    assert "debug_shell" not in serial
    assert "debug-shell" not in serial
    # Outside: QEMU has its own monitor and the log's serial port, and no other.
    assert not vm.config.console_socket.exists()
    devices = {device["label"] for device in _ask_qemu(vm.config.qmp_socket, "query-chardev")}
    assert devices == {"qmp", "serial0"}


def _ask_qemu(path: Path, command: str) -> list[dict[str, str]]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with client.makefile("rw") as stream:
            stream.readline()  # the greeting
            for word in ("qmp_capabilities", command):
                stream.write(json.dumps({"execute": word}) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
    assert "return" in answer, answer
    found: list[dict[str, str]] = answer["return"]
    return found
