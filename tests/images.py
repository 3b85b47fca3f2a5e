"""Images of a few bytes that are never booted, with records that count as verified."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

from polydev.image.store import ImageStore
from polydev.image_layout import BOOT_FILES, IN_USE, RECORD
from polydev.image_record import FileEntry, ImageRecord, Verification, manifest_digest
from polydev.providers import Provider, load_providers

GOLDEN = Path(__file__).parents[1] / "golden"
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
FIRST = datetime(2025, 1, 1, tzinfo=timezone.utc)


def verification(passed: bool = True) -> Verification:
    return Verification(
        at=FIRST,
        passed=passed,
        cause=None if passed else "nginx.service failed",
        hypervisor="none: made for tests",
        accelerator="tcg",
        stage_reached="ready",
        boot_timings_seconds={"kernel": 1.5},
        specs=[],
        seconds=9.0,
    )


def said_to_be_verified(record: ImageRecord) -> ImageRecord:
    """Return the record with a passed verification, although nothing was booted."""
    return record.model_copy(update={"verification": verification()})


def contents(seed: str) -> dict[str, bytes]:
    """Return the files of an image, different for each seed."""
    return {name: f"{name} of {seed}".encode() for name in BOOT_FILES}


def record_of(seed: str, created_at: datetime = FIRST, verified: bool | None = None) -> ImageRecord:
    files = {
        name: FileEntry(
            sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), allocated_bytes=4096
        )
        for name, data in contents(seed).items()
    }
    return ImageRecord(
        digest=manifest_digest({name: entry.sha256 for name, entry in files.items()}),
        recipe="golden",
        created_at=created_at,
        source_date_epoch=0,
        kernel_version="6.1.0",
        files=files,
        content_bytes=100,
        layers=[],
        packages=[],
        builder={},
        verification=None if verified is None else verification(verified),
    )


def write_record(folder: Path, providers: Mapping[str, Provider] | None = None) -> None:
    """Give an image's folder the record of a verified image that is old.

    It has our providers, unless others are named.
    """
    found = {"digest": folder.name, "providers": providers or _providers()}
    record = record_of(folder.name, LONG_AGO, verified=True).model_copy(update=found)
    (folder / RECORD).write_text(record.model_dump_json())


@functools.cache
def _providers() -> Mapping[str, Provider]:
    """Our providers: each of a thousand tests would read their files anew."""
    return load_providers(GOLDEN / "providers")


def add_image(
    store: ImageStore, seed: str, created_at: datetime = FIRST, verified: bool | None = None
) -> ImageRecord:
    with store.new_incoming() as incoming:
        for name, data in contents(seed).items():
            (incoming / name).write_bytes(data)
        return store.add(incoming, record_of(seed, created_at, verified))


def link_image(source: ImageStore, target: ImageStore, digest: str) -> None:
    """Put an image of one store into another one, without another copy of its files."""
    shutil.copytree(
        source.path(digest),
        target.path(digest),
        ignore=shutil.ignore_patterns(IN_USE),
        copy_function=os.link,
    )
