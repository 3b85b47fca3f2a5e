"""The templates of this host: where they are, and which one VMs of an image need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import which

from polydev.controller.settings import Settings
from polydev.run import run
from polydev.vm.accelerator import known_accelerator
from polydev.vm.config import VmConfig
from polydev.vm.launch import vm_config
from polydev.vm.order import Order
from polydev.vm.qemu import QEMU
from polydev.vm.templates import Templates, template_key


@dataclass(frozen=True)
class Wanted:
    """A template that VMs of this host could be resumed from."""

    config: VmConfig
    qemu: str
    key: str


def templates_of(settings: Settings) -> Templates:
    return Templates(settings.image_store / "templates")


def wanted_of(settings: Settings, image_digest: str) -> Wanted:
    """For VMs of an image, sized as the settings say. Raises VmError where there is no image."""
    order = Order(
        vm_id="template",
        session_id=None,
        image=str(settings.image_store / "images" / image_digest),
        image_digest=image_digest,
        cpus=settings.vm.cpus,
        memory_mib=settings.vm.memory_mib,
        translation_cache_mib=settings.vm.translation_cache_mib,
    )
    config = vm_config(order, Path("/"), known_accelerator())
    program = which(QEMU)
    qemu = _version(Path(program).stat().st_mtime_ns if program else 0)
    return Wanted(config, qemu, template_key(config, qemu))


@lru_cache(maxsize=1)
def _version(written_at: int) -> str:
    """QEMU's version; asked for again once its program is another. Raises ConfigError."""
    return run([QEMU, "--version"]).stdout.partition("\n")[0]
