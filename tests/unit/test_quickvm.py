"""The quick image from fake parts: its name, its record, and its guest's settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from polydev.agent.reply_types import HealthReply
from polydev.image.image_folder import check_complete, read_record
from polydev.image.store import ImageStore
from polydev.image_layout import BOOT_FILES, IN_USE, RECORD
from tests.quickguest import VARIANTS, command_line, cpio_archive, health_form
from tests.quickvm import Parts, assemble


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(b"\x7fELF and so on")
    modules = {"virtio.ko": b"one", "virtio_net.ko": b"two"}
    return Parts(kernel, "6.1.0-1", b"the static busybox", modules)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "images"
    folder.mkdir(parents=True)
    return folder


def test_same_inputs_give_the_same_digest(parts: Parts, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    first = assemble(parts, images, "healthy")
    assert assemble(parts, images, "healthy") == first
    assert assemble(parts, other, "healthy").name == first.name


def test_every_input_changes_the_digest(parts: Parts, images: Path) -> None:
    made = {assemble(parts, images, variant) for variant in [*VARIANTS, "sick:9"]}
    made.add(assemble(replace(parts, busybox=b"another"), images, "healthy"))
    made.add(assemble(replace(parts, modules={}), images, "healthy"))
    assert len(made) == len(VARIANTS) + 3


def test_assembling_leaves_no_other_files(parts: Parts, images: Path) -> None:
    image = assemble(parts, images, "healthy")
    assert assemble(parts, images, "healthy") == image
    assert list(images.iterdir()) == [image]
    assert {path.name for path in image.iterdir()} == {*BOOT_FILES, RECORD, IN_USE}


@pytest.mark.parametrize("variant", VARIANTS)
def test_record_is_complete_and_verified(parts: Parts, images: Path, variant: str) -> None:
    image = assemble(parts, images, variant)
    record = read_record(image)
    check_complete(image, record)
    assert record.verification is not None
    assert record.verification.passed


def test_image_can_be_promoted(parts: Parts, images: Path) -> None:
    image, store = assemble(parts, images, "healthy"), ImageStore(images.parent)
    assert [listed.state for listed in store.images()] == ["verified"]
    store.promote(image.name)
    assert store.golden() == image.name


def test_variant_has_a_default_number() -> None:
    assert command_line("sick") == command_line("sick:3")
    assert command_line("sick") != command_line("sick:4")


@pytest.mark.parametrize("variant", ["", "unwell", "sick:many", "sick:-1"])
def test_unknown_variant_is_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="no variant"):
        command_line(variant)


@pytest.mark.parametrize(("is_sick", "status"), [(False, "ready"), (True, "failed")])
def test_health_answer_matches_the_agents_schema(is_sick: bool, status: str) -> None:
    text = health_form(is_sick=is_sick) % ('"d1ge57"', '"seven"', "null", "1.25", "b007")
    reply = TypeAdapter(HealthReply).validate_python(json.loads(text), strict=True)
    assert reply["status"] == status
    assert (reply["vm_id"], reply["session_id"]) == ("seven", None)
    assert reply["uptime_seconds"] == 1.25


def test_cpio_archive_is_aligned_to_four_bytes() -> None:
    # The kernel looks for each member at a multiple of four.
    archive = cpio_archive({"init": b"12345", "odd": b"1"})
    assert len(archive) % 4 == 0
    places = [place for place in range(len(archive)) if archive.startswith(b"070701", place)]
    assert [place % 4 for place in places] == [0] * len(places)
    assert archive.rstrip(b"\0").endswith(b"TRAILER!!!")
