"""Streams and viewers end when their caller loses access."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import cast

import pytest
from sqlalchemy.exc import OperationalError

from polydev.controller.auth.revocation_watch import (
    EXPIRED,
    NOT_OPERATOR,
    REVOKED,
    SIGNED_OUT,
    TokenWatch,
)
from polydev.controller.entities import Caller
from polydev.controller.store.sign_ins import SignIns
from polydev.controller.store.users import Tokens, Users

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
PATIENCE_SECONDS = 60


class SomeTokens:
    """Tokens of which some are revoked; while `away` is set, one query fails."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.asked: list[set[str]] = []
        self.away = False
        self.answered = asyncio.Event()

    async def not_revoked(self, ids: Collection[str]) -> set[str]:
        self.asked.append(set(ids))
        if self.away:
            self.away = False
            raise OperationalError("SELECT secret", {}, Exception("gone"))
        self.answered.set()
        return set(ids) - self.revoked


class SomeSignIns:
    """Sign-ins; those named in `revoked` have ended."""

    def __init__(self, tokens: SomeTokens) -> None:
        self.tokens = tokens

    async def standing(self, ids: Collection[str]) -> set[str]:
        return set(ids) - self.tokens.revoked


class SomeUsers:
    """Users of which some are operators."""

    def __init__(self) -> None:
        self.operators = {"olga"}
        self.asked: list[set[str]] = []

    async def who_see_all(self, ids: Collection[str]) -> set[str]:
        self.asked.append(set(ids))
        return set(ids) & self.operators


def caller(token_id: str | None = None, seconds: float | None = None) -> Caller:
    expires_at = None if seconds is None else START + timedelta(seconds=seconds)
    return Caller("ada", "user", "token", expires_at, token_id)


def play(
    scenario: Callable[[TokenWatch, SomeTokens], Awaitable[None]], users: SomeUsers | None = None
) -> None:
    async def run() -> None:
        tokens = SomeTokens()
        watch = TokenWatch(
            cast(Tokens, tokens),
            cast(Users, users or SomeUsers()),
            cast(SignIns, SomeSignIns(tokens)),
            check_seconds=0.001,
            clock=lambda: START,
        )
        await asyncio.wait_for(asyncio.ensure_future(scenario(watch, tokens)), PATIENCE_SECONDS)
        assert len(asyncio.all_tasks()) == 1  # no poller remains after the last user

    asyncio.run(run())


def test_watch_ends_when_the_token_expires() -> None:
    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        with (
            watch.until_invalid(caller(seconds=0.01)) as over,
            watch.until_invalid(caller(seconds=-1)) as late,
            watch.until_invalid(caller(seconds=3600)) as long,
        ):
            assert await over == EXPIRED
            assert await late == EXPIRED
            assert not long.done()
        assert long.cancelled()
        assert tokens.asked == []  # tokens that cannot be revoked are not queried

    play(scenario)


def test_nothing_waits_for_the_expiry_after_the_watch() -> None:
    """A viewer that comes again every second would leave a timer each time."""

    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        with watch.until_invalid(caller(seconds=3600)) as over:
            left = weakref.ref(over)
        del over
        gc.collect()
        assert left() is None

    play(scenario)


def test_watch_ends_when_its_own_token_is_revoked() -> None:
    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        with (
            watch.until_invalid(caller("one")) as over,
            watch.until_invalid(caller("one")) as over_too,
            watch.until_invalid(caller("two")) as other,
        ):
            tokens.revoked.add("one")
            assert (await over, await over_too) == (REVOKED, REVOKED)
            assert not other.done()
        assert tokens.asked[0] == {"one", "two"}

    play(scenario)


def test_watch_of_a_browser_ends_on_sign_out_or_revocation() -> None:
    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        browser = replace(caller(), by="cookie", sign_in_id="browser")
        other = replace(caller("one"), by="cookie", sign_in_id="other browser")
        with watch.until_invalid(browser) as over, watch.until_invalid(other) as other_over:
            tokens.revoked.add("browser")
            assert await over == SIGNED_OUT
            assert not other_over.done()
            tokens.revoked.add("one")
            assert await other_over == REVOKED

    play(scenario)


def test_unavailable_database_does_not_end_the_watch() -> None:
    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        tokens.away = True
        with watch.until_invalid(caller("one")) as over:
            await tokens.answered.wait()
            assert len(tokens.asked) == 2
            assert not over.done()
            tokens.revoked.add("one")
            assert await over == REVOKED

    play(scenario)


@pytest.mark.parametrize("token_id", ["one", None])
def test_watch_of_other_users_ends_with_the_operator_role(token_id: str | None) -> None:
    users = SomeUsers()

    async def scenario(watch: TokenWatch, tokens: SomeTokens) -> None:
        olga = replace(caller(token_id), user_id="olga")
        with (
            watch.until_invalid(olga, "ada") as over,
            watch.until_invalid(olga, "olga") as own,
            watch.until_invalid(caller(), "ada") as others_own,
        ):
            await asyncio.sleep(0.01)
            assert not over.done()
            users.operators.clear()
            assert await over == NOT_OPERATOR
            assert not own.done()
            assert not others_own.done()
        assert users.asked[0] == {"olga"}  # own sessions need no query of the role

    play(scenario, users)
