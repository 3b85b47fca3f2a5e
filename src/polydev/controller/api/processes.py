"""The host's top processes, for operators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import ConfigDict, Field

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api_model import ApiModel
from polydev.controller.app_services import Services
from polydev.controller.host.blocking_call import NoAnswer
from polydev.controller.host.processes import By, Kind, why_unavailable

MOST_PROCESSES = 100
EXAMPLE: dict[str, Any] = {
    "processes": [
        {
            "pid": 4711,
            "name": "qemu-system-x86",
            "user": None,
            "cpuPercent": 12.5,
            "memoryBytes": 183500800,
            "belongsTo": "vm",
            "unit": "microvm@3.service",
            "slot": 3,
            "vmId": "9e1c0b1a-8a0c-4f38-bb0c-3f7a6d7a2b11",
        }
    ]
}


class ProcessAnswer(ApiModel):
    """A process.

    name            the kernel's short name; arguments are left out, since they may hold secrets
    user            null for users outside of the controller's user namespace
    cpuPercent      of all the host's cores together
    memoryBytes     resident memory
    belongsTo       `vm`: the process of the VM in `slot`; `controller`: the controller itself
    unit            the systemd unit
    """

    pid: int
    name: str
    user: str | None
    cpu_percent: float
    memory_bytes: int
    belongs_to: Kind
    unit: str | None
    slot: int | None
    vm_id: str | None


class ProcessesAnswer(ApiModel):
    """Top processes, highest first. `unavailable` is the reason why there are none."""

    model_config = ConfigDict(title="Processes", json_schema_extra={"examples": [EXAMPLE]})

    processes: list[ProcessAnswer]
    unavailable: str | None = Field(default=None, exclude_if=lambda value: value is None)


def add_processes(router: APIRouter, services: Services) -> None:
    @router.get(
        "/processes",
        summary="The top processes, by CPU or by memory",
        description="`cpuPercent` is measured since the last call if that was recent, else over "
        "half a second.",
        responses=error_responses(422),
    )
    async def get_processes(
        by: By = "cpu", limit: Annotated[WholeNumber, Query(ge=1, le=MOST_PROCESSES)] = 10
    ) -> ProcessesAnswer:
        return await processes_answer(services, by, limit)


async def processes_answer(services: Services, by: By, limit: int) -> ProcessesAnswer:
    vms = {vm.slot: vm.id for vm in await services.vms.held()}
    try:
        found = await services.processes.most(by, limit)
    except NoAnswer as error:
        return ProcessesAnswer(processes=[], unavailable=why_unavailable(error))
    return ProcessesAnswer(
        processes=[
            ProcessAnswer(**asdict(each), vm_id=vms.get(each.slot) if each.slot else None)
            for each in found
        ]
    )
