"""The software bill of materials, CycloneDX 1.6 in JSON. Equal images give equal bytes."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone

from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from polydev.image_record import ImageRecord, Package


def sbom_json(record: ImageRecord, suite: str) -> str:
    """Return the bill of materials: each package of the image with its package URL."""
    moment = datetime.fromtimestamp(record.source_date_epoch, tz=timezone.utc)
    image = Component(
        name=record.recipe,
        version=record.digest,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"image-{record.digest}",
    )
    components = [component(package, suite) for package in record.packages]
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, record.digest),
        metadata=BomMetaData(timestamp=moment, component=image),
        components=components,
    )
    bom.register_dependency(image, components)
    return JsonV1Dot6(bom).output_as_string(indent=1)


def component(package: Package, suite: str) -> Component:
    if package.kind == "deb":
        purl = PackageURL(
            "deb", "debian", package.name, package.version, {"distro": f"debian-{suite}"}
        )
    else:
        namespace, _, name = package.name.rpartition("/")
        purl = PackageURL("npm", namespace or None, name, package.version)
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=str(purl),
    )
