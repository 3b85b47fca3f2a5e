"""Usage is counted once, whichever process counts and whatever ends meanwhile."""

from __future__ import annotations

import asyncio
from datetime import date, datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from polydev.controller.entities import Session
from polydev.controller.settings import Quotas, SessionLimits
from polydev.controller.store import tables
from polydev.controller.store.ended_sessions import delete_ended_sessions
from polydev.controller.store.sessions import NewSession, Sessions
from polydev.controller.store.sign_ins import SignIns
from polydev.controller.store.usage import Usage
from polydev.controller.store.user_removal import remove_user
from polydev.controller.usage_accounting import CounterReading, Use
from polydev.controller.usage_quotas import QuotaExceeded
from tests.stores import DIGEST, Clock, Store, opened, run_async

pytest_plugins = ["tests.databases"]

START = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
TODAY = START.date()
LONG_AGO = date(2026, 1, 1)


def clock() -> Clock:
    return Clock(START)


def reading(store: Store, session: Session, cpu: float, received: int = 0) -> CounterReading:
    return CounterReading(session.vm_id, store.clock.at, False, cpu, received, 0)


async def readings_left(store: Store) -> int:
    counted = sa.select(sa.func.count()).select_from(tables.usage_readings)
    async with store.database.reading() as connection:
        return (await connection.execute(counted)).scalar_one()


