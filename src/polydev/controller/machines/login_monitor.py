"""Follow the login of a session's tool in the background, to its end.

The monitor asks the VM's agent for the state of the login, stores the credentials and wipes them in
the VM. Or it gives a user's stored credentials to the tool. Only the database says what comes next,
so another process that takes over continues from there.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from polydev.controller.entities import Session, Vm
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.store.credential_handovers import NO_KEY, CredentialHandovers
from polydev.controller.store.credential_injections import CredentialInjections
from polydev.controller.store.sessions import Sessions
from polydev.errors import (
    AgentError,
    AgentUnreachable,
    CredentialsError,
    Error,
    LoginRefused,
    ProtocolError,
    SessionError,
)
from polydev.vm.cancel_on_timeout import end

log = structlog.stdlib.get_logger(__name__)

# Unanswered requests about credentials after which the login counts as failed.
MOST_UNANSWERED = 5
NO_HAND_OVER = (
    "the VM's image cannot hand over credentials: store them by hand, or build and promote a newer "
    "image"
)


@dataclass(frozen=True)
class LoginStores:
    """The agent client and the stores that the monitor needs.

    hands_over      whether VMs of an image (by its digest) hand over the credentials of a provider
    rotates         whether a provider replaces credentials when they are used, so that only one
                    place at a time may have them
    """

    agent: AgentClient
    sessions: Sessions
    handovers: CredentialHandovers
    injections: CredentialInjections
    hands_over: Callable[[str, str], bool]
    rotates: Callable[[str], bool]


class LoginMonitor:
    """The login in one VM. It is checked in a task of its own, one check at a time.

    is_due_now     set it to make the next check due at once
    """

    def __init__(self, stores: LoginStores, vm: Vm, pause_seconds: float) -> None:
        self._stores = stores
        self._vm = vm
        self._pause_seconds = pause_seconds
        self._checking: asyncio.Task[bool] | None = None
        self._next = 0.0
        self._goes_on = False
        self._last_problem = ""
        self._unanswered = 0
        self.is_due_now = False

    def check(self, *, after_health_check: bool) -> bool:
        """Start a check if one is due; return whether the last one changed something.

        after_health_check      a health check of the VM has just ended: then one is due
        """
        moved = self._finished()
        is_due = self._goes_on and asyncio.get_running_loop().time() >= self._next
        if self._checking is None and (after_health_check or is_due or self.is_due_now):
            self.is_due_now = False
            self._checking = asyncio.create_task(self._check())
        return moved

    async def close(self) -> None:
        if self._checking is not None:
            await end(self._checking)

    def _finished(self) -> bool:
        if self._checking is None or not self._checking.done():
            return False
        done, self._checking = self._checking, None
        self._next = asyncio.get_running_loop().time() + self._pause_seconds
        error = done.exception()
        if error is None:
            self._last_problem = ""
            return done.result()
        self._log_once(error)
        return False

    def _log_once(self, error: BaseException) -> None:
        """Log each problem once, in words that cannot contain a credential."""
        problem = error.message if isinstance(error, Error) else _place(error)
        if problem != self._last_problem and not isinstance(error, SessionError):
            self._last_problem = problem
            log.warning("login_not_followed", vm_id=self._vm.id, problem=problem)

    async def _check(self) -> bool:
        session = await self._stores.sessions.live_of_vm(self._vm.id)
        self._goes_on = session is not None and session.has_login_under_way
        if session is None or not self._goes_on:
            return False
        if session.waits_for_injection:
            return await self._inject(session)
        if session.state == "oauth_pending":
            return await self._follow(session)
        return await self._wipe(session)

    async def _follow(self, session: Session) -> bool:
        login = await self._stores.agent.login(self._vm.vm_ip, session.provider)
        if login.status == "done":
            return await self._hand_over(session)
        known = await self._stores.sessions.set_login(session.id, login.status, login.detail)
        return known != session

    async def _hand_over(self, session: Session) -> bool:
        stores = self._stores
        if why_not := self._why_nothing_is_kept(session):
            await stores.handovers.finish_without(session.id, why_not)
            return True
        try:
            plain = await self._credentials(session)
        except AgentError as error:
            if self._may_pass(error):
                raise
            known = await stores.sessions.set_login(session.id, "failed", error.message)
            return known != session
        await stores.handovers.hand_over(session, plain)
        log.info("credentials_handed_over", session_id=session.id, vm_id=self._vm.id)
        return True

    def _why_nothing_is_kept(self, session: Session) -> str:
        if not self._stores.hands_over(self._vm.image_digest, session.provider):
            return NO_HAND_OVER
        return "" if self._stores.handovers.can_keep(session) else NO_KEY

    async def _credentials(self, session: Session) -> bytes:
        """Return the credentials of a login that is done. Raises AgentError."""
        plain = await self._stores.agent.credentials(self._vm.vm_ip, session.provider)
        if plain is None:
            raise ProtocolError("the login is done, but the VM has no credentials of it")
        return plain

    def _may_pass(self, error: Error) -> bool:
        """Whether to ask again before the login counts as failed."""
        self._unanswered += isinstance(error, AgentUnreachable)
        return isinstance(error, AgentUnreachable) and self._unanswered < MOST_UNANSWERED

    async def _wipe(self, session: Session) -> bool:
        await self._stores.agent.wipe(self._vm.vm_ip, session.provider)
        await self._stores.handovers.wiped(session.id)
        log.info("credentials_wiped", session_id=session.id, vm_id=self._vm.id)
        return True

    async def _inject(self, session: Session) -> bool:
        stores = self._stores
        # A controller that ended before it noted this may have injected them already. The tool may
        # have used up their refresh token since, so they must not be injected twice.
        login = await stores.agent.login(self._vm.vm_ip, session.provider)
        if login.status in ("starting", "waiting"):
            return False
        try:
            if login.status != "done":
                alone = stores.rotates(session.provider)
                plain = await stores.injections.opened(session, alone=alone)
                await stores.agent.inject(self._vm.vm_ip, session.provider, plain)
        except (AgentError, CredentialsError) as error:
            if self._may_pass(error):
                raise
            tried, is_left = isinstance(error, LoginRefused), isinstance(error, AgentUnreachable)
            words = (session.id, error.message)
            await stores.injections.refused(*words, tried=tried, is_left=is_left)
        else:
            await stores.injections.injected(session.id)
            log.info("credentials_injected", session_id=session.id, vm_id=self._vm.id)
        return True


def _place(error: BaseException) -> str:
    """Return the type of an error and where it was raised, without its message."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}"


async def read_back_credentials(stores: LoginStores, vm: Vm, session: Session) -> None:
    """Read injected credentials back from a VM and store them, before it is destroyed.

    If that fails, the end of the VM notes that the stored ones may be stale. Raises AgentError, and
    NoCredentialsKey if the host has lost its key.
    """
    health = await stores.agent.health(vm.vm_ip)
    if health.vm_id != vm.id:
        raise ProtocolError("another VM answers at its address")
    plain = await stores.agent.credentials(vm.vm_ip, session.provider)
    if plain is not None:
        await stores.injections.brought_back(session, plain)
    elif session.stored_credentials == "wanted":
        login = await stores.agent.login(vm.vm_ip, session.provider)
        if login.status == "none":  # else they are being injected at this moment
            await stores.injections.not_injected(session.id)
