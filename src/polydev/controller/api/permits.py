"""Streams and viewers outlast the request that let them in, but not the right to it.

When a token ends by itself is known from the beginning. That somebody revoked one, or took the role
from an operator who follows what is another user's, is asked now and then, with the same questions
for all that lasts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from polydev.controller.model import Caller, now
from polydev.controller.store.sign_ins import SignIns
from polydev.controller.store.users import Tokens, Users
from polydev.controller.watching import Watch

LOOK_SECONDS = 5.0
EXPIRED = "the token has expired"
REVOKED = "the token was revoked"
SIGNED_OUT = "the browser was signed out"
ANOTHERS = "the caller is no operator any more, and the session is another user's"

Over = asyncio.Future[str]


class Permits:
    def __init__(
        self,
        tokens: Tokens,
        users: Users,
        sign_ins: SignIns,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._tokens = tokens
        self._users = users
        self._sign_ins = sign_ins
        self._clock = clock
        self._tokens_of: dict[Over, str] = {}
        self._operators_of: dict[Over, str] = {}
        self._sign_ins_of: dict[Over, str] = {}
        self._watch = Watch("permits", self._look, partial(asyncio.sleep, look_seconds))

    @contextmanager
    def lasting(self, caller: Caller, owner_id: str | None = None) -> Iterator[Over]:
        """Done, with the reason, once the caller may no longer follow what is the owner's.

        Without an owner it is the caller's own. Cancelled at the end of the block.
        """
        loop = asyncio.get_running_loop()
        over: Over = loop.create_future()
        timer = None
        if caller.expires_at is not None:
            left = (caller.expires_at - self._clock()).total_seconds()
            timer = loop.call_later(max(left, 0), _end, over, EXPIRED)
        try:
            with self._watched(over, caller, owner_id):
                yield over
        finally:
            if timer is not None:
                timer.cancel()
            over.cancel()

    @contextmanager
    def _watched(self, over: Over, caller: Caller, owner_id: str | None) -> Iterator[None]:
        if caller.token_id is not None:
            self._tokens_of[over] = caller.token_id
        if caller.sign_in_id is not None:
            self._sign_ins_of[over] = caller.sign_in_id
        if owner_id not in (None, caller.user_id):
            self._operators_of[over] = caller.user_id
        watched = (self._tokens_of, self._sign_ins_of, self._operators_of)
        if not any(over in each for each in watched):
            yield
            return
        try:
            with self._watch.needed():
                yield
        finally:
            for each in watched:
                each.pop(over, None)

    async def _look(self) -> None:
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
            _end_without(operators, still, ANOTHERS)


def _end_without(asked: dict[Over, str], good: set[str], reason: str) -> None:
    for over, name in asked.items():
        if name not in good:
            _end(over, reason)


def _end(over: Over, reason: str) -> None:
    if not over.done():
        over.set_result(reason)
