"""Handovers of credentials on both databases: one per session, one holder, all of it logged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from polydev.controller.credential_encryption import Keyring, checked_recipient
from polydev.controller.database import create_engine
from polydev.controller.entities import Caller, Session
from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables
from polydev.controller.store.credential_handovers import CredentialHandovers
from polydev.controller.store.credential_injections import CredentialInjections
from polydev.controller.store.credential_log import CredentialLog, actor_of
from polydev.controller.store.credentials import CredentialStore, ResealCounts
from polydev.controller.store.sessions import MOST_LOGIN_NEWS, NewSession
from polydev.controller.store.transactions import Database
from polydev.controller.store.user_removal import remove_user
from polydev.errors import CredentialsInUse, SessionError, SessionExpired
from tests.stores import DIGEST, Store, opened, run_async
from tests.webhooks import rows

pytest_plugins = ["tests.databases"]

KEYS = Keyring([b"k" * 32])
RECIPIENT = "age1jz07tff4p9688ugj3ecm00y7g43q3ttq9xt63ckprhc7ljyvhdeqew6uda"
MANY = SessionLimits(per_user=50)


def handovers_of(store: Store, complete_after_seconds: float | None = 10) -> CredentialHandovers:
    return CredentialHandovers(store.database, KEYS, complete_after_seconds, store.clock)


def credentials_of(store: Store) -> CredentialStore:
    return CredentialStore(store.database, KEYS, store.clock)


@asynccontextmanager
async def separate_database(url: str) -> AsyncIterator[Database]:
    """The database as another process has it: with its own connections."""
    database = Database(create_engine(url))
    try:
        yield database
    finally:
        await database.close()


async def pending(store: Store, user: str, **words: Any) -> Session:
    """A session whose tool logs in."""
    new = NewSession(user, "claude", DIGEST, **words)
    session, _ = await store.sessions.start(new)
    await store.vms.launched(session.vm_id)
    await store.vms.ready(session.vm_id)
    return await store.sessions.set_login(session.id, "waiting")


@run_async
async def test_session_with_pending_injection_ignores_login_status(store_url: str) -> None:
    async with opened(store_url) as store:
        user = await store.new_user()
        await credentials_of(store).store(user, "claude", b"{}")
        session = await holding(store, user)
        await store.vms.launched(session.vm_id)
        await store.vms.ready(session.vm_id)
        for status in ("starting", "waiting", "done"):
            assert (await store.sessions.set_login(session.id, status)).state == "vm_created"
        await CredentialInjections(store.database, KEYS, store.clock).injected(session.id)
        assert (await store.sessions.get(session.id)).state == "authenticated"


@run_async
async def test_login_news_of_a_session_are_limited(store_url: str) -> None:
    async with opened(store_url) as store:
        session = await pending(store, await store.new_user())
        for number in range(MOST_LOGIN_NEWS + 5):
            session = await store.sessions.set_login(session.id, "failed", f"for reason {number}")
            assert session.login_detail == f"for reason {number}"
        kinds = [row["kind"] for row in await rows(store.database, tables.session_news)]
        assert kinds.count("login") == MOST_LOGIN_NEWS


async def holding(store: Store, user: str) -> Session:
    """A session that starts with its user's stored credentials."""
    new = NewSession(user, "claude", DIGEST, use_stored=True, holds_alone=True)
    session, _ = await store.sessions.start(new)
    return session


async def release(store: Store, session: Session) -> None:
    await store.sessions.apply(session.id, "terminate")
    await store.vms.released(session.vm_id)


