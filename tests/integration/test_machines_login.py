"""Logins of fake VMs' tools, from the first request to the end of their sessions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.entities import Session
from polydev.controller.machines.login_monitor import NO_HAND_OVER
from polydev.controller.session_and_vm_states import LoginStatus
from polydev.controller.store.credential_handovers import NO_KEY
from polydev.controller.store.credential_log import CredentialLog
from polydev.controller.store.users import Users
from polydev.errors import CredentialsNotFound
from polydev.processes import spawn, wait_or_end
from tests.driving import PATIENCE_SECONDS, World, play, until, worlds
from tests.fake_vms import FakeVm, HangingCredentialsVm, OldImageVm, WrongCredentialsVm

MARKER = "marker-of-a-secret-that-nobody-sees"
TOKENS = {"claudeAiOauth": {"accessToken": MARKER, "refreshToken": "ü"}}
PLAIN = '{"claudeAiOauth":{"accessToken":"%s","refreshToken":"ü"}}'.encode() % MARKER.encode()
KEY = SecretStr(new_key())
IDLE_SECONDS = 60
COMPLETE_SECONDS = 10
ENDLESS = {"session": {"idle_seconds": 36000, "max_seconds": 36000, "per_user": 9}}


def with_key(tmp_path: Path, **words: Any) -> Any:
    return worlds(tmp_path, **{**ENDLESS, "credentials_key": KEY, **words})


async def waiting(world: World, user_id: str | None = None, **words: Any) -> tuple[Session, FakeVm]:
    """A session whose tool waits for its user."""
    session = await world.start(user_id, **words)
    await world.until_session(session, "vm_created")
    fake = world.host.hypervisor.vms[(await world.vm_of(session)).slot]
    fake.login = {**fake.login, "status": "waiting"}
    return await world.sessions.set_login(session.id, "waiting"), fake


async def kinds(world: World, user_id: str | None = None) -> list[str]:
    found = await CredentialLog(world.database).list(user_id or world.user_id)
    return [each.kind for each in reversed(found)]


async def until_wiped(world: World, session: Session, fake: FakeVm) -> Session:
    async def look() -> Session | None:
        found = await world.sessions.get(session.id)
        return found if found.wiped_at else None

    found = await until(look, "the wiping")
    assert fake.credentials is None
    return found


def test_login_hands_over_and_wipes_credentials_and_completes_session(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            found = await world.until_session(session, "authenticated")
            assert found.receipt is not None
            assert found.receipt.sha256 == hashlib.sha256(PLAIN).hexdigest()
            assert found.receipt.at == world.clock.at
            assert (await world.credentials.get(world.user_id, "claude"))[1] == PLAIN
            told = (await world.until_news(session, "credentials")).data
            assert told["sha256"] == found.receipt.sha256
            assert MARKER not in str(await world.sessions.news(session.id))
            await until_wiped(world, session, fake)
            assert fake.runs
            world.clock.pass_(COMPLETE_SECONDS - 1)
            await driver.more_turns()
            assert (await world.sessions.get(session.id)).is_live
            world.clock.pass_(1)
            await world.until_session(session, "completed")
            await world.until_released(session)
            assert await kinds(world) == ["handed_over", "read"]
        await world.assert_nothing_left()

    play(with_key(tmp_path), scenario)


def test_check_login_does_not_wait_for_the_next_check(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            await driver.more_turns()
            assert (await world.sessions.get(session.id)).state == "oauth_pending"
            driver.check_login(session.vm_id)
            await until_wiped(world, session, fake)

    play(with_key(tmp_path, vm_check={"every_seconds": 3600}), scenario)


def test_session_is_not_completed_automatically_if_disabled(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            found = await until_wiped(world, session, fake)
            assert found.receipt is not None
            assert found.completes_at is None
            world.clock.pass_(3600)
            await driver.more_turns()
            assert (await world.sessions.get(session.id)).state == "authenticated"

    settings = {"login": {"complete_after_seconds": None}, "vm": {"pause_after_seconds": 0}}
    play(with_key(tmp_path, **settings), scenario)


def test_concurrent_logins_store_credentials_for_their_own_users(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        other = (await Users(world.database).add("user")).id
        async with world.driving():
            mine, yours = await waiting(world), await waiting(world, other)
            for number, (_session, fake) in enumerate((mine, yours)):
                fake.log_in({"token": number})
            for session, fake in (mine, yours):
                await until_wiped(world, session, fake)
        for number, user in enumerate((world.user_id, other)):
            assert (await world.credentials.get(user, "claude"))[1] == b'{"token":%d}' % number

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize("status", ["failed", "none"])
def test_failed_login_is_reported_and_can_start_again(tmp_path: Path, status: LoginStatus) -> None:
    """The user denied it, the tool crashed, or the agent has no login any more."""

    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            fake.login = {**fake.login, "status": status, "detail": "access_denied"}

            async def is_told() -> bool:
                return (await world.sessions.get(session.id)).login == status

            await until(is_told, "the end of the login")
            await driver.more_turns()
            found = await world.sessions.get(session.id)
            assert (found.state, found.login_detail) == ("oauth_pending", "access_denied")
            told = [dict(each.data) for each in await world.news(session, "login")]
            assert told == [{"status": "waiting"}, {"status": status, "detail": "access_denied"}]
            fake.log_in(TOKENS)
            found = await world.until_session(session, "authenticated")
            assert (found.login, found.login_detail) == ("done", None)

    play(with_key(tmp_path), scenario)


def test_unfinished_login_ends_with_its_session(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, _fake = await waiting(world)
            world.clock.pass_(36001)
            await world.until_session(session, "expired")
            await world.until_released(session)
        assert await world.credentials.list(world.user_id) == []

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"provider": "claude", "credentials": [MARKER]}, "contains no valid credentials"),
        ({"provider": "claude", "credentials": {}}, "contains no valid credentials"),
        (
            {"provider": "claude", "credentials": {"x": float("nan")}},
            "contains no valid credentials",
        ),
        ([MARKER], "contains no valid credentials"),
        ({"provider": "codex", "credentials": {"token": MARKER}}, "of another provider"),
        ({"provider": "claude", "credentials": {"x": "a" * 70_000}}, "too large"),
        ({"provider": "claude", "credentials": {"x": "a" * 300_000}}, "over 262144 bytes"),
        (None, "has no credentials of it"),
    ],
    ids=["list", "empty", "no-number", "no-object", "other-provider", "large", "huge", "gone"],
)
def test_invalid_credentials_are_reported_and_not_stored(
    tmp_path: Path, lie: object, words: str
) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            assert isinstance(fake, WrongCredentialsVm)
            fake.lie = lie
            fake.log_in(TOKENS)

            async def is_told() -> bool:
                return (await world.sessions.get(session.id)).login == "failed"

            await until(is_told, "the end of the login")
            await driver.more_turns()
            found = await world.sessions.get(session.id)
            assert found.state == "oauth_pending"
            assert words in (found.login_detail or "")
            assert len(await world.news(session, "login")) == 2
            assert MARKER not in str(await world.sessions.news(session.id))
            assert await world.credentials.list(world.user_id) == []
            fake.lie = {"provider": "claude", "credentials": TOKENS}  # the user tries again
            await world.until_session(session, "authenticated")

    play(with_key(tmp_path, kind=WrongCredentialsVm), scenario)


@pytest.mark.parametrize(
    ("kind", "key", "words"), [(OldImageVm, KEY, NO_HAND_OVER), (FakeVm, None, NO_KEY)]
)
def test_session_continues_if_credentials_cannot_be_stored(
    tmp_path: Path, kind: type[FakeVm], key: SecretStr | None, words: str
) -> None:
    async def scenario(world: World) -> None:
        if kind is OldImageVm:  # its record knows no providers
            for record in world.host.root.glob("store/images/*/record.json"):
                record.unlink()
        async with world.driving() as driver:
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            found = await world.until_session(session, "authenticated")
            assert words in (found.login_detail or "")
            assert (found.receipt, found.completes_at) == (None, None)
            told = (await world.until_news(session, "credentials")).data
            assert told["kept"] is False
            await driver.more_turns()
            assert fake.credentials == TOKENS

    play(with_key(tmp_path, kind=kind, credentials_key=key), scenario)


def test_credentials_are_sealed_to_recipient_without_host_key(tmp_path: Path) -> None:
    import pyrage

    identity = pyrage.x25519.Identity.generate()

    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await waiting(world, recipient=str(identity.to_public()))
            fake.log_in(TOKENS)
            found = await until_wiped(world, session, fake)
            assert found.receipt is not None
            assert found.receipt.recipient == str(identity.to_public())
            stored, sealed = await world.credentials.get(world.user_id, "claude")
            assert stored.recipient == found.receipt.recipient
            assert pyrage.decrypt(sealed, [identity]) == PLAIN

    play(with_key(tmp_path, credentials_key=None), scenario)


def test_credentials_stored_by_hand_are_not_replaced_by_login(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session, fake = await waiting(world)
            await world.credentials.store(world.user_id, "claude", b"{}", session.id)
            fake.log_in(TOKENS)
            await driver.more_turns()
            assert (await world.credentials.get(world.user_id, "claude"))[1] == b"{}"
            found = await world.sessions.get(session.id)
            assert found.receipt is not None
            assert found.receipt.sha256 == hashlib.sha256(b"{}").hexdigest()
            assert found.completes_at is None
            assert fake.credentials == TOKENS  # the VM's are left to its user

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize("step", ["credentials", "hand_over", "wipe"])
def test_next_driver_finishes_interrupted_handover(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after fetching, after storing, or after wiping the credentials."""

    async def scenario(world: World) -> None:
        reached = asyncio.Event()
        logins = world.logins

        def broken_off(agent: Any) -> Any:
            made = logins(agent)
            owner = made.handovers if step == "hand_over" else made.agent
            do = getattr(owner, step)

            async def then_die(*words: Any) -> Any:
                await do(*words)
                reached.set()
                await asyncio.Event().wait()

            monkeypatch.setattr(owner, step, then_die)
            return made

        monkeypatch.setattr(World, "logins", lambda _world, agent: broken_off(agent))
        async with world.driving():
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            await reached.wait()
        receipt = (await world.sessions.get(session.id)).receipt
        assert (receipt is None) == (step == "credentials")
        assert (await world.sessions.get(session.id)).wiped_at is None
        monkeypatch.undo()
        async with world.driving():
            found = await until_wiped(world, session, fake)
            assert found.receipt is not None
            assert receipt in (None, found.receipt)
            assert (await world.credentials.get(world.user_id, "claude"))[1] == PLAIN
            world.clock.pass_(COMPLETE_SECONDS)
            await world.until_session(session, "completed")
        assert (await kinds(world)).count("handed_over") == 1

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_next_driver_finishes_handover_of_killed_process(tmp_path: Path, method: str) -> None:
    """The process is killed while it fetches, or between storing and wiping."""

    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await waiting(world)
        assert isinstance(fake, HangingCredentialsVm)
        fake.hold = method
        fake.log_in(TOKENS)
        key = KEY.get_secret_value()
        settings = {**world.host.settings_values, **ENDLESS, "credentials_key": key}
        first = spawn([sys.executable, "-m", "tests.login_driver", json.dumps(settings)])

        async def has_asked() -> bool:
            assert first.poll() is None, "it ended by itself"
            return fake.held.is_set()

        try:
            await until(has_asked, "the question about credentials")
        finally:
            first.kill()
            await asyncio.to_thread(wait_or_end, first, PATIENCE_SECONDS)
        receipt = (await world.sessions.get(session.id)).receipt
        assert (receipt is None) == (method == "GET")
        fake.hold = ""
        async with world.driving():
            found = await until_wiped(world, session, fake)
        assert found.receipt is not None
        assert receipt in (None, found.receipt)
        assert (await world.credentials.get(world.user_id, "claude"))[1] == PLAIN
        assert (await kinds(world)).count("handed_over") == 1

    play(with_key(tmp_path, kind=HangingCredentialsVm), scenario)


