"""The templates of a host, for operators."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.machines.hypervisor import Hypervisor, TemplatesReport
from polydev.controller.settings import ControllerSettings
from polydev.errors import ImageError
from polydev.vm.template_store import Template

OFF = "templates are off on this host"
EXAMPLE: dict[str, Any] = {
    "enabled": True,
    "goldenImage": "4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d0c2b9a7e4f1d",
    "wanted": "9c0e" * 16,
    "serving": "7e21" * 16,
    "bootsBecause": None,
    "build": {"state": "running", "detail": "boot stage network"},
    "templates": [
        {
            "key": "7e21" * 16,
            "imageDigest": "0a1b" * 16,
            "serves": True,
            "madeAt": "2026-11-21T10:15:00Z",
            "bootSeconds": 34.1,
            "seconds": 52.4,
            "diskBytes": 742391808,
            "memoryMib": 2048,
            "cpus": 2,
            "hypervisor": "QEMU emulator version 7.2.22",
            "accelerator": "tcg",
            "files": {"memory": "5d4f" * 16, "state": "6e5a" * 16, "disk.qcow2": "7f6b" * 16},
        }
    ],
}


class TemplateAnswer(ApiModel):
    """A template.

    serves      whether new VMs are resumed from it
    seconds     how long making it took, of which `bootSeconds` the boot
    diskBytes   disk space; it takes as much memory once a VM was resumed from it
    files       SHA-256 of each file
    """

    key: str
    image_digest: str
    serves: bool
    made_at: datetime
    boot_seconds: float
    seconds: float
    disk_bytes: int
    memory_mib: int
    cpus: int
    hypervisor: str
    accelerator: str
    files: dict[str, str]


class TemplateBuild(ApiModel):
    """The build of the wanted template. `detail`: its current step, or why it failed."""

    state: Literal["none", "running", "failed"]
    detail: str | None


class TemplatesAnswer(ApiModel):
    """The templates of the host, oldest first.

    wanted          the key of the golden image's template for the current size of VMs
    serving         the key of the template that VMs are resumed from: that of an older image,
                    until the wanted one is built
    bootsBecause    why VMs boot; null if a template serves
    """

    model_config = ConfigDict(title="Templates", json_schema_extra={"examples": [EXAMPLE]})

    enabled: bool
    golden_image: str | None
    wanted: str | None
    serving: str | None
    boots_because: str | None
    build: TemplateBuild
    templates: list[TemplateAnswer]


def add_templates(router: APIRouter, services: Services) -> None:
    @router.get(
        "/templates",
        summary="The templates that VMs are resumed from, and the build of the next one",
        responses=error_responses(
            own={
                502: (
                    "systemd does not say whether a template is being built",
                    {
                        "type": "urn:polydev:error:vm",
                        "title": "Bad Gateway",
                        "detail": "systemd does not answer over D-Bus: the connection broke",
                    },
                )
            }
        ),
    )
    async def get_templates() -> TemplatesAnswer:
        return await templates_answer(services.settings, services.hypervisor)


async def templates_answer(
    settings: ControllerSettings, hypervisor: Hypervisor | None
) -> TemplatesAnswer:
    """Return the host's templates and the state of a build. Raises VmError."""
    if hypervisor is None:
        return _none(settings, "this host has no slots for VMs")
    try:
        report = await hypervisor.templates()
    except ImageError as error:
        return _none(settings, error.message)
    serving = report.origin.template if settings.templates else None
    return TemplatesAnswer(
        enabled=settings.templates,
        golden_image=report.golden,
        wanted=report.wanted,
        serving=serving,
        boots_because=(report.origin.because or None) if settings.templates else OFF,
        build=_build(report),
        templates=[_template(each, report, serving) for each in report.records],
    )


def _none(settings: ControllerSettings, why: str) -> TemplatesAnswer:
    return TemplatesAnswer(
        enabled=settings.templates,
        golden_image=None,
        wanted=None,
        serving=None,
        boots_because=why if settings.templates else OFF,
        build=TemplateBuild(state="none", detail=None),
        templates=[],
    )


def _build(report: TemplatesReport) -> TemplateBuild:
    if report.step is not None:
        return TemplateBuild(state="running", detail=report.step)
    return TemplateBuild(state="failed" if report.failure else "none", detail=report.failure)


def _template(template: Template, report: TemplatesReport, serving: str | None) -> TemplateAnswer:
    return TemplateAnswer(
        key=template.key,
        image_digest=template.image_digest,
        serves=template.key == serving,
        made_at=datetime.fromtimestamp(template.made_at, timezone.utc),
        boot_seconds=template.boot_seconds,
        seconds=template.seconds,
        disk_bytes=report.disk_bytes.get(template.key, 0),
        memory_mib=template.memory_mib,
        cpus=template.cpus,
        hypervisor=template.qemu,
        accelerator=template.accelerator,
        files=template.files,
    )
