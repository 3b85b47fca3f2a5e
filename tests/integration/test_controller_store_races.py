"""Concurrent changes of one database, over separate connections as processes have them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session
from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables, vm_slots
from polydev.controller.store.session_changes import (
    add_news,
    change_session,
    change_vm,
    locked_session,
)
from polydev.controller.store.sessions import NewSession
from polydev.controller.store.vm_slots import sync_slots, take_slot
from polydev.errors import CapacityError, SessionExpired, TooManySessions
from tests.databases import until_lock_awaited
from tests.stores import DIGEST, NETWORK, Store, opened, run_async

pytest_plugins = ["tests.databases"]

RACERS = 8
MANY = SessionLimits(per_user=50)


async def stores(stack: AsyncExitStack, url: str, slots: int, count: int = 2) -> list[Store]:
    """Several stores of one database, each with its own connections."""
    return [await stack.enter_async_context(opened(url, slots, MANY)) for _ in range(count)]


async def gather_results(
    racers: list[Callable[[], Awaitable[tuple[Session, bool]]]],
) -> tuple[list[Session], list[BaseException]]:
    done = await asyncio.gather(*(racer() for racer in racers), return_exceptions=True)
    won = [each[0] for each in done if not isinstance(each, BaseException)]
    return won, [each for each in done if isinstance(each, BaseException)]


async def start_all(
    racing: list[Store], keys: list[str | None], users: list[str]
) -> tuple[list[Session], list[BaseException]]:
    def racer(number: int) -> Callable[[], Awaitable[tuple[Session, bool]]]:
        new = NewSession(users[number], "claude", DIGEST, keys[number])
        return lambda: racing[number % len(racing)].sessions.start(new)

    return await gather_results([racer(number) for number in range(len(users))])


@pytest.mark.parametrize("slots", [1, 3])
@run_async
async def test_last_slots_are_given_once_to_concurrent_starts(store_url: str, slots: int) -> None:
    async with AsyncExitStack() as stack:
        racing = await stores(stack, store_url, slots)
        users = [await racing[0].new_user() for _ in range(RACERS)]
        won, lost = await start_all(racing, [None] * RACERS, users)
        assert len(won) == slots
        assert [type(error) for error in lost] == [CapacityError] * (RACERS - slots)
        held = await racing[0].vms.held()
        assert sorted(vm.slot for vm in held) == list(range(2, 2 + slots))
        assert {vm.id for vm in held} == {session.vm_id for session in won}
        assert len(await racing[0].sessions.list()) == slots


@run_async
async def test_last_pool_vms_are_given_once_to_concurrent_starts(store_url: str) -> None:
    """Each pool VM goes to one session; the other sessions get free slots."""
    async with AsyncExitStack() as stack:
        racing = await stores(stack, store_url, slots=RACERS)
        vms = racing[0].vms
        pooled = [await vms.add_pooled(DIGEST, "7e" * 32, 0) for _ in range(RACERS // 2)]
        for each in pooled:
            assert each
            await vms.launched(each.id)
            await vms.primed(each.id)
        users = [await racing[0].new_user() for _ in range(RACERS)]
        won, lost = await start_all(racing, [None] * RACERS, users)
        assert lost == []
        assert {each.id for each in pooled if each} < {session.vm_id for session in won}
        assert len({session.vm_id for session in won}) == RACERS
        assert not any(vm.pooled for vm in await vms.held())


@run_async
async def test_concurrent_starts_with_same_key_make_one_session(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        racing = await stores(stack, store_url, slots=4)
        user = await racing[0].new_user()
        won, lost = await start_all(racing, ["key"] * RACERS, [user] * RACERS)
        assert lost == []
        assert len({session.id for session in won}) == 1
        assert len(await racing[0].vms.held()) == 1


@run_async
async def test_concurrent_starts_respect_limit_per_user(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        limits = SessionLimits(per_user=2)
        racing = [
            await stack.enter_async_context(opened(store_url, RACERS, limits)) for _ in range(2)
        ]
        user = await racing[0].new_user()
        won, lost = await start_all(racing, [None] * RACERS, [user] * RACERS)
        assert len(won) == 2
        assert {type(error) for error in lost} == {TooManySessions}


@run_async
async def test_start_skips_slot_taken_by_uncommitted_transaction(store_url: str) -> None:
    """Another process has taken the first slot but not yet committed."""
    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=2)
        user = await first.new_user()
        async with first.database.writing() as connection:
            taken = await take_slot(connection, DIGEST, first.clock.at)
            starting = asyncio.create_task(second.start(user))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection)
        session = await starting
        slots = {vm.id: vm.slot for vm in await first.vms.held()}
        assert slots == {taken: 2, session.vm_id: 3}


@run_async
async def test_session_end_and_vm_steps_do_not_deadlock(store_url: str) -> None:
    """Session and VM are changed from both sides and end in matching states."""
    async with AsyncExitStack() as stack:
        api, driver = await stores(stack, store_url, slots=RACERS)
        user = await api.new_user()
        made = [await api.start(user) for _ in range(RACERS)]

        async def boot(vm_id: str) -> None:
            await driver.vms.launched(vm_id)
            await driver.vms.stage_reached(vm_id, "kernel")
            await driver.vms.ready(vm_id)
            await driver.vms.fail(vm_id, "it died")

        async def end(session_id: str) -> None:
            try:
                await api.sessions.heartbeat(session_id)
                await api.sessions.apply(session_id, "terminate")
            except SessionExpired:
                pass

        await asyncio.gather(
            *(boot(session.vm_id) for session in made), *(end(session.id) for session in made)
        )
        for session in await api.sessions.list():
            vm = await api.vms.get(session.vm_id)
            assert vm.state == "stopping"
            assert (session.state, vm.reason) in (("terminated", None), ("failed", "it died"))
        assert await api.vms.repair() == []


async def heartbeat(store: Store, session: Session) -> None:
    with pytest.raises(SessionExpired):
        await store.sessions.heartbeat(session.id)


async def login(store: Store, session: Session) -> None:
    with pytest.raises(SessionExpired):
        await store.sessions.set_login(session.id, "waiting")


async def step(store: Store, session: Session) -> None:
    with pytest.raises(SessionExpired):
        await store.sessions.apply(session.id, "fail")


async def expiry(store: Store, session: Session) -> None:
    store.clock.at = session.expires_at
    assert await store.sessions.expire_due() == []


async def look(store: Store, session: Session) -> None:
    await store.sessions.watched([session.id])


@pytest.mark.parametrize("late", [heartbeat, login, step, expiry, look])
@run_async
async def test_changes_after_uncommitted_session_end_see_the_end(
    store_url: str, late: Callable[[Store, Session], Coroutine[None, None, None]]
) -> None:
    """The change arrives while the end of the session is not yet committed."""
    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=1)
        session = await first.start_ready(await first.new_user())
        async with first.database.writing() as connection:
            ended = await change_session(connection, session, "terminate", first.clock.at)
            coming = asyncio.create_task(late(second, session))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection, coming)
        await coming
        assert await first.sessions.get(session.id) == ended


@run_async
async def test_steps_of_one_vm_are_serialized(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=1)
        async with first.database.writing() as connection:
            vm_id = await take_slot(connection, DIGEST, first.clock.at)
            assert vm_id
        await first.vms.launched(vm_id)
        async with first.database.writing() as connection:
            await change_vm(connection, vm_id, stage="init", timings={"init": 2.0})
            coming = asyncio.create_task(second.vms.stage_reached(vm_id, "kernel"))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection)
        await coming
        vm = await first.vms.get(vm_id)
        assert (vm.stage, set(vm.timings)) == ("init", {"init", "kernel"})


@run_async
async def test_session_end_and_vm_failure_lock_in_same_order(store_url: str) -> None:
    """Each transaction changes both rows, in one order, so that there is no deadlock."""
    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=1)
        session = await first.start_ready(await first.new_user())
        async with first.database.writing() as connection:
            session = await locked_session(connection, session.id)
            dying = asyncio.create_task(second.vms.fail(session.vm_id, "it died"))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection)
            ended = await change_session(connection, session, "terminate", first.clock.at)
        await dying
        assert await first.sessions.get(session.id) == ended
        vm = await first.vms.get(session.vm_id)
        assert (vm.state, vm.reason) == ("stopping", None)


@run_async
async def test_news_of_concurrent_writers_become_visible_in_order(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        *writers, reader = await stores(stack, store_url, slots=4, count=3)
        user = await reader.new_user()
        made = [await reader.start(user) for _ in range(4)]

        async def write(writer: Store, session: Session) -> None:
            for number in range(10):
                await writer.sessions.add_news(session.id, "note", {"number": number})

        async def seen() -> list[int]:
            async with reader.database.reading() as connection:
                found = await connection.execute(sa.select(tables.session_news.c.number))
                return sorted(found.scalars())

        writing = asyncio.gather(*(write(each, session) for each in writers for session in made))
        before = await seen()
        while not writing.done():
            after = await seen()
            assert [number for number in after if number <= before[-1]] == before
            before = after
        await writing
        assert len(await seen()) == 4 + 2 * 4 * 10


@run_async
async def test_news_wait_for_uncommitted_news_of_another_session(store_url: str) -> None:
    """They have later numbers, and a reader that saw these first would miss the others."""
    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=2)
        user = await first.new_user()
        one, other = await first.start(user), await first.start(user)
        async with first.database.writing() as connection:
            await add_news(connection, one.id, first.clock.at, "note", {})
            coming = asyncio.create_task(second.sessions.add_news(other.id, "note", {}))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection, coming)
            assert not coming.done()
        await coming


@run_async
async def test_sync_slots_of_two_controllers_is_serialized(store_url: str) -> None:
    """The second controller starts after the first has read the slots."""
    real = vm_slots._known
    seconds: list[asyncio.Task[None]] = []

    async def known(connection: AsyncConnection) -> object:
        found = await real(connection)
        if not seconds:
            coming = sync_slots(second.database, range(2, 6), NETWORK)
            seconds.append(asyncio.create_task(coming))
            if connection.dialect.name == "postgresql":
                await until_lock_awaited(connection, seconds[0])
        return found

    async with AsyncExitStack() as stack:
        first, second = await stores(stack, store_url, slots=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vm_slots, "_known", known)
            await sync_slots(first.database, range(2, 4), NETWORK)
            await seconds[0]
        assert await declared(first) == [2, 3, 4, 5]


@run_async
async def test_concurrent_sync_slots_declares_each_slot_once(store_url: str) -> None:
    async with AsyncExitStack() as stack:
        both = await stores(stack, store_url, slots=0)
        await asyncio.gather(
            *(sync_slots(each.database, range(2, 40), NETWORK) for each in both * 4)
        )
        assert await declared(both[0]) == list(range(2, 40))


async def declared(store: Store) -> list[int]:
    async with store.database.reading() as connection:
        found = await connection.execute(sa.select(tables.slots.c.number))
        return sorted(found.scalars())
