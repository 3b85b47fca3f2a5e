"""Durations of session starts, by the source of the VM, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta

from polydev.controller.settings import SessionLimits
from polydev.controller.store.session_start_times import SessionStart, SessionStarts
from polydev.vm.identity import Receipt
from tests.stores import DIGEST, Store, opened, run_async

pytest_plugins = ["tests.databases"]

LIMITS = SessionLimits(per_user=9)
TEMPLATE = "7e" * 32


async def resume(store: Store, vm_id: str, session_id: str) -> None:
    vm = await store.vms.get(vm_id)
    if vm.state == "creating":
        await store.vms.resumes(vm_id, DIGEST, TEMPLATE)
        await store.vms.launched(vm_id)
    store.clock.pass_seconds(0.5)
    receipt = Receipt(vm_id, session_id, "h", "m", "b", "s", "r", 1.0)
    await store.vms.resumed(vm_id, receipt)


async def starts(store: Store, begin: datetime) -> list[SessionStart]:
    return await SessionStarts(store.database, LIMITS).between(begin, store.clock.at)


@run_async
async def test_each_start_is_counted_once_by_vm_source(store_url: str) -> None:
    async with opened(store_url, limits=LIMITS) as store:
        begin, user = store.clock.at, await store.new_user()
        pooled = await store.vms.add_pooled(DIGEST, TEMPLATE, 0)
        assert pooled is not None
        await store.vms.launched(pooled.id)
        await store.vms.primed(pooled.id)
        assert await starts(store, begin) == [], "a VM of the pool is nobody's start"
        store.clock.pass_seconds(60)
        first = await store.start(user)
        assert first.vm_id == pooled.id
        store.clock.pass_seconds(1)
        assert await starts(store, begin) == [], "it has not become ready"
        await resume(store, first.vm_id, first.id)
        second = await store.start(user)
        await resume(store, second.vm_id, second.id)
        third = await store.start(user)
        store.clock.pass_seconds(30)
        await store.vms.launched(third.vm_id)
        await store.vms.ready(third.vm_id)
        found = await starts(store, begin)
        assert [(each.how, each.seconds) for each in found] == [
            ("pool", 1.5),
            ("clone", 0.5),
            ("boot", 30.0),
        ]
        middle = found[1].ready_at
        later = await starts(store, middle)
        assert later == found[2:], "the span's begin belongs to the span before"


@run_async
async def test_clone_that_booted_instead_counts_as_boot(store_url: str) -> None:
    async with opened(store_url, limits=LIMITS) as store:
        begin, session = store.clock.at, await store.start(await store.new_user())
        await store.vms.resumes(session.vm_id, DIGEST, TEMPLATE)
        await store.vms.boots(session.vm_id, "it did not answer")
        await store.vms.launched(session.vm_id)
        store.clock.pass_seconds(20)
        await store.vms.ready(session.vm_id)
        (found,) = await starts(store, begin)
        assert (found.how, found.seconds) == ("boot", 20.0)


@run_async
async def test_start_of_long_waiting_session_is_found(store_url: str) -> None:
    async with opened(store_url, limits=LIMITS) as store:
        session = await store.start(await store.new_user())
        store.clock.pass_seconds(3600)
        begin = store.clock.at
        await store.vms.launched(session.vm_id)
        store.clock.at += timedelta(seconds=1)
        await store.vms.ready(session.vm_id)
        (found,) = await starts(store, begin)
        assert found.seconds == 3601.0