def test_next_driver_completes_the_session(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        async with world.driving():
            session, fake = await waiting(world)
            fake.log_in(TOKENS)
            await until_wiped(world, session, fake)
        world.clock.pass_(COMPLETE_SECONDS)
        async with world.driving():
            await world.until_session(session, "completed")
            await world.until_released(session)

    play(with_key(tmp_path), scenario)


def test_login_wakes_paused_vm_and_keeps_it_awake(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        async with world.driving() as driver:
            session = await world.start()
            await world.until_session(session, "vm_created")
            world.clock.pass_(IDLE_SECONDS)
            await world.until_news(session, "paused")
            fake = world.host.hypervisor.vms[2]
            fake.login = {**fake.login, "status": "waiting"}
            world.clock.pass_(1)
            await world.sessions.set_login(session.id, "waiting")
            await world.until_news(session, "awake")
            world.clock.pass_(10 * IDLE_SECONDS)
            await driver.more_turns()
            assert len(await world.news(session, "paused")) == 1
            fake.log_in(TOKENS)
            await until_wiped(world, session, fake)

    play(with_key(tmp_path), scenario)


def test_login_of_removed_user_stores_nothing(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        from polydev.controller.store.user_removal import remove_user

        async with world.driving():
            _session, fake = await waiting(world)
            fake.log_in(TOKENS)
            await remove_user(world.database, world.user_id, clock=world.clock)
        assert await kinds(world) == []
        with pytest.raises(CredentialsNotFound):
            await world.credentials.get(world.user_id, "claude")

    play(with_key(tmp_path), scenario)
