"""The operators' pages of images: a list, one image, differences between two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from polydev.controller.api.images import (
    MOST_LISTED,
    Digest,
    ImageSummary,
    image_detail,
    image_diff,
    image_list,
)
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import AskingOperator
from polydev.controller.host.images import DIGEST
from polydev.controller.web.formatting import NOTHING, size_text, time_text
from polydev.controller.web.page_rendering import Pages
from polydev.errors import ImageError
from polydev.image_diff import ImageDiff
from polydev.image_record import ImageRecord, Package, SpecResult

MOST_WORDS = 100
FORMATS: Mapping[str, Any] = {"size": size_text, "time": time_text, "nothing": NOTHING}
OUTCOMES = ("failed", "skipped", "passed")

OtherDigest = Annotated[str, Query(alias="with", pattern=f"^{DIGEST}$")]
Words = Annotated[str, Query(max_length=MOST_WORDS)]


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/admin/images", include_in_schema=False)
    _add_images(router, services, pages)
    _add_contents(router, services, pages)
    return router


def _add_images(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("")
    async def show_images(request: Request, _operator: AskingOperator) -> Response:
        found = await image_list(services, MOST_LISTED)
        return pages.render(request, "images.html", found=found, **FORMATS)

    @router.get("/{digest}")
    async def show_image(request: Request, digest: Digest, _operator: AskingOperator) -> Response:
        image = await image_detail(services, digest)
        others = await _others(services, digest)
        values = _record_values(image.record)
        return pages.render(request, "image.html", image=image, others=others, **values, **FORMATS)


def _add_contents(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("/{digest}/packages")
    async def show_packages(
        request: Request, digest: Digest, _operator: AskingOperator, words: Words = ""
    ) -> Response:
        image = await image_detail(services, digest)
        found = named(image.record.packages if image.record else [], words)
        return pages.render(request, "image_packages.html", packages=found)

    @router.get("/{digest}/diff")
    async def show_diff(
        request: Request, digest: Digest, other: OtherDigest, _operator: AskingOperator
    ) -> Response:
        """Show the changes from the other image to this one."""
        found, problem = await _diff(services, other, digest)
        return pages.render(request, "image_diff.html", diff=found, problem=problem, **FORMATS)


async def _others(services: Services, digest: str) -> list[ImageSummary]:
    """Return the images to compare an image with, the golden one first."""
    found = await image_list(services, MOST_LISTED)
    readable = [each for each in found.images if each.digest != digest and each.recipe is not None]
    return sorted(readable, key=lambda each: not each.golden)


async def _diff(services: Services, old: str, new: str) -> tuple[ImageDiff | None, str]:
    try:
        return await image_diff(services, old, new), ""
    except ImageError as error:
        return None, error.message


def _record_values(record: ImageRecord | None) -> dict[str, Any]:
    verification = record.verification if record else None
    return {
        "record": record,
        "specs": specs_by_module(verification.specs if verification else []),
        "stages": sorted(
            (verification.boot_timings_seconds if verification else {}).items(),
            key=lambda stage: stage[1],
        ),
    }


def specs_by_module(specs: list[SpecResult]) -> dict[str, list[SpecResult]]:
    """Return specs by file. Failed specs, and files with failed specs, come first."""
    by_module: dict[str, list[SpecResult]] = {}
    for spec in specs:
        by_module.setdefault(spec.name.partition("::")[0], []).append(spec)
    for each in by_module.values():
        each.sort(key=_rank)
    return dict(sorted(by_module.items(), key=lambda item: (_rank(item[1][0]), item[0])))


def _rank(spec: SpecResult) -> int:
    return OUTCOMES.index(spec.outcome)


def named(packages: list[Package], words: str) -> list[Package]:
    """Return the packages whose names or versions contain all of the words."""
    wanted = words.lower().split()
    return [
        package
        for package in packages
        if all(word in f"{package.name} {package.version}".lower() for word in wanted)
    ]
