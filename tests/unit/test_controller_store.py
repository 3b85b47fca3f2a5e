"""Invariants of the store under any order of steps, on SQLite; and its texts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from polydev.controller.entities import Session
from polydev.controller.migrate import migrate
from polydev.controller.session_and_vm_states import LIVE_VM_STATES
from polydev.controller.settings import SessionLimits
from polydev.controller.store import ended_sessions, tables
from polydev.controller.store.postgres_backup import libpq_url, secrets_of
from polydev.controller.store.session_expiry import expiry_reason, idle_end
from polydev.controller.store.tables import UtcDateTime
from polydev.controller.store.users import token_hash
from polydev.errors import CapacityError, SessionExpired, TooManySessions, VmError
from tests.stores import DIGEST, Store, opened

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
LIMITS = SessionLimits(idle_seconds=60, max_seconds=100, per_user=2)
SLOTS = 2
TEMPLATE = "7e" * 32


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    file: Path = tmp_path_factory.mktemp("store") / "controller.sqlite3"
    made = f"sqlite+aiosqlite:///{file}"
    asyncio.run(migrate(made))
    return made


@dataclass(frozen=True)
class Step:
    """An action on the `which`-th session, its VM or a VM of the pool."""

    what: str
    which: int


# Some actions are listed several times, so that more sessions progress.
WHATS = (
    *("start", "start", "launched", "launched", "ready", "ready", "release", "release"),
    *("stage", "heartbeat", "fail", "stop", "terminate", "wait", "expire", "rescue"),
    *("pool add", "pool add", "pool launched", "pool primed", "pool drain", "pool release"),
)
STEPS = st.lists(st.builds(Step, what=st.sampled_from(WHATS), which=st.integers(0, 2)), max_size=25)


@settings(max_examples=25)
@given(STEPS)
def test_session_vm_and_slot_agree_after_any_steps(url: str, steps: list[Step]) -> None:
    async def story() -> None:
        async with opened(url, SLOTS, LIMITS) as store:
            await forget(store)
            users = [await store.new_user() for _ in range(2)]
            made: list[Session] = []
            for step in steps:
                await do(store, step, users, made)
                await require_agreement(store)

    asyncio.run(story())


async def forget(store: Store) -> None:
    async with store.database.writing() as connection:
        for table in (tables.session_news, tables.sessions, tables.vms, tables.users):
            await connection.execute(sa.delete(table))


async def do(store: Store, step: Step, users: list[str], made: list[Session]) -> None:
    try:
        if step.what == "start":
            made.append(await store.start(users[step.which % 2]))
        elif step.what == "wait":
            store.clock.pass_seconds(30)
        elif step.what == "expire":
            await store.sessions.expire_due()
        elif step.what == "rescue":
            assert await store.vms.repair() == []
        elif step.what == "pool add":
            await store.vms.add_pooled(DIGEST, TEMPLATE, step.which)
        elif step.what.startswith("pool"):
            await do_to_pooled(store, step)
        elif step.which < len(made):
            await do_to(store, step.what, made[-1 - step.which])
    except (CapacityError, TooManySessions, SessionExpired, VmError):
        pass


async def do_to_pooled(store: Store, step: Step) -> None:
    pooled = [vm.id for vm in await store.vms.held() if vm.pooled]
    steps = {
        "launched": store.vms.launched,
        "primed": store.vms.primed,
        "drain": store.vms.drain,
        "release": store.vms.released,
    }
    if step.which < len(pooled):
        await steps[step.what.removeprefix("pool ")](pooled[step.which])


async def do_to(store: Store, what: str, session: Session) -> None:
    vm_id = session.vm_id
    steps = {
        "launched": lambda: store.vms.launched(vm_id),
        "ready": lambda: store.vms.ready(vm_id),
        "stage": lambda: store.vms.stage_reached(vm_id, "init"),
        "fail": lambda: store.vms.fail(vm_id, "it died"),
        "stop": lambda: store.vms.stop(vm_id),
        "release": lambda: store.vms.released(vm_id),
    }
    if what == "heartbeat":
        await store.sessions.heartbeat(session.id)
    elif what == "terminate":
        await store.sessions.apply(session.id, "terminate")
    else:
        await steps[what]()


async def require_agreement(store: Store) -> None:
    of_vm = {"vm_creating": "creating", "vm_starting": "starting", "vm_created": "ready"}
    held = await store.vms.held()
    assert len({vm.slot for vm in held}) == len(held) <= SLOTS
    sessions = await store.sessions.list()
    for session in sessions:
        vm = await store.vms.get(session.vm_id)
        assert (vm.released_at is None) == (vm in held)
        assert not vm.pooled
        if session.is_live:
            assert vm.state == of_vm[session.state]
            assert session.expires_at <= session.created_at + timedelta(seconds=LIMITS.max_seconds)
            assert (session.ended_at, session.reason) == (None, None)
        else:
            assert vm.state not in LIVE_VM_STATES
            assert session.ended_at is not None
        last = (await store.sessions.news(session.id))[-1].data
        assert last.get("state", session.state) == session.state
    whose = {session.vm_id for session in sessions}
    assert all(vm.pooled != (vm.id in whose) for vm in held)
    for user_id in {session.user_id for session in sessions}:
        assert len(await store.sessions.list(user_id, live_only=True)) <= LIMITS.per_user


def session(seconds_left: float, heartbeat: bool) -> Session:
    return Session(
        id="s",
        user_id="u",
        provider="claude",
        state="vm_created",
        vm_id="v",
        created_at=START,
        changed_at=START,
        expires_at=START + timedelta(seconds=seconds_left),
        heartbeat_at=START if heartbeat else None,
    )


@pytest.mark.parametrize(
    ("seconds_left", "heartbeat", "reason"),
    [
        (60, False, "no viewer and no heartbeat for 60 s after the VM was ready"),
        (60, True, "no viewer and no heartbeat for 60 s"),
        (100, True, "the session reached its maximum duration of 100 s"),
        (100, False, "the session reached its maximum duration of 100 s"),
    ],
)
def test_expiry_reason_of_a_session(seconds_left: float, heartbeat: bool, reason: str) -> None:
    assert expiry_reason(session(seconds_left, heartbeat), LIMITS) == reason


@pytest.mark.parametrize(
    ("used_after", "ends_after"), [(0, 60), (39.5, 99.5), (40, 100), (40.5, 100), (1000, 100)]
)
def test_session_end_is_limited_by_its_longest_lifetime(
    used_after: float, ends_after: float
) -> None:
    end = idle_end(session(60, True), START + timedelta(seconds=used_after), LIMITS)
    assert (end - START).total_seconds() == ends_after


def test_times_are_utc_with_any_database_time_zone() -> None:
    time, dialect = UtcDateTime(), sa.create_mock_engine("sqlite://", print).dialect
    east = timezone(timedelta(hours=2))
    assert time.process_bind_param(START.astimezone(east), dialect) == START
    for given_back in (START.replace(tzinfo=None), START.astimezone(east)):
        found = time.process_result_value(given_back, dialect)
        assert found is not None
        assert found.isoformat() == START.isoformat()


def test_a_token_is_hashed() -> None:
    assert token_hash("pdt_x") == (
        "5484323817e8891ffba367e9691843fbd5234136ac5b39b5013c68e629be11ca"
    )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:s3cret@db.example:6543/data?sslmode=require",
        "postgresql+psycopg://me@db.example:6543/data?sslmode=require&password=s3cret",
    ],
)
def test_passwords_are_passed_in_the_environment(url: str) -> None:
    assert libpq_url(url) == "postgresql://me@db.example:6543/data?sslmode=require"
    assert secrets_of(url) == {"PGPASSWORD": "s3cret"}


def test_url_without_a_password_sets_no_environment() -> None:
    assert secrets_of("postgresql+psycopg://me@/data?host=/run/postgresql") == {}


def test_libpq_url_encodes_blanks_as_percent_20() -> None:
    """SQLAlchemy encodes blanks as +, which PostgreSQL's own tools read as a plus sign."""
    url = "postgresql+psycopg://me@h/data?options=-c%20search_path%3Dx&sslrootcert=/a%20b%2Bc"
    assert libpq_url(url) == (
        "postgresql://me@h/data?options=-c%20search_path%3Dx&sslrootcert=%2Fa%20b%2Bc"
    )