@run_async
async def test_concurrent_handovers_leave_one_receipt(store_url: str) -> None:
    """Two processes write at once, as during a handover of the controller."""
    async with opened(store_url, limits=MANY) as store, separate_database(store_url) as other:
        user = await store.new_user()
        writers = handovers_of(store), CredentialHandovers(other, KEYS, 10, store.clock)
        session = await pending(store, user)
        await asyncio.gather(
            *(writers[number % 2].hand_over(session, b"%d" % number) for number in range(6))
        )
        found = await store.sessions.get(session.id)
        _stored, plain = await credentials_of(store).get(user, "claude")
        assert found.receipt is not None
        assert found.receipt.sha256 == hashlib.sha256(plain).hexdigest()
        assert found.completes_at == store.clock.at + timedelta(seconds=10)
        events = await CredentialLog(store.database).list(user)
        assert [(each.kind, each.by, each.session_id) for each in reversed(events)] == [
            ("handed_over", "controller", session.id),
            ("read", "controller", None),
        ]
        news = [(each.kind, each.data.get("state")) for each in await store.sessions.news(found.id)]
        assert news[-2:] == [("state", "authenticated"), ("credentials", None)]
        assert await writers[0].finish_without(session.id, "no") == found
        assert await store.sessions.complete_due() == []
        store.clock.pass_seconds(10)
        (completed,) = await store.sessions.complete_due()
        assert (completed.id, completed.state) == (session.id, "completed")
        with pytest.raises(SessionExpired):
            await writers[0].hand_over(session, b"late")
        assert (await credentials_of(store).get(user, "claude"))[1] == plain


@run_async
async def test_session_that_ends_meanwhile_is_not_completed(store_url: str) -> None:
    """It was due when the sessions were listed, and ended before its turn."""
    async with opened(store_url, limits=MANY) as store:
        session = await pending(store, await store.new_user())
        await handovers_of(store).hand_over(session, b"{}")
        ended = await store.sessions.apply(session.id, "terminate")
        assert await store.sessions._complete(session.id) is None
        assert await store.sessions.get(session.id) == ended


@run_async
async def test_handover_and_session_end_do_not_deadlock(store_url: str) -> None:
    """There is no deadlock, and credentials are stored exactly if the session is authenticated."""
    async with (
        opened(store_url, slots=20, limits=MANY) as store,
        separate_database(store_url) as other,
    ):
        user, kept = await store.new_user(), credentials_of(store)
        for _ in range(6):
            session = await pending(store, user)
            await kept.remove_all(user)
            handed, ended, *_ = await asyncio.gather(
                CredentialHandovers(other, KEYS, 0, store.clock).hand_over(session, b"{}"),
                store.sessions.apply(session.id, "terminate"),
                store.sessions.complete_due(),
                store.sessions.set_login(session.id, "failed", "denied"),
                kept.store(user, "codex", b"{}"),
                return_exceptions=True,
            )
            assert not isinstance(ended, BaseException) or isinstance(ended, SessionExpired)
            states = [each.data.get("state") for each in await store.sessions.news(session.id)]
            is_kept = "claude" in [each.provider for each in await kept.list(user)]
            assert is_kept == ("authenticated" in states) != isinstance(handed, SessionExpired)
            await store.vms.released(session.vm_id)


