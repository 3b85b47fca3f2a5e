"""VMs: a list, the usage of each, its serial console and its screen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path as File
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from polydev.controller.api.documented_errors import error_responses
from polydev.controller.api.pagination import BeforeUuid, page_of
from polydev.controller.api.url_numbers import WholeNumber
from polydev.controller.api.vm_answers import ConsoleAnswer, VmAnswer, VmList, vm_answer
from polydev.controller.app_services import Services
from polydev.controller.auth.authentication import BEARER, Asking
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.entities import Caller, Vm
from polydev.controller.host.sample_loop import vm_usage_of
from polydev.controller.host.vm_usage import VmUsage
from polydev.controller.machines.console_stream import MOST_LINES, tail
from polydev.controller.machines.screenshots import SCREENSHOTS_BURST, SCREENSHOTS_PER_SECOND
from polydev.errors import NotAllowed, SessionExpired, VmError
from polydev.vm.boot_stages import last_lines

MOST_LISTED = 500
NOBODY = ""  # the owner of a VM without a session
TEXT = "text/plain; charset=utf-8"
CONSOLE_EXAMPLE = "[    0.000000] Linux version 6.1.0\n[    3.1] systemd[1]: Welcome to Debian\n"
CONSOLE_ANSWER = {
    "description": "The last lines",
    "content": {
        "text/plain": {"schema": {"type": "string"}, "example": CONSOLE_EXAMPLE},
        "application/json": {"schema": ConsoleAnswer.model_json_schema()},
    },
}
CONSOLE_DESCRIPTION = (
    "Plain text with its control sequences, or with `Accept: application/json` lines without "
    "them. With `follow` the text continues until the VM or the caller's access ends."
)
PNG_SCHEMA = {"type": "string", "contentMediaType": "image/png"}
NO_SCREEN = (
    "The VM is booting or paused",
    {
        "type": "urn:polydev:error:no-screen",
        "title": "Conflict",
        "detail": "the VM is paused, and a screenshot does not wake it",
        "hint": "open its viewer, which does",
    },
)

VmId = Annotated[UUID, Path(description="The VM's id")]
Tail = Annotated[
    WholeNumber, Query(alias="tail", ge=0, le=MOST_LINES, description="How many of the last lines")
]


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/vm", tags=["vms"], dependencies=[BEARER])
    _add_list(router, services)
    _add_one(router, services)
    _add_figures(router, services)
    _add_console(router, services)
    _add_screenshot(router, services)
    return router


async def known_vm(services: Services, vm_id: str) -> Vm:
    """Return a VM of any user. Raises HTTPException 404."""
    try:
        return await services.vms.get(vm_id)
    except VmError as error:
        raise HTTPException(404, error.message) from error


async def vm_for(services: Services, caller: Caller, vm_id: UUID) -> Vm:
    """Return the VM, if the caller has access to it. Raises HTTPException 404, NotAllowed."""
    vm = await known_vm(services, str(vm_id))
    if not caller.sees_all and not await _is_own(services, caller, vm):
        raise NotAllowed("access denied: the VM belongs to another user")
    return vm


async def _is_own(services: Services, caller: Caller, vm: Vm) -> bool:
    session = await services.sessions.of_vm(vm.id)
    return session is not None and session.user_id == caller.user_id


def _add_list(router: APIRouter, services: Services) -> None:
    @router.get(
        "",
        summary="The caller's VMs, newest first; for operators those of all users",
        responses=error_responses(404, 422),
    )
    async def list_vms(
        caller: Asking,
        past: Annotated[bool, Query(alias="all", description="Also VMs that have ended")] = False,
        limit: Annotated[WholeNumber, Query(ge=1, le=MOST_LISTED)] = 100,
        before: BeforeUuid = None,
    ) -> VmList:
        last = await vm_for(services, caller, before) if before else None
        user_id = None if caller.sees_all else caller.user_id
        found = await services.vms.list(user_id, not past, limit + 1, last)
        page, following = page_of(found, limit, lambda vm: vm.id)
        return VmList(vms=[vm_answer(vm) for vm in page], next=following)


def _add_one(router: APIRouter, services: Services) -> None:
    @router.get("/{vm_id}", summary="A VM", responses=error_responses(404, 422))
    async def get_vm(vm_id: VmId, caller: Asking) -> VmAnswer:
        return vm_answer(await vm_for(services, caller, vm_id))


def _add_figures(router: APIRouter, services: Services) -> None:
    @router.get(
        "/{vm_id}/metrics",
        summary="CPU, memory, disk and network usage of a VM",
        responses=error_responses(404, 410, 422),
    )
    async def get_figures(vm_id: VmId, caller: Asking) -> VmUsage:
        vm = await vm_for(services, caller, vm_id)
        if vm.released_at is not None or services.hypervisor is None:
            raise SessionExpired("the VM has ended")
        return await vm_usage_of(services.hypervisor, vm)


def _add_console(router: APIRouter, services: Services) -> None:
    @router.get(
        "/{vm_id}/console",
        summary="The serial console of a VM",
        description=CONSOLE_DESCRIPTION,
        response_class=Response,
        responses={200: CONSOLE_ANSWER, **error_responses(404, 410, 422, 502)},
    )
    async def get_console(
        request: Request,
        vm_id: VmId,
        caller: Asking,
        lines: Tail = 100,
        following: Annotated[bool, Query(alias="follow")] = False,
    ) -> Response:
        vm = await vm_for(services, caller, vm_id)
        file = _console_of(services, vm)
        text, _ = await asyncio.to_thread(tail, file, lines)
        if following:
            return await _following(services, caller, vm, file, lines)
        if "application/json" in request.headers.get("accept", ""):
            return await asyncio.to_thread(_as_lines, vm, text, lines)
        return Response(text, media_type=TEXT)


def _add_screenshot(router: APIRouter, services: Services) -> None:
    asked = RateLimiter(SCREENSHOTS_PER_SECOND, SCREENSHOTS_BURST)

    @router.get(
        "/{vm_id}/screenshot",
        summary="A screenshot of a VM",
        description="It does not count as use of the VM, and does not resume a paused one.",
        response_class=Response,
        responses={
            200: {"description": "The picture", "content": {"image/png": {"schema": PNG_SCHEMA}}},
            **error_responses(404, 410, 422, 502, own={409: NO_SCREEN}),
        },
    )
    async def get_screenshot(vm_id: VmId, caller: Asking) -> Response:
        vm = await vm_for(services, caller, vm_id)
        asked.take(caller.user_id)
        picture = await services.screenshots.take(vm, lambda: services.vms.get(vm.id))
        return Response(picture, media_type="image/png")


def _as_lines(vm: Vm, text: bytes, count: int) -> Response:
    plain = last_lines(text.decode(errors="replace"), count) if count else []
    answer = ConsoleAnswer(vm_id=vm.id, lines=plain)
    return Response(answer.model_dump_json(by_alias=True), media_type="application/json")


def _console_of(services: Services, vm: Vm) -> File:
    """Return the console's file. Raises SessionExpired if VM and logs are gone."""
    hypervisor = services.hypervisor
    if hypervisor is not None:
        file = hypervisor.console(vm.slot, vm.id)
        if vm.released_at is None or file.exists():
            return file
    raise SessionExpired("the VM has ended, and its console was not kept")


async def _following(
    services: Services, caller: Caller, vm: Vm, file: File, lines: int
) -> StreamingResponse:
    services.stream_limit.check(caller.user_id)
    session = await services.sessions.of_vm(vm.id)
    access = services.token_watch.until_invalid(caller, session.user_id if session else NOBODY)

    async def text() -> AsyncIterator[bytes]:
        with services.stream_limit.reading(caller.user_id), access as access_end:
            access_end.add_done_callback(lambda _end: services.consoles.wake())

            def is_to_end() -> bool:
                return access_end.done() or services.ending.is_set()

            try:
                async for part in services.consoles.follow(vm.id, file, lines, is_to_end):
                    yield part
            except VmError as error:  # the VM's process replaced the file
                yield f"\nerror: {error.message}\n".encode()

    return StreamingResponse(text(), media_type=TEXT)