def test_heartbeat_during_expiry_keeps_the_session(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat comes between the query for due sessions and the first expiry."""

    async def story() -> None:
        async with opened(url, SLOTS, LIMITS) as store:
            await forget(store)
            used = await store.start_ready(await store.new_user())
            store.clock.pass_seconds(LIMITS.idle_seconds + 1)
            end = store.sessions._expire

            async def used_first(session_id: str) -> Session | None:
                await store.sessions.heartbeat(session_id)
                return await end(session_id)

            monkeypatch.setattr(store.sessions, "_expire", used_first)
            assert await store.sessions.expire_due() == []
            assert (await store.sessions.get(used.id)).is_live

    asyncio.run(story())


def test_heartbeat_does_not_shorten_the_boot_time(url: str) -> None:
    async def story() -> None:
        async with opened(url, SLOTS, LIMITS) as store:
            await forget(store)
            begun = await store.start(await store.new_user())
            assert begun.expires_at > store.clock() + timedelta(seconds=LIMITS.idle_seconds)
            used = await store.sessions.heartbeat(begun.id)
            assert used.expires_at == begun.expires_at

    asyncio.run(story())


def test_sessions_are_deleted_by_their_end_time(url: str) -> None:
    """A session that began long ago, and ended lately, stays with its VM."""

    async def story() -> None:
        async with opened(url, SLOTS, LIMITS) as store:
            await forget(store)
            made = await store.start(await store.new_user())
            store.clock.pass_seconds(30)
            between = store.clock()
            store.clock.pass_seconds(30)
            await store.sessions.apply(made.id, "terminate")
            await store.vms.released(made.vm_id)
            assert await ended_sessions.delete_ended_sessions(store.database, between, 10) == 0
            assert (await store.sessions.get(made.id)).id == made.id
            store.clock.pass_seconds(1)
            assert (
                await ended_sessions.delete_ended_sessions(store.database, store.clock(), 10) == 1
            )

    asyncio.run(story())
