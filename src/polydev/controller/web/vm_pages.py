"""The operators' pages of sessions and VMs: a live list, and one VM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from polydev.controller.api.vms import known_vm
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import AskingOperator
from polydev.controller.entities import Vm, now
from polydev.controller.web.formatting import clock_text, duration_text, time_text
from polydev.controller.web.page_rendering import Pages
from polydev.controller.web.vm_rows import VmEntry, counted, vm_row
from polydev.vm.boot_stages import STAGES

PAGE = 50
MOST_LIVE = 500

Shown = Literal["live", "all"]


@dataclass(frozen=True)
class Filter:
    """The filter of the list: VMs that hold a slot or all, of one user, after `before`."""

    shown: Shown = "live"
    user: str | None = None
    before: str | None = None

    @property
    def query(self) -> str:
        return urlencode({k: v for k, v in vars(self).items() if v})


def routes(services: Services, pages: Pages) -> APIRouter:
    router = APIRouter(prefix="/admin", include_in_schema=False)
    _add_list(router, services, pages)
    _add_one(router, services, pages)
    return router


def _filter(
    shown: Shown = "live",
    user: Annotated[str, Query(max_length=36)] = "",
    before: UUID | None = None,
) -> Filter:
    return Filter(shown, user or None, str(before) if before else None)


Wanted = Annotated[Filter, Depends(_filter)]


def _add_list(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("/sessions")
    async def show_sessions(
        request: Request, _operator: AskingOperator, wanted: Wanted
    ) -> Response:
        users = sorted(await services.users.list(), key=lambda each: (each.name or each.id).lower())
        listed = await _listed(services, wanted)
        return pages.render(request, "sessions_and_vms.html", users=users, **listed)

    @router.get("/sessions/rows")
    async def show_rows(request: Request, _operator: AskingOperator, wanted: Wanted) -> Response:
        return pages.render(request, "vm_rows.html", **await _listed(services, wanted))


async def _listed(services: Services, wanted: Filter) -> dict[str, Any]:
    """Return the values of both templates of the list."""
    last = await known_vm(services, wanted.before) if wanted.before else None
    is_live = wanted.shown == "live"
    limit = MOST_LIVE if is_live else PAGE
    vms = await services.vms.list(wanted.user, is_live, limit + 1, last)
    machines = await vm_entries(services, vms[:limit])
    at = now()
    older = vms[limit - 1].id if len(vms) > limit else None
    return {
        "rows": [vm_row(each, at) for each in machines.values()],
        "counts": counted(machines),
        "filter": wanted,
        "older": Filter(wanted.shown, wanted.user, older).query if older else None,
        "at": clock_text(at),
    }


async def vm_entries(services: Services, vms: Sequence[Vm]) -> dict[str, VmEntry]:
    """Return the VMs by id, in their order, each with its session, user and usage."""
    sessions = await services.sessions.of_vms([vm.id for vm in vms])
    users = await services.users.some({each.user_id for each in sessions.values()})
    latest = services.sample_loop.latest
    samples = {each.vm_id: each for each in latest.vm} if latest else {}
    viewers = services.viewers.counts()
    found = {}
    for vm in vms:
        session = sessions.get(vm.id)
        found[vm.id] = VmEntry(
            vm,
            session,
            users.get(session.user_id) if session else None,
            samples.get(vm.id),
            viewers.get(session.id, 0) if session else 0,
        )
    return found


def _add_one(router: APIRouter, services: Services, pages: Pages) -> None:
    @router.get("/vms/{vm_id}")
    async def show_vm(request: Request, vm_id: UUID, _operator: AskingOperator) -> Response:
        return pages.render(request, "vm.html", **await _one(services, vm_id))

    @router.get("/vms/{vm_id}/summary")
    async def show_summary(request: Request, vm_id: UUID, _operator: AskingOperator) -> Response:
        return pages.render(request, "vm_summary.html", **await _one(services, vm_id))


async def _one(services: Services, vm_id: UUID) -> dict[str, Any]:
    """Return the values of one VM's templates. Raises HTTPException 404."""
    vm = await known_vm(services, str(vm_id))
    machines = await vm_entries(services, [vm])
    at = now()
    return {
        "machine": machines[vm.id],
        "row": vm_row(machines[vm.id], at),
        "stages": stages_of(vm),
        "times": times_of(vm),
        "at": clock_text(at),
    }


def stages_of(vm: Vm) -> list[tuple[str, float]]:
    """Each stage that the VM has reached, with the seconds until then."""
    return [(stage, vm.timings[stage]) for stage in STAGES if stage in vm.timings]


def times_of(vm: Vm) -> list[tuple[str, str]]:
    """Return the times of a VM's changes; the first of each pair is the name of a text."""
    known = {
        "created": vm.created_at,
        "started": vm.started_at,
        "ready": vm.ready_at,
        "paused": vm.paused_at,
        "used": vm.used_at,
        "ended": vm.ended_at,
        "released": vm.released_at,
    }
    found = [(name, time_text(at)) for name, at in known.items() if at is not None]
    if vm.started_at and vm.ready_at:
        seconds = (vm.ready_at - vm.started_at).total_seconds()
        found.append(("start_took", f"{seconds:.1f} s" if seconds < 60 else duration_text(seconds)))
    return found
