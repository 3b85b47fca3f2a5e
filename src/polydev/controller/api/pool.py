"""The pool of VMs that wait for sessions, for operators."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.pool import pool_state
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.vms import Vms

EXAMPLE: dict[str, Any] = {
    "size": 2,
    "primed": 1,
    "priming": 1,
    "spareSlots": 1,
    "template": "7e21" * 16,
    "imageDigest": "0a1b" * 16,
    "detail": "another VM is starting",
}


class PoolAnswer(ApiModel):
    """The pool of VMs that wait for a session.

    size        the wanted number; 0 on a host that resumes no VMs
    primed      how many wait, paused; a new session takes the oldest
    priming     how many are starting
    template, imageDigest   what new ones are resumed from; null if VMs boot
    detail      what happens next, or why there are not more
    """

    model_config = ConfigDict(title="Pool", json_schema_extra={"examples": [EXAMPLE]})

    size: int
    primed: int
    priming: int
    spare_slots: int
    template: str | None
    image_digest: str | None
    detail: str


def add_pool(router: APIRouter, services: Services) -> None:
    @router.get(
        "/pool",
        summary="The pool of paused VMs that wait for sessions",
        responses=error_responses(),
    )
    async def get_pool() -> PoolAnswer:
        return await pool_answer(services.settings, services.vms, services.hypervisor)


async def pool_answer(
    settings: ControllerSettings, vms: Vms, hypervisor: Hypervisor | None
) -> PoolAnswer:
    state = await pool_state(settings, await vms.held(), hypervisor)
    template = state.origin.template if state.origin else None
    return PoolAnswer(
        size=state.size,
        primed=state.primed,
        priming=state.priming,
        spare_slots=settings.pool.spare_slots,
        template=template,
        image_digest=state.origin.image_digest if state.origin and template else None,
        detail=state.step.why,
    )
