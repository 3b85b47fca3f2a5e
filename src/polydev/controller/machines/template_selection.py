"""The templates of this host, and the one from which a VM that starts now is resumed.

settings, image store, templates --templates_now--> TemplatesReport, with the Origin of new VMs
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import which

from polydev.controller.entities import BEING_MADE
from polydev.controller.health import image_store_state
from polydev.controller.host.psutil_reader import CPUINFO, read_cpu_model
from polydev.controller.machines.hypervisor import Origin, TemplatesReport
from polydev.controller.settings import ControllerSettings
from polydev.errors import ImageError, VmError
from polydev.image_layout import (
    GOLDEN_LINK,
    TEMPLATES,
    image_path,
    promotion_file,
    promotion_number,
)
from polydev.processes import run
from polydev.vm.accelerator import known_accelerator
from polydev.vm.config import VmConfig
from polydev.vm.launch import vm_config
from polydev.vm.launch_file import LaunchFile
from polydev.vm.qemu_command_line import QEMU
from polydev.vm.template_store import Build, Template, TemplateStore, template_key


@dataclass(frozen=True)
class WantedTemplate:
    """A template from which VMs of this host could be resumed."""

    config: VmConfig
    qemu: str
    key: str


def templates_of(settings: ControllerSettings) -> TemplateStore:
    return TemplateStore(settings.image_store / TEMPLATES)


def wanted_of(settings: ControllerSettings, image_digest: str) -> WantedTemplate:
    """Return the template for VMs of an image, sized by the settings. Raises VmError: no image."""
    launch_file = LaunchFile(
        vm_id="template",
        session_id=None,
        image=str(image_path(settings.image_store, image_digest)),
        image_digest=image_digest,
        cpus=settings.vm.cpus,
        memory_mib=settings.vm.memory_mib,
        translation_cache_mib=settings.vm.translation_cache_mib,
    )
    config = vm_config(launch_file, Path("/"), known_accelerator())
    program = which(QEMU)
    qemu = _version(Path(program).stat().st_mtime_ns if program else 0)
    return WantedTemplate(config, qemu, template_key(config, qemu, read_cpu_model(CPUINFO)))


def wanted_template(settings: ControllerSettings) -> WantedTemplate:
    """Return the template of the golden image for the settings. Raises ImageError, VmError."""
    golden = image_store_state(settings.image_store)
    if golden.golden is None:
        raise ImageError(golden.detail, "promote an image, then deploy this host")
    return wanted_of(settings, golden.golden)


def templates_now(
    settings: ControllerSettings, *, being_made: bool, ended: str = ""
) -> TemplatesReport:
    """Report on the templates; `being_made`: the maker runs; `ended`: how it failed, if it did.

    Raises ImageError, VmError.
    """
    wanted, templates = wanted_template(settings), templates_of(settings)
    golden, records = wanted.config.image_digest, templates.all()
    is_there = any(each.key == wanted.key for each in records)
    step = failure = None
    build = templates.build()
    if being_made:
        step = build.step if build and build.ended_at is None else "beginning"
    elif build is not None and build.key == wanted.key:
        failure = _failure(build, ended)
    elif not is_there:
        failure = ended or None
    if is_there:
        origin = Origin(golden, wanted.key)
    elif older := _older(settings, records):
        origin = Origin(older.image_digest, older.key)
    elif being_made:
        origin = Origin(golden, because=BEING_MADE)
    elif failure:
        origin = Origin(golden, because=f"its template could not be made: {failure}")
    else:
        origin = Origin(golden, because="its image has no template")
    sizes = {each.key: templates.disk_bytes(each.key) for each in records}
    return TemplatesReport(golden, wanted.key, origin, records, step, failure, sizes)


def _failure(build: Build, ended: str) -> str | None:
    """Return why a build that has ended made no template."""
    if build.ended_at is None:
        return ended or f"its build was interrupted while {build.step}"
    return build.error


def _older(settings: ControllerSettings, records: list[Template]) -> Template | None:
    """Return the template of the newest earlier golden image that has a usable one.

    Images that a rollback has left behind do not count.
    """
    by_key = {each.key: each for each in records}
    for digest in _golden_before(settings.image_store):
        with suppress(VmError):  # the image is gone
            if record := by_key.get(wanted_of(settings, digest).key):
                return record
    return None


def _golden_before(store: Path) -> Iterator[str]:
    """Yield the digests of earlier golden images, newest first."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # unreadable: treated as the beginning
        number = promotion_number(str((store / GOLDEN_LINK).readlink())) or 0
        while number:
            entry = json.loads(promotion_file(store, number).read_bytes())
            yield str(entry["digest"])
            # Numbers must fall, so that a damaged entry cannot make this loop endless.
            number = min(int(entry["previous"] or 0), number - 1)


@lru_cache(maxsize=1)
def _version(written_at: int) -> str:
    """Return QEMU's version; the cache ends when its program changes. Raises ConfigError."""
    return run([QEMU, "--version"]).stdout.partition("\n")[0]