@run_async
async def test_usage_counts_sessions_time_and_counters(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage, user = Usage(store.database, Quotas()), await store.new_user()
        session = await store.start_ready(user)
        store.clock.pass_seconds(10)
        await usage.count([reading(store, session, 3.0, 1000)])
        store.clock.pass_seconds(10)
        await usage.count([reading(store, session, 5.0, 1500)])
        assert await usage.days(LONG_AGO) == {user: {TODAY: Use(20.0, 5.0, 500, 0, 1)}}


@run_async
async def test_repeated_readings_are_counted_once(store_url: str) -> None:
    """Repeated by the same process, by a slower one, or by both at once."""
    async with opened(store_url, clock=clock()) as one, opened(store_url) as other:
        user = await one.new_user()
        session = await one.start_ready(user)
        one.clock.pass_seconds(10)
        early = reading(one, session, 3.0)
        one.clock.pass_seconds(10)
        late = reading(one, session, 5.0)
        first, second = (Usage(each.database, Quotas()) for each in (one, other))
        await asyncio.gather(*(each.count([late]) for each in (first, second) * 4))
        await second.count([early])
        await first.count([late])
        assert await first.days(LONG_AGO) == {user: {TODAY: Use(20.0, 5.0, 0, 0, 1)}}


@run_async
async def test_usage_without_controller_is_counted_later(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage, user = Usage(store.database, Quotas()), await store.new_user()
        session = await store.start_ready(user)
        store.clock.pass_seconds(10)
        await usage.count([reading(store, session, 1.0)])
        store.clock.pass_seconds(13 * 3600)
        usage = Usage(store.database, Quotas())
        await usage.count([reading(store, session, 100.0)])
        days = (await usage.days(LONG_AGO))[user]
        assert [days[each].vm_seconds for each in sorted(days)] == [12 * 3600, 3610]
        assert sum(each.cpu_seconds for each in days.values()) == 100.0


@run_async
async def test_ended_vm_counts_until_session_end(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage, user = Usage(store.database, Quotas()), await store.new_user()
        session = await store.start_ready(user)
        store.clock.pass_seconds(10)
        await usage.count([reading(store, session, 1.0)])
        store.clock.pass_seconds(4)
        await store.sessions.apply(session.id, "terminate")
        store.clock.pass_seconds(3)
        await store.vms.released(session.vm_id)
        store.clock.pass_seconds(3)
        for _ in range(2):
            await usage.count([])
            assert await usage.days(LONG_AGO) == {user: {TODAY: Use(14.0, 1.0, 0, 0, 1)}}
            assert await readings_left(store) == 0


@run_async
async def test_pool_vm_counts_for_nobody_until_taken(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage, user = Usage(store.database, Quotas()), await store.new_user()
        vm = await store.vms.add_pooled(DIGEST, "template", 0)
        assert vm is not None
        await store.vms.launched(vm.id)
        await store.vms.primed(vm.id)
        store.clock.pass_seconds(3600)
        await usage.count([CounterReading(vm.id, store.clock.at, True, 7.0, 300, 300)])
        assert await usage.days(LONG_AGO) == {}
        store.clock.pass_seconds(5)
        session = await store.start(user)
        assert session.vm_id == vm.id
        store.clock.pass_seconds(5)
        await usage.count([CounterReading(vm.id, store.clock.at, False, 8.0, 350, 300)])
        assert await usage.days(LONG_AGO) == {user: {TODAY: Use(5.0, 1.0, 50, 0, 1)}}


@run_async
async def test_usage_is_kept_per_user_and_old_days_are_pruned(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage = Usage(store.database, Quotas())
        ann, bob = await store.new_user(), await store.new_user()
        await store.start(ann)
        store.clock.pass_seconds(24 * 3600)
        await store.start(bob)
        tomorrow = TODAY + timedelta(days=1)
        both = {ann: {TODAY: Use(sessions=1)}, bob: {tomorrow: Use(sessions=1)}}
        assert await usage.days(LONG_AGO) == both
        assert await usage.days(tomorrow) == {bob: both[bob]}
        assert await usage.days(LONG_AGO, ann) == {ann: both[ann]}
        assert await usage.prune(tomorrow) == 1
        assert await usage.days(LONG_AGO) == {bob: both[bob]}


@run_async
async def test_usage_is_deleted_with_user_but_not_with_sessions(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        usage, user = Usage(store.database, Quotas()), await store.new_user()
        session = await store.start_ready(user)
        await usage.count([reading(store, session, 1.0)])
        await store.sessions.apply(session.id, "terminate")
        await store.vms.released(session.vm_id)
        store.clock.pass_seconds(10)
        assert await delete_ended_sessions(store.database, store.clock.at, 10) == 1
        assert await readings_left(store) == 0
        assert (await usage.days(LONG_AGO))[user][TODAY].sessions == 1
        await remove_user(store.database, user, clock=store.clock)
        assert await usage.days(LONG_AGO) == {}


@run_async
async def test_exceeded_quota_refuses_new_sessions_only(
    store_url: str,
) -> None:
    quotas = Quotas(vm_hours_per_day=1)
    async with opened(store_url, clock=clock()) as store:
        user, other = await store.new_user(), await store.new_user()
        sessions = Sessions(store.database, SessionLimits(), store.clock, quotas)
        usage = Usage(store.database, quotas)
        session, _ = await sessions.start(NewSession(user, "claude", DIGEST, "key"))
        await store.vms.launched(session.vm_id)
        store.clock.pass_seconds(3600)
        await usage.count([reading(store, session, 1.0)])
        with pytest.raises(QuotaExceeded, match=r"1\.0 of 1 VM hours of today used") as refused:
            await sessions.start(NewSession(user, "claude", DIGEST))
        assert refused.value.retry_after_seconds == 11 * 3600
        assert (await sessions.start(NewSession(user, "claude", DIGEST, "key")))[1] is False
        assert (await sessions.start(NewSession(other, "claude", DIGEST)))[1] is True
        (state,) = (await usage.quotas({user: "user"}, store.clock.at))[user]
        assert (state.used, state.left, state.is_used_up) == (1.0, 0.0, True)
        store.clock.pass_seconds(11 * 3600)
        assert (await sessions.start(NewSession(user, "claude", DIGEST)))[1] is True


@run_async
async def test_last_seen_times_and_owners_of_vms(store_url: str) -> None:
    async with opened(store_url, clock=clock()) as store:
        ann, bob, nobody = [await store.new_user() for _ in range(3)]
        session = await store.start_ready(ann)
        _, plain = await store.tokens.create(bob, "laptop")
        assert await store.users.last_seen() == {ann: START}
        store.clock.pass_seconds(120)
        caller = await store.tokens.caller_of(plain)
        assert caller is not None
        secret, _ = await SignIns(store.database, store.clock).create(caller, 3600)
        assert await store.users.last_seen(bob) == {bob: store.clock.at}
        store.clock.pass_seconds(120)
        await SignIns(store.database, store.clock).caller_of(secret)
        await store.sessions.heartbeat(session.id)
        assert await store.users.last_seen() == {ann: store.clock.at, bob: store.clock.at}
        assert await store.users.last_seen(nobody) == {}
        found = await store.sessions.of_vms([session.vm_id, "unknown"])
        assert {vm: each.id for vm, each in found.items()} == {session.vm_id: session.id}
        assert list(await store.users.some([ann, "unknown"])) == [ann]
