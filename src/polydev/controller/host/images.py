"""The images in the host's store: their records, and which one is golden.

A deployment sends a record with each image. An image whose record cannot be read is listed with
the problem.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from polydev.controller.health import image_store_state
from polydev.controller.host.cached_json_files import cached_reader, read_limited, why_unreadable
from polydev.errors import ImageNotFound, ImageUnreadable
from polydev.image_layout import IMAGES, RECORD, SBOM, image_path
from polydev.image_record import ImageRecord

DIGEST = "[0-9a-f]{64}"
MOST_RECORD_BYTES = 32 << 20
MOST_SBOM_BYTES = 64 << 20
CACHED_RECORDS = 256
KEPT_SHOWN = "on the operator's machine, ./inv golden.list shows the images that can be deployed"


@dataclass(frozen=True)
class StoredImage:
    """An image of the store; `record` is None where it cannot be read, with the `problem`."""

    digest: str
    record: ImageRecord | None
    problem: str | None = None


@dataclass(frozen=True)
class StoredImages:
    """All images, newest first, those without a readable record last."""

    golden: str | None
    images: tuple[StoredImage, ...]


def stored_images(store: Path) -> StoredImages:
    """Return all images of a store. Raises OSError where its folder cannot be read."""
    folder = store / IMAGES
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [_read(folder / name) for name in names if re.fullmatch(DIGEST, name)]
    return StoredImages(image_store_state(store).golden, tuple(newest_first(found)))


def newest_first(images: Iterable[StoredImage]) -> list[StoredImage]:
    """Sort images by the time of their build; images of unknown age come last."""

    def age(image: StoredImage) -> tuple[bool, float, str]:
        record = image.record
        return record is None, -record.created_at.timestamp() if record else 0.0, image.digest

    return sorted(images, key=age)


def stored_image(store: Path, digest: str) -> StoredImage:
    """Return one image of a store. Raises ImageNotFound."""
    return _read(_folder(store, digest))


def readable_record(store: Path, digest: str) -> ImageRecord:
    """Return an image's record. Raises ImageNotFound and ImageUnreadable."""
    image = stored_image(store, digest)
    if image.record is None:
        raise ImageUnreadable(f"cannot read the record of image {digest[:12]}: {image.problem}")
    return image.record


def bill_of_materials(store: Path, digest: str) -> bytes:
    """Return an image's bill of materials (CycloneDX), as its build wrote it.

    Raises ImageNotFound where the image has none, and ImageUnreadable for a damaged one.
    """
    file = _folder(store, digest) / SBOM
    try:
        content = read_limited(file, MOST_SBOM_BYTES)
        named = json.loads(content)["metadata"]["component"]["version"]
    except FileNotFoundError:
        raise ImageNotFound(f"image {digest[:12]} has no bill of materials") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ImageUnreadable(
            f"cannot read the bill of materials of image {digest[:12]}: {error}"
        ) from None
    if named != digest:
        raise ImageUnreadable(
            f"the bill of materials of image {digest[:12]} is that of another image"
        )
    return content


def _folder(store: Path, digest: str) -> Path:
    folder = image_path(store, digest)
    if re.fullmatch(DIGEST, digest) is None or not folder.is_dir():
        raise ImageNotFound(f"there is no image {digest[:64]} on this host", KEPT_SHOWN)
    return folder


_record_in = cached_reader(ImageRecord.model_validate_json, MOST_RECORD_BYTES, CACHED_RECORDS)


def _read(folder: Path) -> StoredImage:
    try:
        record = _record_in(folder / RECORD)
        if record.digest != folder.name:
            raise ValueError(f"it is the record of image {record.digest[:12]}")
    except (OSError, ValueError) as error:
        return StoredImage(folder.name, None, why_unreadable(error, ImageRecord))
    return StoredImage(folder.name, record)
