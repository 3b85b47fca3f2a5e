"""The bill of materials of a fake image."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from polydev.image.sbom import component, sbom_json
from polydev.image_record import ImageRecord, Package

RECORD = ImageRecord(
    digest="ab" * 32,
    recipe="browser-vm",
    created_at=datetime(2025, 1, 1, tzinfo=timezone.utc),
    source_date_epoch=1_700_000_000,
    kernel_version="6.1.0",
    files={},
    content_bytes=0,
    layers=[],
    packages=[
        Package(kind="deb", name="systemd", version="252.39-1~deb12u1"),
        Package(kind="deb", name="tigervnc-common", version="1:1.12.0+dfsg-8"),
        Package(kind="npm", name="@openai/codex", version="0.1.0"),
        Package(kind="npm", name="nan", version="2.0.0"),
        Package(kind="npm", name="nan", version="3.0.0"),
    ],
    builder={},
)


@pytest.fixture(scope="module")
def bom() -> dict[str, Any]:
    bom: dict[str, Any] = json.loads(sbom_json(RECORD, "bookworm"))
    return bom


def test_sbom_is_valid_cyclonedx() -> None:
    # A fault contains the whole schema, so only its beginning is shown.
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom_json(RECORD, "bookworm"))
    assert fault is None, str(fault)[:400]


def test_sbom_names_the_image(bom: dict[str, Any]) -> None:
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["name"] == "browser-vm"
    assert bom["metadata"]["component"]["version"] == RECORD.digest
    assert bom["metadata"]["timestamp"].startswith("2023-11-14T22:13:20")


def test_sbom_lists_every_package_and_version(bom: dict[str, Any]) -> None:
    listed = sorted((each["name"], each["version"]) for each in bom["components"])
    assert listed == sorted((each.name, each.version) for each in RECORD.packages)
    assert len({each["bom-ref"] for each in bom["components"]}) == len(RECORD.packages)


def test_image_depends_on_every_package(bom: dict[str, Any]) -> None:
    (whole,) = [each for each in bom["dependencies"] if each.get("dependsOn")]
    assert len(whole["dependsOn"]) == len(RECORD.packages)


def test_same_record_gives_the_same_bytes() -> None:
    later = RECORD.model_copy(update={"created_at": datetime(2026, 1, 1, tzinfo=timezone.utc)})
    assert sbom_json(RECORD, "bookworm") == sbom_json(later, "bookworm")


def test_order_of_packages_does_not_matter() -> None:
    turned = RECORD.model_copy(update={"packages": RECORD.packages[::-1]})
    assert sbom_json(RECORD, "bookworm") == sbom_json(turned, "bookworm")


@pytest.mark.parametrize(
    ("package", "purl"),
    [
        (RECORD.packages[0], "pkg:deb/debian/systemd@252.39-1~deb12u1?distro=debian-bookworm"),
        (RECORD.packages[2], "pkg:npm/%40openai/codex@0.1.0"),
        (RECORD.packages[3], "pkg:npm/nan@2.0.0"),
    ],
)
def test_package_url_of_each_kind(package: Package, purl: str) -> None:
    assert str(component(package, "bookworm").purl) == purl
