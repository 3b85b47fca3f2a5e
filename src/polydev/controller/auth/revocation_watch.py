"""End streams and viewers whose caller has lost access since their request was accepted.

The time at which a token expires is known from its beginning. Revoked tokens, browsers signed out
and operators who lost their role are looked up every few seconds, by the same queries for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from polydev.controller.entities import Caller, now
from polydev.controller.poll_while_needed import SharedPoller
from polydev.controller.store.sign_ins import SignIns
from polydev.controller.store.users import Tokens, Users

CHECK_SECONDS = 5.0
EXPIRED = "the token has expired"
REVOKED = "the token was revoked"
SIGNED_OUT = "the browser was signed out"
NOT_OPERATOR = "the session belongs to another user, and you no longer have the operator role"

# Done with the reason when the caller has lost access.
AccessEnd = asyncio.Future[str]


class TokenWatch:
    """Check the tokens, sign-ins and roles of all callers with something open."""

    def __init__(
        self,
        tokens: Tokens,
        users: Users,
        sign_ins: SignIns,
        check_seconds: float = CHECK_SECONDS,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._tokens = tokens
        self._users = users
        self._sign_ins = sign_ins
        self._clock = clock
        self._tokens_of: dict[AccessEnd, str] = {}
        self._operators_of: dict[AccessEnd, str] = {}
        self._sign_ins_of: dict[AccessEnd, str] = {}
        self._poller = SharedPoller("tokens", self._poll, partial(asyncio.sleep, check_seconds))

    @contextmanager
    def until_invalid(self, caller: Caller, owner_id: str | None = None) -> Iterator[AccessEnd]:
        """Yield a future that is done, with the reason, once the caller has lost access.

        `owner_id` is whose session or VM the caller follows, by default the caller's own. The
        future is cancelled at the end of the block.
        """
        loop = asyncio.get_running_loop()
        access_end: AccessEnd = loop.create_future()
        timer = None
        if caller.expires_at is not None:
            left = (caller.expires_at - self._clock()).total_seconds()
            timer = loop.call_later(max(left, 0), _end, access_end, EXPIRED)
        try:
            with self._watched(access_end, caller, owner_id):
                yield access_end
        finally:
            if timer is not None:
                timer.cancel()
            access_end.cancel()

    @contextmanager
    def _watched(
        self, access_end: AccessEnd, caller: Caller, owner_id: str | None
    ) -> Iterator[None]:
        if caller.token_id is not None:
            self._tokens_of[access_end] = caller.token_id
        if caller.sign_in_id is not None:
            self._sign_ins_of[access_end] = caller.sign_in_id
        if owner_id not in (None, caller.user_id):
            self._operators_of[access_end] = caller.user_id
        watched = (self._tokens_of, self._sign_ins_of, self._operators_of)
        if not any(access_end in each for each in watched):
            yield
            return
        try:
            with self._poller.in_use():
                yield
        finally:
            for each in watched:
                each.pop(access_end, None)

    async def _poll(self) -> None:
        tokens, operators = dict(self._tokens_of), dict(self._operators_of)
        sign_ins = dict(self._sign_ins_of)
        if tokens:
            valid = await self._tokens.not_revoked(set(tokens.values()))
            _end_without(tokens, valid, REVOKED)
        if sign_ins:
            standing = await self._sign_ins.standing(set(sign_ins.values()))
            _end_without(sign_ins, standing, SIGNED_OUT)
        if operators:
            still = await self._users.who_see_all(set(operators.values()))
            _end_without(operators, still, NOT_OPERATOR)


def _end_without(asked: dict[AccessEnd, str], good: set[str], reason: str) -> None:
    for access_end, name in asked.items():
        if name not in good:
            _end(access_end, reason)


def _end(access_end: AccessEnd, reason: str) -> None:
    if not access_end.done():
        access_end.set_result(reason)
