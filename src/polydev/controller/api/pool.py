"""The warm pool, for operators: how many VMs wait for sessions, and why not more."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import ConfigDict

from polydev.controller.api.error_responses import error_responses
from polydev.controller.api_model import ApiModel
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.pool import pool_state
from polydev.controller.services import Services
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
    """The VMs that wait for a session.

    size        how many there are to be; 0 where the host resumes no VMs
    primed      how many wait, paused; a session that starts takes the oldest
    priming     how many are being made
    template, imageDigest   what new ones are made of; null where VMs boot
    detail      why there are not more of them now, or what is done next
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
        summary="The VMs that wait paused for a session, and why there are not more",
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
