"""Bench: boot of the tuned image against an untuned one, and golden.verify against a bare boot.

All three run under the same accelerator, with the same QEMU arguments but for kernel, initrd
and kernel command line.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from polydev.image.build import BuildResult
from polydev.image.image_folder import vm_config
from polydev.image.store import ImageStore
from polydev.image.verify import VerifyOptions, verify
from polydev.image_layout import KERNEL
from polydev.image_record import Verification
from polydev.progress import Steps
from polydev.settings import Settings
from polydev.vm.accelerator import choose_accelerator
from polydev.vm.config import VmConfig
from tests.bench import plain as untuned
from tests.bench.answering import Answering, boot_seconds
from tests.bench.conftest import ROOT, Ratios, quickest
from tests.bench.plain import PlainImage

SPECS = ROOT / "tests" / "spec" / "image"
# As a multiple of a bare boot's time.
VERIFY_LIMIT = 1.5


@pytest.fixture(scope="module")
def golden(settings: Settings, store: ImageStore, cold: BuildResult) -> VmConfig:
    image = store.path(cold.record.digest)
    accelerator = choose_accelerator(image / KERNEL, settings.state / "accelerator.json")
    return vm_config(image, "bench", Path(), accelerator)


@pytest.fixture(scope="module")
def golden_boot(golden: VmConfig) -> Answering:
    return boot_seconds(golden, until_ready=True)


def test_tuned_image_boots_faster_than_untuned(
    ratio: Ratios, golden: VmConfig, golden_boot: Answering, plain: PlainImage
) -> None:
    image = replace(
        golden,
        kernel=plain.kernel,
        initrd=plain.initrd,
        cmdline=untuned.CMDLINE,
        rootfs=plain.rootfs,
    )
    theirs = boot_seconds(image, until_ready=False)
    ratio("tuned-boot/untuned-boot", golden_boot.ports, theirs.ports, limit=0.6)


def test_verification_takes_little_longer_than_a_boot(
    ratio: Ratios,
    settings: Settings,
    store: ImageStore,
    cold: BuildResult,
    golden_boot: Answering,
) -> None:
    assert golden_boot.ready

    def verify_again() -> Verification:
        record = verify(cold.record.digest, settings, store, SPECS, Steps(), VerifyOptions())
        assert record.verification
        assert record.verification.passed
        return record.verification

    good_seconds = VERIFY_LIMIT * golden_boot.ready
    found = quickest(verify_again, lambda verification: verification.seconds, good_seconds)
    ratio("verify/bare-boot", found.seconds, golden_boot.ready, limit=VERIFY_LIMIT)