@run_async
async def test_stored_credentials_are_held_by_one_of_concurrent_sessions(store_url: str) -> None:
    async with opened(store_url, slots=8, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        await kept.store(user, "claude", b"{}")
        made = await asyncio.gather(
            *(holding(store, user) for _ in range(6)), return_exceptions=True
        )
        (holder,) = [each for each in made if isinstance(each, Session)]
        assert all(isinstance(each, CredentialsInUse) for each in made if each is not holder)
        assert [each.holder_id for each in await kept.list(user)] == [holder.id]
        with pytest.raises(CredentialsInUse, match=holder.id):
            await kept.get(user, "claude")
        assert len(await store.vms.held()) == 1
        await release(store, holder)  # its VM never came up
        stored, _plain = await kept.get(user, "claude")
        assert (stored.holder_id, stored.may_be_stale) == (None, False)


@run_async
async def test_idempotency_key_with_other_credentials_options_is_refused(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user = await store.new_user()
        await credentials_of(store).store(user, "claude", b"{}")
        asked = NewSession(user, "claude", DIGEST, "key", use_stored=True, holds_alone=True)
        session, made = await store.sessions.start(asked)
        assert made
        assert await store.sessions.start(asked) == (session, False)
        for other in (replace(asked, use_stored=False), replace(asked, recipient=RECIPIENT)):
            with pytest.raises(SessionError, match="started with another"):
                await store.sessions.start(other)


@run_async
async def test_ended_session_gets_no_stored_credentials(store_url: str) -> None:
    """It ended after its VM was asked whether it needs them."""
    async with opened(store_url, limits=MANY) as store:
        user = await store.new_user()
        injections = CredentialInjections(store.database, KEYS, store.clock)
        await credentials_of(store).store(user, "claude", b"{}")
        session = await holding(store, user)
        await store.sessions.apply(session.id, "terminate")
        with pytest.raises(SessionExpired):
            await injections.opened(session, alone=True)


@run_async
async def test_credentials_read_back_are_stored_once(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        injections = CredentialInjections(store.database, KEYS, store.clock)
        await kept.store(user, "claude", b"before")
        session = await holding(store, user)
        await store.vms.launched(session.vm_id)
        await store.vms.ready(session.vm_id)
        assert await injections.is_holder(session.id)
        assert await injections.opened(session, alone=True) == b"before"
        await injections.injected(session.id)
        await injections.injected(session.id)
        await store.sessions.apply(session.id, "terminate")
        store.clock.pass_seconds(5)
        for plain in (b"after", b"again"):
            await injections.brought_back(session, plain)
        stored, plain = await kept.get(user, "claude")
        assert (plain, stored.updated_at, stored.may_be_stale) == (b"after", store.clock.at, False)
        await store.vms.released(session.vm_id)
        assert not (await kept.get(user, "claude"))[0].may_be_stale
        kinds = [each.kind for each in await CredentialLog(store.database).list(user)]
        assert [kind for kind in reversed(kinds) if kind != "read"] == [
            "stored",
            "injected",
            "read_back",
        ]


@run_async
async def test_unknown_holder_in_restored_database_is_ignored(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        await kept.store(user, "claude", b"{}")
        async with store.database.writing() as connection:
            gone = {"holder_id": "5b0c7a52-3f0e-4d6c-9a55-0d5f2f8f6a01"}
            await connection.execute(sa.update(tables.credentials).values(gone))
        stored, _plain = await kept.get(user, "claude")
        assert (stored.holder_id, stored.may_be_stale) == (None, True)
        session = await holding(store, user)
        (stored,) = await kept.list(user)
        assert (stored.holder_id, stored.may_be_stale) == (session.id, True)


@run_async
async def test_user_removal_while_vm_is_released(store_url: str) -> None:
    async with (
        opened(store_url, slots=20, limits=MANY) as store,
        separate_database(store_url) as other,
    ):
        for _ in range(6):
            user, kept = await store.new_user(), credentials_of(store)
            await kept.store(user, "claude", b"{}")
            session = await holding(store, user)
            await store.sessions.apply(session.id, "terminate")
            await asyncio.gather(
                store.vms.released(session.vm_id), remove_user(other, user, clock=store.clock)
            )
            assert await kept.list(user) == []
            assert await CredentialLog(store.database).list(user) == []


@run_async
async def test_key_rotation_keeps_credentials_sealed_to_recipient(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, new = await store.new_user(), Keyring([b"n" * 32, b"k" * 32])
        session = await pending(store, user, recipient=checked_recipient(RECIPIENT))
        await handovers_of(store).hand_over(session, b"{}")
        await credentials_of(store).store(user, "codex", b"{}")
        before = await credentials_of(store).get(user, "claude")
        rotating = CredentialStore(store.database, new, store.clock)
        assert await rotating.seal_anew() == ResealCounts(1, 0, 0, recipients=1)
        assert await rotating.get(user, "claude") == before
        (resealed,) = [
            each
            for each in await CredentialLog(store.database).list(user)
            if each.kind == "resealed"
        ]
        assert (resealed.provider, resealed.by) == ("codex", "operator")


@run_async
async def test_credential_log_names_actor_and_is_pruned(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        log = CredentialLog(store.database, store.clock)
        caller = actor_of(Caller(user, "user", "cookie"))
        began = store.clock.at
        await kept.store(user, "claude", b"{}", actor=caller)
        store.clock.pass_seconds(5)
        await kept.store(user, "gemini", b"{}", actor=caller)
        await kept.remove_all(user, caller)
        found = await log.list(user)
        assert [(each.kind, each.provider, each.by) for each in found] == [
            ("removed", "gemini", "cookie"),
            ("removed", "claude", "cookie"),
            ("stored", "gemini", "cookie"),
            ("stored", "claude", "cookie"),
        ]
        assert {each.actor_id for each in found} == {user}
        assert await log.list(user, limit=1, before=found[2].id) == [found[3]]
        assert await log.prune(began) == 0
        assert await log.prune(store.clock.at) == 1
        assert await log.list(user) == found[:3]


@run_async
async def test_log_is_trimmed_by_user_and_kind(store_url: str) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, other, kept = await store.new_user(), await store.new_user(), credentials_of(store)
        log = CredentialLog(store.database, store.clock)
        for each in (user, other):
            await kept.store(each, "claude", b"{}")
            for _ in range(3):
                await kept.get(each, "claude")
        await kept.get(user, "claude")
        assert await log.trim(4) == 0
        before = await log.list(user)
        assert await log.trim(3) == 1
        assert [each.kind for each in before] == ["read"] * 4 + ["stored"]
        assert await log.list(user) == [*before[:3], before[4]]
        assert len(await log.list(other)) == 4


@run_async
async def test_storing_by_hand_gives_session_a_receipt(
    store_url: str,
) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        starting, _ = await store.sessions.start(NewSession(user, "claude", DIGEST))
        waits, done = await pending(store, user), await pending(store, user)
        await handovers_of(store).finish_without(done.id, "its image hands nothing over")
        for session in (starting, waits, done):
            await kept.store(user, "claude", b'{"a":1}', session.id)
        assert (await store.sessions.get(starting.id)).receipt is None
        for session in (waits, done):
            found = await store.sessions.get(session.id)
            assert found.state == "authenticated"
            assert found.receipt is not None
            assert found.receipt.sha256 == hashlib.sha256(b'{"a":1}').hexdigest()
            assert found.receipt.at == store.clock.at
            assert (found.login_detail, found.completes_at) == (None, None)
            assert not found.has_login_under_way  # nothing is deleted in its VM
            told = (await store.sessions.news(session.id))[-1]
            sha256 = found.receipt.sha256
            words = {"provider": "claude", "kept": True, "sha256": sha256, "recipient": None}
            assert (told.kind, told.data) == ("credentials", words)


@run_async
async def test_storing_by_hand_after_handover_keeps_wipe_due(
    store_url: str,
) -> None:
    async with opened(store_url, limits=MANY) as store:
        user, kept = await store.new_user(), credentials_of(store)
        session = await handovers_of(store).hand_over(await pending(store, user), b"{}")
        await kept.store(user, "claude", b'{"a":1}', session.id)
        found = await store.sessions.get(session.id)
        assert found.receipt is not None
        assert found.receipt.sha256 == hashlib.sha256(b'{"a":1}').hexdigest()
        assert found.waits_for_wiping
        assert found.completes_at == session.completes_at


@run_async
async def test_storing_by_hand_seals_to_session_recipient(
    store_url: str,
) -> None:
    async with opened(store_url, limits=MANY) as store:
        user = await store.new_user()
        session = await pending(store, user, recipient=RECIPIENT)
        kept = CredentialStore(store.database, None, store.clock)  # so no key is needed
        await kept.store(user, "claude", b'{"a":1}', session.id)
        stored, sealed = await kept.get(user, "claude")
        receipt = (await store.sessions.get(session.id)).receipt
        assert receipt is not None
        assert (stored.recipient, receipt.recipient) == (RECIPIENT, RECIPIENT)
        assert b"AGE ENCRYPTED FILE" in sealed or sealed.startswith(b"age-encryption.org")
