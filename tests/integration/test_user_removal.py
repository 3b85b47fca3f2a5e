"""A user is removed with all that is theirs, on real SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.credential_encryption import keyring_of
from polydev.controller.entities import Caller
from polydev.controller.store import tables
from polydev.controller.store.credentials import CredentialStore
from polydev.controller.store.sign_ins import SignIns, Tickets
from polydev.controller.store.user_removal import REASON, Removed, remove_user
from polydev.errors import SessionError, UserNotFound
from tests.stores import Store, opened, run_async

pytest_plugins = ["tests.databases"]


async def rows(store: Store) -> dict[str, int]:
    async with store.database.reading() as connection:
        return {
            table.name: (
                await connection.execute(sa.select(sa.func.count()).select_from(table))
            ).scalar_one()
            for table in tables.metadata.sorted_tables
            # Webhook events of the end are pruned later, by age.
            if table.name not in ("slots", "webhook_events")
        }


@run_async
async def test_remove_user_deletes_only_rows_of_the_user(store_url: str) -> None:
    async with opened(store_url) as store:
        other = await store.new_user()
        await store.start_ready(other)
        await store.tokens.create(other, "theirs")
        before = await rows(store)
        user = await store.new_user()
        for session in (await store.start_ready(user), await store.start(user)):
            await store.sessions.apply(session.id, "terminate")
            await store.vms.released(session.vm_id)
        await store.tokens.create(user, "one")
        await store.tokens.create(user, "two")
        await CredentialStore(store.database, keyring_of(SecretStr(new_key()))).store(
            user, "claude", b"secret"
        )
        assert await remove_user(store.database, user) == Removed(2, 2, 1)
        assert await rows(store) == before
        with pytest.raises(UserNotFound):
            await remove_user(store.database, user)


@run_async
async def test_remove_user_sends_credentials_removed_webhooks(store_url: str) -> None:
    async with opened(store_url) as store:
        user, other = await store.new_user(), await store.new_user()
        kept = CredentialStore(store.database, keyring_of(SecretStr(new_key())))
        for owner, provider in ((user, "gemini"), (user, "claude"), (other, "claude")):
            await kept.store(owner, provider, b"secret")
        await remove_user(store.database, user)
        events = tables.webhook_events.c
        asked = sa.select(events.body).where(events.type == "credentials.removed")
        async with store.database.reading() as connection:
            found = await connection.execute(asked.order_by(events.number))
            told = [json.loads(body)["data"] for body in found.scalars()]
        assert told == [
            {"userId": user, "provider": provider, "sessionId": None}
            for provider in ("claude", "gemini")
        ]


@run_async
async def test_remove_user_waits_for_release_of_vms(store_url: str) -> None:
    async with opened(store_url) as store:
        user = await store.new_user()
        session = await store.start_ready(user)
        _, plain = await store.tokens.create(user, "one")
        caller, sign_ins = Caller(user, "user", "jwt"), SignIns(store.database, store.clock)
        tickets = Tickets(store.database, store.clock)
        cookie, _ = await sign_ins.create(caller, 600)
        ticket, _ = await tickets.create("page", caller, 600, session.id)
        with pytest.raises(SessionError, match="1 of their VMs"):
            await remove_user(store.database, user, patience_seconds=0)
        assert await sign_ins.caller_of(cookie) is None
        assert await tickets.redeem(ticket, "page") is None
        ended = await store.sessions.get(session.id)
        assert (ended.state, ended.reason) == ("terminated", REASON)
        assert (await store.vms.get(session.vm_id)).state == "stopping"
        assert await store.tokens.caller_of(plain) is None
        removing = asyncio.create_task(remove_user(store.database, user))
        await store.vms.released(session.vm_id)
        assert (await removing).sessions == 1
        assert await store.users.list() == []
