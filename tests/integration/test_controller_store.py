"""The store on real SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from polydev.controller.entities import Caller, Session, Vm
from polydev.controller.session_and_vm_states import SessionEvent
from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables
from polydev.controller.store.sessions import NewSession
from polydev.controller.store.users import TokenNotFound
from polydev.controller.store.vm_slots import sync_slots
from polydev.errors import (
    CapacityError,
    ConfigError,
    SessionError,
    SessionExpired,
    SessionNotFound,
    TooManySessions,
    UserNotFound,
    VmError,
)
from tests.stores import DIGEST, Store, opened, run_async

pytest_plugins = ["tests.databases"]

NOBODY = "00000000-0000-4000-8000-000000000000"


async def slots_of(store: Store) -> dict[int, tuple[str, bool]]:
    async with store.database.reading() as connection:
        found = await connection.execute(sa.select(tables.slots))
        return {row.number: (row.vm_ip, row.declared) for row in found}


async def news_of(store: Store, session: Session) -> list[tuple[str, object]]:
    news = await store.sessions.news(session.id)
    return [(each.kind, each.data.get("state") or each.data.get("stage")) for each in news]


async def session_and_vm(store: Store, session: Session) -> tuple[Session, Vm]:
    return await store.sessions.get(session.id), await store.vms.get(session.vm_id)


@run_async
async def test_users(store_url: str) -> None:
    async with opened(store_url) as store:
        ann = await store.users.add("user", "Ann")
        store.clock.pass_seconds(1)
        bob = await store.users.add("admin", user_id=NOBODY)
        assert await store.users.list() == [ann, bob]
        assert await store.users.get(ann.id) == ann
        assert await store.users.set_role(ann.id, "operator") == replace(ann, role="operator")
        assert await store.users.find("nobody") is None
        with pytest.raises(SessionError, match="exists"):
            await store.users.add("user", user_id=NOBODY)
        with pytest.raises(UserNotFound):
            await store.users.set_role("nobody", "admin")


@run_async
async def test_tokens(store_url: str) -> None:
    async with opened(store_url) as store:
        user = await store.users.add("operator")
        token, plain = await store.tokens.create(user.id, "laptop")
        assert plain.startswith("pdt_")
        caller = Caller(user.id, "operator", "token", None, token.id)
        assert await store.tokens.caller_of(plain) == caller
        assert await store.tokens.caller_of(f"{plain}x") is None
        assert await store.tokens.not_revoked([token.id, NOBODY]) == {token.id}
        assert await store.tokens.list(NOBODY) == []
        revoked = await store.tokens.revoke(token.id)
        assert revoked.revoked_at == store.clock.at
        store.clock.pass_seconds(1)
        assert await store.tokens.revoke(token.id) == revoked
        assert await store.tokens.caller_of(plain) is None
        assert await store.tokens.not_revoked([token.id]) == set()
        with pytest.raises(TokenNotFound):
            await store.tokens.revoke(NOBODY)
        with pytest.raises(UserNotFound):
            await store.tokens.create(NOBODY, "laptop")


@run_async
async def test_token_is_stored_only_as_hash(store_url: str) -> None:
    async with opened(store_url) as store:
        _, plain = await store.tokens.create(await store.new_user(), "laptop")
        async with store.database.reading() as connection:
            row = (await connection.execute(sa.select(tables.tokens))).one()
        assert plain not in str(row)
        assert plain.removeprefix("pdt_") not in str(row)


@run_async
async def test_token_expires_and_last_use_is_updated_once_a_minute(store_url: str) -> None:
    async with opened(store_url) as store:
        start = store.clock.at
        expires_at = start + timedelta(seconds=100)
        _, plain = await store.tokens.create(await store.new_user(), "laptop", expires_at)
        used = []
        for _ in range(5):
            caller = await store.tokens.caller_of(plain)
            assert caller
            assert caller.expires_at == expires_at
            used += [token.used_at for token in await store.tokens.list()]
            store.clock.pass_seconds(20)
        later = start + timedelta(seconds=60)
        assert used == [start, start, start, later, later]
        assert await store.tokens.caller_of(plain) is None


@run_async
async def test_undeclared_slot_is_not_taken(store_url: str) -> None:
    async with opened(store_url, slots=3) as store:
        user = await store.new_user()
        await sync_slots(store.database, [2, 4], IPv4Network("192.168.100.0/24"))
        taken = [(await store.vms.get((await store.start(user)).vm_id)).slot for _ in range(2)]
        assert taken == [2, 4]
        with pytest.raises(CapacityError):
            await store.start(await store.new_user())


@run_async
async def test_sync_slots_makes_slots_as_declared(store_url: str) -> None:
    async with opened(store_url, slots=3) as store:
        network = IPv4Network("192.168.100.0/24")
        await sync_slots(store.database, [3, 4, 5], network)
        assert await slots_of(store) == {
            2: ("192.168.100.2", False),
            3: ("192.168.100.3", True),
            4: ("192.168.100.4", True),
            5: ("192.168.100.5", True),
        }
        await sync_slots(store.database, [], network)
        with pytest.raises(CapacityError, match="no slots"):
            await store.start(await store.new_user())


@run_async
async def test_held_slot_keeps_its_address(store_url: str) -> None:
    async with opened(store_url, slots=2) as store:
        session = await store.start(await store.new_user())
        other = IPv4Network("10.0.0.0/24")
        await sync_slots(store.database, [2, 3], other)
        assert (await store.vms.get(session.vm_id)).vm_ip == "192.168.100.2"
        assert (await slots_of(store))[3] == ("10.0.0.3", True)
        await store.vms.stop(session.vm_id)
        await store.vms.released(session.vm_id)
        await sync_slots(store.database, [2, 3], other)
        assert await slots_of(store) == {2: ("10.0.0.2", True), 3: ("10.0.0.3", True)}


@run_async
async def test_slots_move_to_overlapping_network(store_url: str) -> None:
    async with opened(store_url, slots=10) as store:  # 192.168.100.2 to .11
        near = IPv4Network("192.168.100.4/30")
        await sync_slots(store.database, [2, 3], near)
        found = await slots_of(store)
        assert {n: ip for n, (ip, declared) in found.items() if declared} == {
            2: "192.168.100.6",
            3: "192.168.100.7",
        }
        session = await store.start(await store.new_user())
        assert (await store.vms.get(session.vm_id)).vm_ip == "192.168.100.6"
        with pytest.raises(ConfigError, match="slot 6 would get the address of slot 2"):
            await sync_slots(store.database, [6], IPv4Network("192.168.100.0/24"))
        assert (await slots_of(store)) == found


@run_async
async def test_session_states_from_start_to_end(store_url: str) -> None:
    async with opened(store_url) as store:
        session, made = await store.sessions.start(
            NewSession(await store.new_user(), "codex", DIGEST)
        )
        assert made
        assert session.state == "vm_creating"
        assert await session_and_vm(store, session) == (
            session,
            Vm(
                session.vm_id,
                2,
                "192.168.100.2",
                "creating",
                "none",
                store.clock.at,
                DIGEST,
                store.clock.at,
            ),
        )
        await store.vms.launched(session.vm_id)
        for seconds, stage in ((2, "kernel"), (3, "init")):
            store.clock.pass_seconds(seconds)
            await store.vms.stage_reached(session.vm_id, stage)  # type: ignore[arg-type]
        assert (await session_and_vm(store, session))[0].state == "vm_starting"
        store.clock.pass_seconds(5)
        await store.vms.ready(session.vm_id)
        now, vm = await session_and_vm(store, session)
        assert (now.state, vm.state, vm.stage) == ("vm_created", "ready", "ready")
        assert vm.timings == {"kernel": 2.0, "init": 5.0, "ready": 10.0}
        assert now.expires_at == store.clock.at + timedelta(seconds=300)
        events: tuple[SessionEvent, ...] = ("oauth_started", "oauth_done", "complete")
        for event in events:
            now = await store.sessions.apply(session.id, event)
        now, vm = await session_and_vm(store, session)
        assert (now.state, now.ended_at, now.reason) == ("completed", store.clock.at, None)
        assert vm.state == "stopping"
        assert await news_of(store, session) == [
            ("state", "vm_creating"),
            ("state", "vm_starting"),
            ("stage", "kernel"),
            ("stage", "init"),
            ("stage", "ready"),
            ("state", "vm_created"),
            ("state", "oauth_pending"),
            ("state", "authenticated"),
            ("state", "completed"),
        ]
        await store.vms.released(session.vm_id)
        vm = await store.vms.get(session.vm_id)
        assert (vm.state, vm.released_at, vm.ended_at) == ("ended", store.clock.at, store.clock.at)
        assert await store.vms.held() == []
        assert await store.sessions.live_of_vm(session.vm_id) is None


@run_async
async def test_repeated_vm_steps_change_nothing(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start(await store.new_user())
        steps: list[tuple[object, ...]] = []
        for _ in range(2):
            await store.vms.launched(session.vm_id)
            await store.vms.stage_reached(session.vm_id, "network")
            await store.vms.stage_reached(session.vm_id, "init")  # came late
            await store.vms.ready(session.vm_id)
            steps.append((*await session_and_vm(store, session), await news_of(store, session)))
            store.clock.pass_seconds(10)
        assert steps[0] == steps[1]
        for _ in range(2):
            await store.vms.fail(session.vm_id, "died", ["a.service"], "last\0 words")
            await store.vms.stop(session.vm_id)
            await store.vms.launched(session.vm_id)
            await store.vms.ready(session.vm_id)
            await store.vms.stage_reached(session.vm_id, "kernel")
            steps.append((*await session_and_vm(store, session), await news_of(store, session)))
            store.clock.pass_seconds(10)
        assert steps[2] == steps[3]
        for _ in range(2):
            await store.vms.released(session.vm_id)
            steps.append((*await session_and_vm(store, session), await news_of(store, session)))
            store.clock.pass_seconds(10)
        assert steps[4] == steps[5]
        assert await store.vms.repair() == []


@run_async
async def test_failed_vm_fails_its_session(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start(await store.new_user())
        await store.vms.launched(session.vm_id)
        await store.vms.fail(session.vm_id, "kernel panic", ["x.service"], "the end")
        now, vm = await session_and_vm(store, session)
        assert (now.state, now.reason, now.ended_at) == ("failed", "kernel panic", store.clock.at)
        assert (vm.state, vm.reason) == ("stopping", "kernel panic")
        assert (vm.failed_units, vm.serial_tail) == (("x.service",), "the end")
        news = (await store.sessions.news(session.id))[-1]
        assert news.data == {"state": "failed", "reason": "kernel panic"}
        since = store.clock.at
        assert await store.vms.failed_since(since) == 1
        store.clock.pass_seconds(5)
        await store.vms.released(session.vm_id)
        assert (await store.vms.get(session.vm_id)).state == "failed"
        assert await store.vms.failed_since(since) == 1
        assert await store.vms.failed_since(since + timedelta(seconds=6)) == 0


@run_async
async def test_stopped_vm_ends_its_session(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start_ready(await store.new_user())
        await store.vms.stop(session.vm_id)
        now, vm = await session_and_vm(store, session)
        assert (now.state, now.reason) == ("failed", "its VM was ended")
        assert (vm.state, vm.reason) == ("stopping", None)
        await store.vms.released(session.vm_id)
        assert (await store.vms.get(session.vm_id)).state == "ended"
        assert await store.vms.failed_since(store.clock.at) == 0


@run_async
async def test_impossible_session_steps_are_refused(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start(await store.new_user())
        with pytest.raises(ValueError, match="oauth_done cannot come in vm_creating"):
            await store.sessions.apply(session.id, "oauth_done")
        await store.sessions.apply(session.id, "terminate")
        for late in (
            store.sessions.apply(session.id, "terminate"),
            store.sessions.heartbeat(session.id),
        ):
            with pytest.raises(SessionExpired, match="the session is over: terminated"):
                await late
        unknown: tuple[Awaitable[object], ...] = (
            store.sessions.get(NOBODY),
            store.sessions.heartbeat(NOBODY),
            store.sessions.apply(NOBODY, "fail"),
            store.sessions.add_news(NOBODY, "note", {}),
        )
        for asked in unknown:
            with pytest.raises(SessionNotFound):
                await asked
        for call in (store.vms.get, store.vms.launched, store.vms.released, store.vms.stop):
            with pytest.raises(VmError, match="there is no VM"):
                await call(NOBODY)


@run_async
async def test_failed_transaction_writes_nothing(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await store.start(await store.new_user())
        with pytest.raises(IntegrityError):
            async with store.database.writing() as connection:
                await connection.execute(sa.update(tables.sessions).values(state="failed"))
                await connection.execute(sa.update(tables.vms).values(state="asleep"))
        assert (await store.sessions.get(session.id)) == session


@run_async
async def test_vm_of_live_session_cannot_be_released(store_url: str) -> None:
    async with opened(store_url, slots=1) as store:
        user = await store.new_user()
        session = await store.start_ready(user)
        with pytest.raises(VmError, match=r"cannot release VM .*: it is ready"):
            await store.vms.released(session.vm_id)
        # A state that no transaction of ours leaves.
        async with store.database.writing() as connection:
            await connection.execute(sa.update(tables.vms).values(state="stopping"))
        with pytest.raises(VmError, match=f"session {session.id} is using it"):
            await store.vms.released(session.vm_id)
        with pytest.raises(CapacityError):
            await store.start(user)
        await store.sessions.apply(session.id, "terminate")
        with pytest.raises(CapacityError, match="all 1 slots are held by VMs that are stopping"):
            await store.start(user)
        await store.vms.released(session.vm_id)
        again = await store.start(user)
        assert (await store.vms.get(again.vm_id)).vm_ip == "192.168.100.2"


@run_async
async def test_session_limits(store_url: str) -> None:
    async with opened(store_url, slots=3, limits=SessionLimits(per_user=2)) as store:
        user, other = await store.new_user(), await store.new_user()
        first = await store.start(user)
        store.clock.pass_seconds(10)
        second = await store.start(user)
        with pytest.raises(TooManySessions, match=f"{first.id}, {second.id}"):
            await store.start(user)
        store.clock.pass_seconds(10)
        third = await store.start(other)
        await store.sessions.heartbeat(first.id)
        with pytest.raises(CapacityError, match=f"all 3 slots .* {second.id}, not used since"):
            await store.start(other)
        with pytest.raises(UserNotFound):
            await store.start(NOBODY)
        slots = [(await store.vms.get(each.vm_id)).slot for each in (first, second, third)]
        assert slots == [2, 3, 4]
        assert len(await store.sessions.list()) == 3


@run_async
async def test_same_idempotency_key_returns_same_session(store_url: str) -> None:
    async with opened(store_url) as store:
        user, other = await store.new_user(), await store.new_user()
        session = await store.start(user, "key")
        new = NewSession(user, "claude", DIGEST, "key")
        assert await store.sessions.start(new) == (session, False)
        assert (await store.start(other, "key")).id != session.id
        with pytest.raises(SessionError, match=f"belongs to session {session.id}"):
            await store.sessions.start(replace(new, provider="gemini"))
        ended = await store.sessions.apply(session.id, "terminate")
        assert await store.sessions.start(new) == (ended, False)


@run_async
async def test_heartbeats_delay_session_expiry(store_url: str) -> None:
    limits = SessionLimits(idle_seconds=60, max_seconds=100, per_user=9)
    async with opened(store_url, limits=limits) as store:
        user, start = await store.new_user(), store.clock.at
        boots, idle, used = [
            await store.start(user),
            await store.start_ready(user),
            await store.start_ready(user),
        ]
        store.clock.pass_seconds(50)
        beat = await store.sessions.heartbeat(used.id)
        assert beat.heartbeat_at == store.clock.at
        assert beat.expires_at == start + timedelta(seconds=100)
        assert (await store.sessions.heartbeat(boots.id)).expires_at == boots.expires_at
        assert await store.sessions.expire_due() == []
        store.clock.pass_seconds(10)
        expired = await store.sessions.expire_due()
        assert [(each.id, each.state) for each in expired] == [(idle.id, "expired")]
        assert expired[0].reason == "no viewer and no heartbeat for 60 s after the VM was ready"
        assert (await store.vms.get(idle.vm_id)).state == "stopping"
        store.clock.pass_seconds(40)
        expired = await store.sessions.expire_due()
        assert {each.id for each in expired} == {boots.id, used.id}
        assert {each.reason for each in expired} == {
            "the session reached its maximum duration of 100 s"
        }
        assert await store.sessions.expire_due() == []


@run_async
async def test_heartbeats_of_several_sessions(store_url: str) -> None:
    limits = SessionLimits(idle_seconds=60, max_seconds=100, per_user=9)
    async with opened(store_url, limits=limits) as store:
        user, start = await store.new_user(), store.clock.at
        starting = await store.start(user)
        await store.vms.launched(starting.vm_id)
        ready, ended, idle = [await store.start_ready(user) for _ in range(3)]
        await store.sessions.apply(ended.id, "terminate")
        store.clock.pass_seconds(30)
        ids = {each.id for each in (starting, ready, ended)} | {NOBODY}
        await store.sessions.watched(ids)
        await store.sessions.watched(set())
        found = {each.id: each for each in await store.sessions.list()}
        late, beat = start + timedelta(seconds=100), store.clock.at
        assert {
            name: (found[of.id].heartbeat_at, found[of.id].expires_at)
            for name, of in (("starting", starting), ("ready", ready))
        } == {
            "starting": (beat, late),
            "ready": (beat, beat + timedelta(seconds=60)),
        }
        assert (found[ended.id].heartbeat_at, found[idle.id].heartbeat_at) == (None, None)
        store.clock.pass_seconds(30)
        await store.sessions.watched({ready.id})
        assert (await store.sessions.get(ready.id)).expires_at == late
        assert [each.id for each in await store.sessions.expire_due()] == [idle.id]


@run_async
async def test_heartbeat_before_expiry_is_locked_keeps_session(store_url: str) -> None:
    """A session that was due gets a heartbeat before it is locked to be ended."""
    async with opened(store_url, limits=SessionLimits(idle_seconds=60)) as store:
        session = await store.start_ready(await store.new_user())
        store.clock.pass_seconds(60)
        with pytest.MonkeyPatch.context() as patch:
            expire = store.sessions._expire

            async def late(session_id: str) -> Session | None:
                await store.sessions.watched({session_id})
                return await expire(session_id)

            patch.setattr(store.sessions, "_expire", late)
            assert await store.sessions.expire_due() == []
        assert (await store.sessions.get(session.id)).is_live


@run_async
async def test_session_and_vm_lists_filter_and_order(store_url: str) -> None:
    async with opened(store_url, limits=SessionLimits(per_user=9)) as store:
        user, other = await store.new_user(), await store.new_user()
        made = []
        for who in (user, other, user):
            store.clock.pass_seconds(1)
            made.append(await store.start_ready(who))
        first, second, third = made
        first = await store.sessions.apply(first.id, "terminate")
        assert await store.sessions.list() == [third, second, first]
        assert await store.sessions.list(user) == [third, first]
        assert await store.sessions.list(live_only=True) == [third, second]
        assert await store.sessions.list(limit=1) == [third]
        assert await store.sessions.list(before=third) == [second, first]
        assert await store.sessions.live_of_vm(third.vm_id) == third
        ids = [each.vm_id for each in (third, second, first)]
        assert [vm.id for vm in await store.vms.list()] == ids
        assert [vm.id for vm in await store.vms.list(held_only=True)] == ids
        assert [vm.id for vm in await store.vms.list(user)] == [third.vm_id, first.vm_id]
        assert [vm.id for vm in await store.vms.held()] == ids[::-1]
        assert set(await store.vms.some([*ids[:2], "gone"])) == set(ids[:2])
        assert await store.sessions.live_of([third.id, first.id, "gone"]) == {third.id}


@run_async
async def test_list_pages_have_no_gaps_while_sessions_are_added(store_url: str) -> None:
    async with opened(store_url, slots=9, limits=SessionLimits(per_user=9)) as store:
        user = await store.new_user()
        for number in range(6):  # two at a time are made in the same moment
            store.clock.pass_seconds(number % 2)
            await store.start(user)
        whole, vms = await store.sessions.list(), await store.vms.list()
        store.clock.pass_seconds(1)
        seen = await store.sessions.list(limit=1)
        seen_vms = await store.vms.list(limit=1)
        await store.start(user)
        for _ in range(5):
            seen += await store.sessions.list(user, limit=1, before=seen[-1])
            seen_vms += await store.vms.list(user, held_only=True, limit=1, before=seen_vms[-1])
        assert (seen, seen_vms) == (whole, vms)
        assert await store.sessions.list(before=seen[-1]) == []


@run_async
async def test_failed_checks_count_consecutive_failures(store_url: str) -> None:
    async with opened(store_url) as store:
        vm_id = (await store.start_ready(await store.new_user())).vm_id
        found = [await store.vms.checked(vm_id, ok) for ok in (True, False, False, True, False)]
        assert found == [0, 1, 2, 0, 1]
        assert (await store.vms.get(vm_id)).failed_checks == 1


@run_async
async def test_session_news_are_numbered_and_listed(store_url: str) -> None:
    async with opened(store_url) as store:
        assert await store.sessions.latest_news_number() == 0
        session = await store.start(await store.new_user())
        await store.sessions.add_news(session.id, "unhealthy", {"checks": 3})
        state, note = await store.sessions.news(session.id)
        assert (note.kind, note.data, note.at) == ("unhealthy", {"checks": 3}, store.clock.at)
        assert await store.sessions.news(session.id, after=state.number) == [note]
        assert await store.sessions.news(session.id, limit=1) == [state]
        assert await store.sessions.latest_news_number() == note.number


@run_async
async def test_vm_news_go_to_live_sessions_only(store_url: str) -> None:
    async with opened(store_url) as store:
        live, over, other = [await store.start(await store.new_user()) for _ in range(3)]
        await store.sessions.apply(over.id, "terminate")
        words = {vm_id: {"place": 1} for vm_id in (live.vm_id, over.vm_id, NOBODY)}
        await store.sessions.add_news_of_vms("queued", words)

        async def places(session: Session) -> list[object]:
            found = await store.sessions.news(session.id)
            return [news.data["place"] for news in found if news.kind == "queued"]

        assert [await places(each) for each in (live, over, other)] == [[1], [], []]


@run_async
async def test_delete_ended_removes_old_sessions_and_vms(store_url: str) -> None:
    async with opened(store_url, slots=9, limits=SessionLimits(per_user=9)) as store:
        user = await store.new_user()
        old, older, held, live = [await store.start(user, key) for key in "abcd"]
        for each in (old, older, held):
            await store.sessions.apply(each.id, "terminate")
        for each in (old, older):
            await store.vms.released(each.vm_id)
        store.clock.pass_seconds(60)
        young = await store.start(user, "e")
        await store.sessions.apply(young.id, "terminate")
        await store.vms.released(young.vm_id)
        now = store.clock.at
        assert await store.sessions.delete_ended(now - timedelta(seconds=61), 9) == 0
        assert await store.sessions.delete_ended(now, 1) == 1
        assert await store.sessions.delete_ended(now, 9) == 1
        assert await store.sessions.delete_ended(now, 9) == 0
        left = {each.id for each in await store.sessions.list()}
        assert left == {held.id, live.id, young.id}
        assert {vm.id for vm in await store.vms.list()} == {held.vm_id, live.vm_id, young.vm_id}
        for gone in (old, older):
            assert await store.sessions.news(gone.id) == []
            with pytest.raises(SessionNotFound):
                await store.sessions.heartbeat(gone.id)
        # The key of a deleted session starts a new one; the key of a kept session does not.
        assert (await store.start(user, "a")).id not in {old.id, *left}
        assert await store.start(user, "d") == live


@run_async
async def test_delete_ended_removes_unused_pool_vms(store_url: str) -> None:
    async with opened(store_url, slots=4) as store:
        made = [await store.vms.add_pooled(DIGEST, "7e" * 32, 0) for _ in range(3)]
        gone, drained, kept = [vm.id for vm in made if vm]
        for vm_id in (gone, drained):
            await store.vms.drain(vm_id)
        await store.vms.released(gone)
        assert await store.sessions.delete_ended(store.clock.at, 9) == 0
        assert {vm.id for vm in await store.vms.list()} == {gone, drained, kept}
        store.clock.pass_seconds(1)
        assert await store.sessions.delete_ended(store.clock.at, 9) == 0
        assert {vm.id for vm in await store.vms.list()} == {drained, kept}


@run_async
async def test_pool_leaves_the_spare_slots_to_sessions(store_url: str) -> None:
    async with opened(store_url, slots=3) as store:
        made = [await store.vms.add_pooled(DIGEST, "7e" * 32, 2) for _ in range(2)]
        assert [vm is not None for vm in made] == [True, False]


@run_async
async def test_oldest_primed_pool_vm_is_taken_first(
    store_url: str,
) -> None:
    async with opened(store_url, slots=5, limits=SessionLimits(per_user=9)) as store:
        made = [await store.vms.add_pooled("0" * 64, "7e" * 32, 0) for _ in range(4)]
        drained, priming, older, newer = [vm.id for vm in made if vm]
        for each in (older, newer):
            await store.vms.launched(each)
            await store.vms.primed(each)
        await store.vms.drain(drained, "it is of no use")
        store.clock.pass_seconds(5)
        user = await store.new_user()
        sessions = [await store.start(user) for _ in range(4)]
        assert [each.vm_id for each in sessions[:2]] == [older, newer]
        taken = await store.vms.get(older)
        assert (taken.pooled, taken.state, taken.started_at) == (False, "starting", store.clock.at)
        assert (taken.ready_at, taken.paused_at) == (None, None)
        states = [news.data["state"] for news in await store.sessions.news(sessions[0].id)]
        assert states == ["vm_creating", "vm_starting"]
        # Next comes the free slot, and last the VM that is still being primed.
        assert sessions[2].vm_id not in {drained, priming}
        assert sessions[3].vm_id == priming
        assert {each.state for each in sessions[2:]} == {"vm_creating"}
        with pytest.raises(CapacityError):
            await store.start(user)
        # A late drain does not end it, since a session has it now.
        await store.vms.drain(older, "too late")
        assert (await store.vms.get(older)).state == "starting"


@run_async
async def test_delete_ended_keeps_credentials_of_the_user(store_url: str) -> None:
    async with opened(store_url) as store:
        user = await store.new_user()
        session = await store.start(user)
        at = store.clock.at
        kept = {"user_id": user, "provider": "claude", "session_id": session.id}
        sealed = {"key_id": "k", "sealed": b"x", "created_at": at, "updated_at": at}
        async with store.database.writing() as connection:
            await connection.execute(sa.insert(tables.credentials).values(**kept, **sealed))
        await store.sessions.apply(session.id, "terminate")
        await store.vms.released(session.vm_id)
        assert await store.sessions.delete_ended(at + timedelta(seconds=1), 9) == 1
        async with store.database.reading() as connection:
            (row,) = await connection.execute(sa.select(tables.credentials))
        assert (row.user_id, row.session_id) == (user, None)


@run_async
async def test_prune_deletes_news_of_old_sessions(store_url: str) -> None:
    async with opened(store_url) as store:
        user = await store.new_user()
        old, live = await store.start(user), await store.start(user)
        await store.sessions.apply(old.id, "terminate")
        number = await store.sessions.latest_news_number()
        store.clock.pass_seconds(60)
        assert await store.sessions.prune(store.clock.at - timedelta(seconds=61)) == 0
        assert await store.sessions.prune(store.clock.at) == 2
        assert await store.sessions.news(old.id) == []
        assert len(await store.sessions.news(live.id)) == 1
        assert (await store.sessions.get(old.id)).state == "terminated"
        await store.sessions.add_news(live.id, "note", {})
        assert await store.sessions.latest_news_number() > number  # no number comes twice


@run_async
async def test_repair_fixes_inconsistent_vms_and_sessions(store_url: str) -> None:
    async with opened(store_url, limits=SessionLimits(per_user=9)) as store:
        user = await store.new_user()
        made = [await store.start_ready(user) for _ in range(4)]
        assert await store.vms.repair() == []
        gone, orphan, over, loose = made
        await store.vms.stop(over.vm_id)
        wrong: list[tuple[sa.Table, str, dict[str, object]]] = [
            (tables.vms, gone.vm_id, {"state": "failed", "reason": "it died"}),
            (tables.sessions, orphan.id, {"state": "failed", "ended_at": store.clock.at}),
            (tables.vms, over.vm_id, {"state": "ended"}),
            (tables.vms, loose.vm_id, {"released_at": store.clock.at}),
        ]
        async with store.database.writing() as connection:
            for table, row_id, values in wrong:
                await connection.execute(
                    sa.update(table).where(table.c.id == row_id).values(values)
                )
        done = await store.vms.repair()
        assert len(done) == 6
        assert await store.vms.repair() == []
        now, vm = await session_and_vm(store, gone)
        assert (now.state, now.reason, vm.state) == (
            "failed",
            "its VM is gone: it died",
            "stopping",
        )
        assert (await store.vms.get(orphan.vm_id)).state == "stopping"
        assert (await store.vms.get(over.vm_id)).state == "stopping"
        now, vm = await session_and_vm(store, loose)
        assert (now.state, vm.state) == ("failed", "failed")
        assert [vm.id for vm in await store.vms.held()] == [
            each.vm_id for each in (gone, orphan, over)
        ]


@run_async
async def test_writer_that_waits_too_long_for_lock_raises(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("database", "store.transactions"):
        monkeypatch.setattr(f"polydev.controller.{module}.BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr("polydev.controller.database.SQLITE_PRAGMAS", ("PRAGMA busy_timeout=100",))
    async with opened(store_url) as store:
        user = await store.new_user()
        async with store.database.writing() as connection:
            await connection.execute(sa.update(tables.users).values(role="user"))
            with pytest.raises(SQLAlchemyError, match="lock"):
                await asyncio.wait_for(store.users.set_role(user, "admin"), 60)
        assert (await store.users.get(user)).role == "user"
