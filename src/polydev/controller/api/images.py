"""The images of a host, for operators: records, specs, bills of materials, differences."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import BEFORE, page_of
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.host.images import (
    DIGEST,
    StoredImage,
    StoredImages,
    bill_of_materials,
    readable_record,
    stored_image,
    stored_images,
)
from polydev.controller.machines.template_selection import templates_of
from polydev.errors import ImageNotFound
from polydev.image_diff import ImageDiff, diff
from polydev.image_record import ImageRecord, Verification

MOST_LISTED = 200
SBOM_TYPE = "application/vnd.cyclonedx+json; version=1.6"
NO_IMAGE = (
    "This host has no such image, or the image has no such document",
    {
        "type": "urn:polydev:error:image-not-found",
        "title": "Not Found",
        "detail": f"there is no image {'4f1d' * 16} on this host",
    },
)
NOT_READABLE = (
    "The record or the document of the image is damaged",
    {
        "type": "urn:polydev:error:image-unreadable",
        "title": "Internal Server Error",
        "detail": "cannot read the record of image 4f1d4f1d4f1d: digest: Field required",
    },
)
EXAMPLE: dict[str, Any] = {
    "digest": "4f1d" * 16,
    "golden": True,
    "recipe": "golden",
    "createdAt": "2026-11-21T09:02:11Z",
    "kernelVersion": "6.1.0-32-amd64",
    "sizeBytes": 1803886592,
    "packages": 812,
    "verification": {
        "at": "2026-11-21T09:05:40Z",
        "passed": True,
        "cause": None,
        "accelerator": "tcg",
        "bootSeconds": 23.9,
        "specs": {"passed": 143, "failed": 0, "skipped": 0},
    },
    "vms": 3,
    "templates": 1,
    "problem": None,
}

Digest = Annotated[str, Path(pattern=f"^{DIGEST}$", description="The image's digest")]


class SpecCounts(ApiModel):
    """Number of specs by outcome."""

    passed: int
    failed: int
    skipped: int


class VerificationSummary(ApiModel):
    """The last verification of the image; `cause` says why it failed."""

    at: datetime
    passed: bool
    cause: str | None
    accelerator: str
    boot_seconds: float | None
    specs: SpecCounts


class ImageSummary(ApiModel):
    """An image. Values from its record are null if the record cannot be read; `problem` says why.

    sizeBytes   disk space of its files
    vms         number of its VMs that hold a slot
    templates   number of its templates
    """

    model_config = ConfigDict(title="Image", json_schema_extra={"examples": [EXAMPLE]})

    digest: str
    golden: bool
    recipe: str | None
    created_at: datetime | None
    kernel_version: str | None
    size_bytes: int | None
    packages: int | None
    verification: VerificationSummary | None
    vms: int
    templates: int
    problem: str | None


class ImageList(ApiModel):
    """Newest first. Send `next` as `before` to get the next page; null: this is the last one."""

    golden: str | None
    images: list[ImageSummary]
    next: str | None


class ImageDetail(ImageSummary):
    """An image with its whole record."""

    model_config = ConfigDict(
        title="ImageWithRecord", json_schema_extra={"examples": [{**EXAMPLE, "record": None}]}
    )

    record: ImageRecord | None


def add_images(router: APIRouter, services: Services) -> None:
    _add_list(router, services)
    _add_one(router, services)
    _add_sbom(router, services)
    _add_diff(router, services)


def _add_list(router: APIRouter, services: Services) -> None:
    @router.get(
        "/images",
        summary="The images of this host, newest first",
        responses=error_responses(422, own={404: NO_IMAGE}),
    )
    async def list_images(
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 50,
        before: Annotated[str | None, Query(pattern=f"^{DIGEST}$", description=BEFORE)] = None,
    ) -> ImageList:
        return await image_list(services, limit, before)


def _add_one(router: APIRouter, services: Services) -> None:
    @router.get(
        "/images/{digest}",
        summary="An image with its record and the results of its specs",
        responses=error_responses(422, own={404: NO_IMAGE}),
    )
    async def get_image(digest: Digest) -> ImageDetail:
        return await image_detail(services, digest)


def _add_sbom(router: APIRouter, services: Services) -> None:
    document = {"description": "CycloneDX 1.6", "content": {SBOM_TYPE: {"example": {}}}}

    @router.get(
        "/images/{digest}/sbom",
        summary="The image's bill of materials, as written by its build",
        response_class=Response,
        responses={200: document, **error_responses(422, own={404: NO_IMAGE, 500: NOT_READABLE})},
    )
    async def get_sbom(digest: Digest) -> Response:
        store = services.settings.image_store
        content = await asyncio.to_thread(bill_of_materials, store, digest)
        name = f"sbom-{digest[:12]}.cdx.json"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=SBOM_TYPE, headers=headers)


def _add_diff(router: APIRouter, services: Services) -> None:
    @router.get(
        "/images/{digest}/diff/{other}",
        summary="Differences between two images: packages, layers, settings",
        description="`files` is null; `./inv golden.diff` also compares files.",
        responses=error_responses(422, own={404: NO_IMAGE, 500: NOT_READABLE}),
    )
    async def get_diff(
        digest: Digest,
        other: Annotated[
            str, Path(pattern=f"^{DIGEST}$", description="The digest of the second image")
        ],
    ) -> ImageDiff:
        return await image_diff(services, digest, other)


async def image_list(services: Services, limit: int, before: str | None = None) -> ImageList:
    """Return a page of the images. Raises ImageNotFound if `before` was removed."""
    found = await asyncio.to_thread(stored_images, services.settings.image_store)
    page, following = page_of(_after(found, before), limit, lambda image: image.digest)
    uses = await _uses(services)
    shown = [_summary(image, found.golden, uses) for image in page]
    return ImageList(golden=found.golden, images=shown, next=following)


async def image_detail(services: Services, digest: str) -> ImageDetail:
    """Return an image with its record. Raises ImageNotFound."""
    store = services.settings.image_store
    found = await asyncio.to_thread(stored_images, store)
    image = await asyncio.to_thread(stored_image, store, digest)
    summary = _summary(image, found.golden, await _uses(services))
    return ImageDetail(**dict(summary), record=image.record)


async def image_diff(services: Services, old: str, new: str) -> ImageDiff:
    """Compare two images. Raises ImageNotFound, and ImageUnreadable if a record cannot be read."""
    store = services.settings.image_store
    before = await asyncio.to_thread(readable_record, store, old)
    return diff(before, await asyncio.to_thread(readable_record, store, new))


def _after(found: StoredImages, before: str | None) -> tuple[StoredImage, ...]:
    if before is None:
        return found.images
    for number, image in enumerate(found.images, 1):
        if image.digest == before:
            return found.images[number:]
    raise ImageNotFound(f"image {before} was removed", "read the list again from its first page")


Uses = Mapping[Literal["vms", "templates"], Counter[str]]


async def _uses(services: Services) -> Uses:
    """Return the number of VMs and templates of each image."""
    held = await services.vms.held()
    templates = await asyncio.to_thread(templates_of(services.settings).all)
    return {
        "vms": Counter(vm.image_digest for vm in held),
        "templates": Counter(each.image_digest for each in templates),
    }


def _summary(image: StoredImage, golden: str | None, uses: Uses) -> ImageSummary:
    record, digest = image.record, image.digest
    verification = record.verification if record else None
    return ImageSummary(
        digest=digest,
        golden=digest == golden,
        recipe=record.recipe if record else None,
        created_at=record.created_at if record else None,
        kernel_version=record.kernel_version if record else None,
        size_bytes=_size_bytes(record) if record else None,
        packages=len(record.packages) if record else None,
        verification=_verification(verification) if verification else None,
        vms=uses["vms"][digest],
        templates=uses["templates"][digest],
        problem=image.problem,
    )


def _size_bytes(record: ImageRecord) -> int:
    return sum(file.allocated_bytes for file in record.files.values())


def _verification(found: Verification) -> VerificationSummary:
    counts = Counter(spec.outcome for spec in found.specs)
    return VerificationSummary(
        at=found.at,
        passed=found.passed,
        cause=found.cause,
        accelerator=found.accelerator,
        boot_seconds=max(found.boot_timings_seconds.values(), default=None),
        specs=SpecCounts(
            passed=counts["passed"], failed=counts["failed"], skipped=counts["skipped"]
        ),
    )
