"""The image that `./inv up` verified by a cold boot and all specs, and the stored evidence."""

from __future__ import annotations

from typing import Any

import pytest

from polydev.image.store import ImageStore
from polydev.image.verify import SCREENSHOT, SERIAL_LOG
from polydev.image_record import ImageRecord, Verification
from polydev.vm.boot_stages import STAGES
from tests.inv import Inv

pytestmark = pytest.mark.integration

A_SPEC_OF_EACH_PHASE = {"test_root_has_no_password", "test_no_unit_failed", "test_vnc_speaks_rfb"}


@pytest.fixture(scope="module")
def images(main_inv: Inv) -> ImageStore:
    return ImageStore(main_inv.settings.store)


@pytest.fixture(scope="module")
def record(images: ImageStore, up: dict[str, Any]) -> ImageRecord:
    return images.record(up["image"])


@pytest.fixture(scope="module")
def verification(record: ImageRecord) -> Verification:
    assert record.verification is not None
    return record.verification


def test_verification_passed(verification: Verification) -> None:
    assert verification.passed
    assert verification.cause is None


def test_every_boot_stage_is_timed(verification: Verification) -> None:
    timings = verification.boot_timings_seconds
    assert verification.stage_reached == "ready"
    assert set(timings) == set(STAGES) - {"none"}
    # The network and the services come up side by side; the others follow each other.
    assert timings["kernel"] <= timings["init"] <= timings["network"] <= timings["ready"]
    assert timings["init"] <= timings["services"] <= timings["ready"] <= verification.seconds


def test_specs_of_all_phases_passed(verification: Verification) -> None:
    assert {spec.outcome for spec in verification.specs} == {"passed"}
    assert {spec.name for spec in verification.specs} >= A_SPEC_OF_EACH_PHASE


def test_evidence_is_kept(main_inv: Inv, record: ImageRecord) -> None:
    evidence = main_inv.settings.state / "verify" / record.digest[:12]
    assert "polydev: ready after" in (evidence / SERIAL_LOG).read_text()
    assert (evidence / SCREENSHOT).read_bytes().startswith(b"\x89PNG")


def test_verified_image_is_promoted(images: ImageStore, record: ImageRecord) -> None:
    assert images.golden() == record.digest
    assert images.golden_link.resolve().parent == images.path(record.digest).resolve()
