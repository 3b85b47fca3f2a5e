"""What is known of an image: `record.json` beside it.

An image is named by its digest: the SHA-256 of its manifest, the sorted `sha256  name` lines
of the files that a VM boots from. Everything else in the record describes; nothing
else in it changes the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from polydev.providers import Provider

State = Literal["built", "failed", "verified", "promoted", "retired"]


class RecordModel(BaseModel):
    """Frozen; in JSON its names are in camelCase, as in every answer of this project."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class FileEntry(RecordModel):
    """One file of an image; sizes in bytes, `allocated_bytes` without the holes."""

    sha256: str
    size_bytes: int
    allocated_bytes: int


class Package(RecordModel):
    """One thing installed; `kind` is the package manager it came from."""

    kind: Literal["deb", "npm"]
    name: str
    version: str


class LayerEntry(RecordModel):
    """One layer as it was used; `seconds` is None where it came from the cache."""

    name: str
    id: str
    seconds: float | None


class SpecResult(RecordModel):
    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    message: str = ""


class Verification(RecordModel):
    """The last cold boot of exactly this image and what the specs said of it."""

    at: datetime
    passed: bool
    cause: str | None
    hypervisor: str
    accelerator: Literal["kvm", "tcg"]
    stage_reached: str
    boot_timings_seconds: dict[str, float]
    specs: list[SpecResult]
    seconds: float


class ImageRecord(RecordModel):
    """What is known of an image. `providers` is None in records from before there were any."""

    digest: str
    recipe: str
    created_at: datetime
    source_date_epoch: int
    kernel_version: str
    files: dict[str, FileEntry]
    content_bytes: int
    layers: list[LayerEntry]
    packages: list[Package]
    builder: dict[str, str]
    providers: dict[str, Provider] | None = None
    verification: Verification | None = None


def manifest_digest(sha256_by_name: Mapping[str, str]) -> str:
    """The image's name: SHA-256, in hex, over its sorted `sha256  name` lines."""
    lines = "".join(f"{sha256_by_name[name]}  {name}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256(lines.encode()).hexdigest()
