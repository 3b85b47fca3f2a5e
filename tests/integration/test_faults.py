"""Faulty images are refused in time, with the cause, and the golden link does not change.

Each fault is a recipe in tests/faults, a variant of sound.yaml there: the browser VM with
stand-ins for its providers, so that nothing but the fault is wrong with it. Faults that have
nothing to do with the desktop are variants of headless.yaml, and those of a desktop whose browser
does not matter of without-browser.yaml: they are built and booted sooner, and have specs of their
own, so that these too have nothing to say but what the fault causes.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import pytest

from polydev.errors import BootError, ImageError, MachineBusy, SpecError
from polydev.file_checksum import file_sha256
from polydev.image.build import BuildOptions, build
from polydev.image.recipe import load_recipe
from polydev.image.store import ImageStore
from polydev.image.verify import SCREENSHOT, SERIAL_LOG, VerifyOptions, verify
from polydev.image_layout import ROOTFS
from polydev.image_record import ImageRecord
from polydev.progress import Steps
from polydev.settings import Settings
from tests.images import add_image

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_left")]

TESTS = Path(__file__).resolve().parents[1]
VARIANTS = TESTS / "faults"
TRIES = 10
SPECS = TESTS / "spec" / "image"
HEADLESS_SPECS = VARIANTS / "headless_specs"
WITHOUT_BROWSER_SPECS = VARIANTS / "without_browser_specs"


@dataclass(frozen=True)
class Fault:
    """A faulty recipe and what its refusal must say.

    specs               that it is verified by; with a desktop there is a picture to keep
    deadline_seconds    given where nothing but the deadline can tell
    """

    name: str
    words: tuple[str, ...]
    error: type[ImageError] = BootError
    specs: Path = HEADLESS_SPECS
    deadline_seconds: float | None = None


FAULTS = (
    Fault(
        "vnc-not-enabled",
        ("1 spec failed: ", "polydev-vnc.service is not enabled"),
        SpecError,
        specs=WITHOUT_BROWSER_SPECS,
    ),
    Fault(
        "novnc-wrong-port",
        ("novnc:", "ailed to connect to 127.0.0.1:5999"),
        specs=WITHOUT_BROWSER_SPECS,
    ),
    Fault("agent-crashes", ("polydev-agent.service", "RuntimeError: the agent has a bug")),
    Fault("agent-answers-500", ("the agent answers 500 on /health",)),
    Fault(
        "networkd-disabled",
        ("systemd-networkd.service is not enabled", "eth0 has no address"),
        SpecError,
    ),
    Fault(
        "wrong-address",
        ("eth0 has 172.16.0.6/30, not 172.16.0.2/30",),
        SpecError,
    ),
    Fault("dns-broken", ("DNS servers are ['192.0.2.53']",), SpecError),
    Fault(
        "root-not-found",
        ("cannot find its root filesystem: /dev/vdz does not appear",),
    ),
    Fault(
        "kernel-panics",
        ("cannot mount its root filesystem", "from /dev/vda"),
    ),
    Fault(
        "unit-never-finishes",
        ("endless.service does not finish starting",),
        deadline_seconds=30,
    ),
    Fault("root-full", ("the root filesystem is full (0 KiB free)",)),
    Fault("browser-cannot-start", ("polydev-browser.service", "ICU data"), specs=SPECS),
)


@pytest.fixture(scope="module")
def golden(store: ImageStore) -> str:
    """A golden image of a few bytes: no refused image may take its place."""
    digest = add_image(store, "the golden image", verified=True).digest
    store.promote(digest)
    return digest


def build_variant(name: str, settings: Settings, store: ImageStore) -> ImageRecord:
    recipe = load_recipe(VARIANTS / f"{name}.yaml")
    return build(recipe, settings, store, Steps(), BuildOptions()).record


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_faulty_image_is_refused_with_cause(
    fault: Fault, settings: Settings, store: ImageStore, golden: str
) -> None:
    link = store.golden_link.readlink()
    digest = build_variant(fault.name, settings, store).digest
    cause = refusal(digest, fault, settings, store).message
    print(f"{fault.name}: {cause}")
    assert [words for words in fault.words if words not in cause] == [], cause
    assert ("not ready within" in cause) == (fault.deadline_seconds is not None)

    verification = store.record(digest).verification
    assert verification is not None
    assert not verification.passed
    assert verification.cause == cause

    with pytest.raises(ImageError) as refused:
        store.promote(digest)
    assert cause in refused.value.message
    assert store.golden() == golden
    assert store.golden_link.readlink() == link

    evidence = settings.state / "verify" / digest[:12]
    assert "Linux version" in (evidence / SERIAL_LOG).read_text()
    assert (evidence / SCREENSHOT).exists() == (fault.specs != HEADLESS_SPECS)


def refusal(digest: str, fault: Fault, settings: Settings, store: ImageStore) -> ImageError:
    """Return the error that refuses the image; repeat while the machine is too busy."""
    for _ in range(TRIES):
        found = verdict_on(digest, fault, settings, store)
        if not isinstance(found, MachineBusy):
            assert isinstance(found, fault.error), found
            return found
        print(f"{fault.name}: {found.message}")
    raise AssertionError(f"the machine was too busy for {fault.name}, {TRIES} times")


def verdict_on(
    digest: str, fault: Fault, settings: Settings, store: ImageStore
) -> ImageError | MachineBusy | None:
    options = VerifyOptions(deadline_seconds=fault.deadline_seconds)
    try:
        verify(digest, settings, store, fault.specs, Steps(), options)
    except (ImageError, MachineBusy) as error:
        return error
    return None


def test_flipped_bit_is_refused_and_repaired_by_rebuild(
    settings: Settings, store: ImageStore, golden: str
) -> None:
    record = build_variant("headless", settings, store)
    rootfs = store.path(record.digest) / ROOTFS
    _flip_bit(rootfs, inside=b"Description=Polydev agent")
    with pytest.raises(ImageError, match="damaged: its SHA-256 is") as refusal:
        verify(record.digest, settings, store, HEADLESS_SPECS, Steps(), VerifyOptions())
    assert refusal.value.message.startswith(f"{ROOTFS} is damaged")
    with pytest.raises(ImageError, match="damaged"):
        store.promote(record.digest)
    assert store.golden() == golden

    assert build_variant("headless", settings, store).digest == record.digest
    assert file_sha256(rootfs) == record.files[ROOTFS].sha256


def _flip_bit(file: Path, inside: bytes) -> None:
    """Flip a bit in the middle of the first place that holds `inside`."""
    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as content:
        at = content.find(inside)
        assert at > 0, f"{inside!r} is nowhere in {file}"
        content[at + len(inside) // 2] ^= 0x10
