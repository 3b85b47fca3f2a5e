"""The record of an image, `record.json`, and its digest.

The digest is the name of an image: the SHA-256 of its manifest, which is the sorted `sha256  name`
lines of the files that a VM boots from. Nothing else in the record changes the digest.
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
    """Base of values in records: frozen, with camelCase names in JSON as in all our answers."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class FileEntry(RecordModel):
    """One file of an image; sizes in bytes, `allocated_bytes` without holes."""

    sha256: str
    size_bytes: int
    allocated_bytes: int


class Package(RecordModel):
    """One installed package; `kind` is its package manager."""

    kind: Literal["deb", "npm"]
    name: str
    version: str


class LayerEntry(RecordModel):
    """One layer of the image; `seconds` is None if it came from the cache."""

    name: str
    id: str
    seconds: float | None


class SpecResult(RecordModel):
    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    message: str = ""


class Verification(RecordModel):
    """The last verification of this image: its cold boot and the results of the specs."""

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
    """The record of an image. `providers` is None in records of older versions."""

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
    """Return an image's digest: SHA-256, in hex, of its sorted `sha256  name` lines."""
    lines = "".join(f"{sha256_by_name[name]}  {name}\n" for name in sorted(sha256_by_name))
    return hashlib.sha256(lines.encode()).hexdigest()
