"""The screen of a session's VM, as RFB over a WebSocket, for noVNC.

Every upgrade is accepted. A viewer without access is closed with a code and a reason, since
browsers cannot read why an upgrade was refused.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Coroutine
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket

from polydev.controller.api.sessions import session_for, uuid_of
from polydev.controller.app_services import Services
from polydev.controller.auth.client_address import asked_from
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.auth.revocation_watch import AccessEnd
from polydev.controller.entities import Caller, Session, Vm
from polydev.controller.relay.close_reasons import (
    ASLEEP,
    UNEXPECTED,
    VM_GONE,
    VNC_DOWN,
    CloseReason,
    ViewerRefused,
    close_reason_for,
    not_ready,
    permit_over,
    session_over,
)
from polydev.controller.relay.forwarding import Buffers, open_screen, relay
from polydev.controller.relay.keepalive import KeepaliveTimer
from polydev.controller.relay.limits import FRAMES_BURST, FRAMES_PER_SECOND
from polydev.controller.relay.metrics import RelayMetrics
from polydev.controller.relay.viewer import Viewer
from polydev.controller.relay.websocket_takeover import take_over
from polydev.errors import NotAllowed, NotAuthenticated, VmError
from polydev.host_layout import VNC_PORT

log = structlog.stdlib.get_logger(__name__)

SUBPROTOCOL = "binary"
BOOTING = ("creating", "starting")

T = TypeVar("T")


def routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/auth", tags=["sessions"])
    screens = Screens(services)

    @router.websocket("/session/{session_id}/novnc/websock")
    async def show_screen(websocket: WebSocket, session_id: str) -> None:
        await screens.show(websocket, session_id)

    return router


@dataclass(frozen=True)
class Admitted:
    """A viewer with access, and its connection to the screen; `view_only`: it may only watch."""

    session: Session
    vm: Vm
    screen: socket.socket
    view_only: bool = False


class Screens:
    """Serves all viewers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._viewers = services.viewers
        self._figures = RelayMetrics(services.metrics.registry, self._viewers.admitted)
        self._buffers = Buffers()
        self._keepalive = KeepaliveTimer()
        self._frames = RateLimiter(FRAMES_PER_SECOND, FRAMES_BURST)

    async def show(self, websocket: WebSocket, session_id: str) -> None:
        """Serve a viewer from its upgrade to the end of its connection."""
        is_offered = SUBPROTOCOL in websocket.scope["subprotocols"]
        try:
            taken = await take_over(websocket, SUBPROTOCOL if is_offered else None)
        except ConnectionError:
            return
        viewer = Viewer(taken, self._keepalive)
        with ExitStack() as left_behind:
            left_behind.callback(viewer.abort)
            admission = self._admit(websocket, session_id, viewer, left_behind)
            try:
                admitted = await _while_open(viewer, admission)
            except Exception as error:
                await self._refuse(viewer, session_id, error)
                return
            # In the background: the viewer does not wait for the database's writers.
            joined = asyncio.create_task(self._viewers.joined(admitted.session.id))
            ended = await self._relay(viewer, admitted)
        self._figures.closed(viewer, ended.cause)
        await joined
        await self._viewers.left(admitted.session.id, ended)

    async def _admit(
        self, websocket: WebSocket, session_id: str, viewer: Viewer, left_behind: ExitStack
    ) -> Admitted:
        """Check the viewer's rights and connect to the screen. Raises ViewerRefused and Error."""
        caller = await self._caller(websocket)
        viewer.may_send = partial(self._may_send, caller.counted_as)
        known = uuid_of(session_id)
        # Register first, then read the session, so that no end of the session is missed.
        entry = left_behind.enter_context(self._viewers.register(str(known), viewer))
        session = await session_for(self._services, caller, known)
        access = self._services.token_watch.until_invalid(caller, session.user_id)
        left_behind.enter_context(access).add_done_callback(partial(_end_viewer, viewer))
        vm = await self._services.vms.get(session.vm_id)
        _check_state(session, vm)
        entry.view_only = caller.view_only
        self._viewers.admit(entry)
        vm = await self._awake(session, vm)
        screen = await open_screen(vm.vm_ip, VNC_PORT)
        left_behind.enter_context(closing(screen))
        return Admitted(session, vm, screen, caller.view_only)

    async def _awake(self, session: Session, vm: Vm) -> Vm:
        """Resume the VM while the viewer waits, and return it. Raises ViewerRefused."""
        try:
            vm = await self._services.waker.awake(vm)
        except VmError:
            raise ViewerRefused(ASLEEP) from None
        _check_state(session, vm)
        return vm

    async def _caller(self, websocket: WebSocket) -> Caller:
        """Return the caller: our pages have a ticket, other programs a token."""
        identity, peer = self._services.authenticator, asked_from(websocket.scope)
        ticket = websocket.query_params.get("ticket")
        if ticket is not None:
            caller = await identity.counted(self._of_ticket(websocket, ticket), *peer)
        else:
            authorization = websocket.headers.get("authorization")
            token = websocket.query_params.get("access_token")
            caller = await identity.caller(authorization, token, *peer)
        self._services.request_limiter.take(caller.counted_as)
        return caller

    async def _of_ticket(self, websocket: WebSocket, ticket: str) -> Caller:
        page = websocket.headers.get("origin")
        rules = self._services.browser_rules
        if page is not None and not rules.is_own_origin(page, websocket.headers):
            raise NotAllowed("access denied: tickets may only be used by pages of this host")
        caller = await self._services.tickets.redeem(ticket, "viewer")
        if caller is None:
            raise NotAuthenticated("the ticket was used before, has expired or is not valid")
        return caller

    def _may_send(self, user_id: str, frames: int) -> bool:
        try:
            self._frames.take(user_id, frames)
        except HTTPException:
            return False
        return True

    async def _refuse(self, viewer: Viewer, session_id: str, error: Exception) -> None:
        told = await self._explained(session_id, close_reason_for(error))
        self._figures.refused(told.cause)
        if told is UNEXPECTED:
            log.error("viewer_failed", session_id=session_id, exc_info=error)
        log.info(
            "viewer_refused",
            session_id=session_id,
            cause=told.cause,
            code=told.code,
            reason=told.reason,
        )
        await viewer.close(told)

    async def _relay(self, viewer: Viewer, admitted: Admitted) -> CloseReason:
        """Relay bytes in both directions until one side closes. Return the close reason."""
        session, vm = admitted.session, admitted.vm
        say = log.bind(session_id=session.id, vm_id=vm.id, vm_address=masked(vm.vm_ip))
        say.info("viewer_opened", view_only=admitted.view_only)
        started = time.monotonic()
        explained = partial(self._explained, session.id)
        told = await relay(
            viewer, admitted.screen, self._buffers, explained, view_only=admitted.view_only
        )
        say.info(
            "viewer_closed",
            code=told.code,
            reason=told.reason,
            cause=told.cause,
            bytes_to_viewer=viewer.bytes_to,
            bytes_to_vm=viewer.bytes_from,
            seconds=round(time.monotonic() - started, 3),
        )
        return told

    async def _explained(self, session_id: str, ended: CloseReason) -> CloseReason:
        """Return the end of the session as the reason, if that is why the VM is gone."""
        if ended not in (VM_GONE, VNC_DOWN):
            return ended
        try:
            session = await self._services.sessions.get(session_id)
        except Exception as error:  # the viewer gets the reason that is known
            log.warning("session_not_read", session_id=session_id, error=type(error).__name__)
            return ended
        return ended if session.is_live else session_over(session)


def _end_viewer(viewer: Viewer, access_end: AccessEnd) -> None:
    """Close a viewer that has lost access, unless it has left already."""
    if not access_end.cancelled():
        viewer.end(permit_over(access_end.result()))


def masked(address: str) -> str:
    """Return an IPv4 address without its last part."""
    return f"{address.rpartition('.')[0]}.x"


def _check_state(session: Session, vm: Vm) -> None:
    """Raise ViewerRefused if the VM has no screen."""
    if not session.is_live:
        raise ViewerRefused(session_over(session))
    if vm.state in BOOTING:
        raise ViewerRefused(not_ready(vm))
    if vm.state != "ready":
        raise ViewerRefused(VNC_DOWN)


async def _while_open(viewer: Viewer, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. Raises ViewerRefused if the viewer is closed meanwhile."""
    task = asyncio.create_task(work)
    try:
        either: set[asyncio.Future[Any]] = {task, viewer.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ViewerRefused(viewer.ended.result())
        return task.result()
    finally:
        task.cancel()
