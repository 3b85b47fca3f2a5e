"""Stored credentials in sessions' VMs: given to the tool, and read back before the VM ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from polydev.client.credentials_key import new_key
from polydev.controller.entities import Session
from polydev.controller.machines.agent_answers import AgentLogin
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.store.credential_log import CredentialLog
from polydev.controller.store.credentials import StoredCredentials
from polydev.errors import (
    CredentialsInUse,
    CredentialsNotFound,
    CredentialsSealed,
    SessionExpired,
)
from tests.driving import World, play, until, worlds
from tests.fake_vms import (
    FailingCredentialsVm,
    FakeVm,
    NeverInjectedVm,
    OldImageVm,
    PanicsVm,
    RefusingToolVm,
    SlowVm,
)

OLD, NEW = {"refresh": "one"}, {"refresh": "two"}
OLD_PLAIN, NEW_PLAIN = b'{"refresh":"one"}', b'{"refresh":"two"}'
RECIPIENT = "age1jz07tff4p9688ugj3ecm00y7g43q3ttq9xt63ckprhc7ljyvhdeqew6uda"


def with_key(tmp_path: Path, **words: Any) -> Any:
    settings = {
        "session": {"idle_seconds": 36000, "max_seconds": 36000, "per_user": 9},
        "credentials_key": SecretStr(new_key()),
    }
    return worlds(tmp_path, **{**settings, **words})


async def injected(world: World, *, alone: bool = True) -> tuple[Session, FakeVm]:
    session = await world.start(use_stored=True, holds_alone=alone)
    session = await world.until_session(session, "authenticated")
    return session, world.host.hypervisor.vms[(await world.vm_of(session)).slot]


async def stored(world: World) -> tuple[StoredCredentials, bytes]:
    return await world.credentials.get(world.user_id, "claude")


async def log_of(world: World) -> list[str]:
    found = await CredentialLog(world.database).list(world.user_id)
    return [each.kind for each in reversed(found) if each.kind not in ("stored", "read")]


async def store(world: World, plain: bytes = OLD_PLAIN) -> None:
    await world.credentials.store(world.user_id, "claude", plain)


def test_session_starts_logged_in_and_changed_credentials_come_back(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session, fake = await injected(world)
            assert fake.credentials == OLD
            assert (session.stored_credentials, session.completes_at) == ("injected", None)
            states = [each.data["state"] for each in await world.news(session, "state")]
            assert states == ["vm_creating", "vm_starting", "vm_created", "authenticated"]
            with pytest.raises(CredentialsInUse, match=session.id):
                await stored(world)
            with pytest.raises(CredentialsInUse, match=session.id):
                await world.start(use_stored=True, holds_alone=True)
            fake.credentials = NEW  # the tool has used its refresh token
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
            found, plain = await stored(world)
            assert plain == NEW_PLAIN
            assert (found.holder_id, found.may_be_stale) == (None, False)
            again, fake = await injected(world)
            assert fake.credentials == NEW
            await world.sessions.apply(again.id, "terminate")
            await world.until_released(again)
        assert await log_of(world) == 2 * ["injected", "read_back"]

    play(with_key(tmp_path), scenario)


def test_credentials_without_rotation_are_shared_by_sessions(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        world.rotates = False
        async with world.driving():
            both = [await injected(world, alone=False) for _ in range(2)]
            assert [fake.credentials for _, fake in both] == [OLD, OLD]
            assert (await stored(world))[0].holder_id is None
            both[0][1].credentials = NEW
            await world.sessions.apply(both[0][0].id, "terminate")
            await world.until_released(both[0][0])
        assert (await stored(world))[1] == OLD_PLAIN

    play(with_key(tmp_path), scenario)


def test_credentials_are_read_back_from_paused_vm(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session, fake = await injected(world)
            fake.credentials = NEW
            world.clock.pass_(60)
            await world.until_news(session, "paused")
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        assert f"resume {fake.launch.slot}" in world.host.hypervisor.calls
        assert (await stored(world))[1] == NEW_PLAIN

    play(with_key(tmp_path), scenario)


def test_paused_vm_with_shared_credentials_ends_without_waking(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        world.rotates = False
        async with world.driving():
            session, fake = await injected(world, alone=False)
            world.clock.pass_(60)
            await world.until_news(session, "paused")
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        assert f"resume {fake.launch.slot}" not in world.host.hypervisor.calls

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize("how", ["dies", "is mute", "has none", "is another"])
def test_credentials_not_read_back_are_marked_maybe_stale(tmp_path: Path, how: str) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session, fake = await injected(world)
            if how == "dies":
                fake.die()
                await world.until_session(session, "failed")
            elif how == "is mute":
                fake.hang_up()
            elif how == "has none":
                fake.credentials = None
            else:
                fake.said_vm_id = session.id
            if how != "dies":
                with suppress(SessionExpired):  # a health check may have found the other VM first
                    await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
            found, plain = await stored(world)
            assert (found.holder_id, found.may_be_stale, plain) == (None, True, OLD_PLAIN)
            assert await log_of(world) == ["injected", "not_read_back"]
            await store(world, NEW_PLAIN)
            assert not (await stored(world))[0].may_be_stale

    play(with_key(tmp_path, vm_check={"every_seconds": 0.01, "failures": 1000}), scenario)


def test_credentials_stored_before_vm_is_ready_are_injected(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        session = await world.start(use_stored=True, holds_alone=True)
        await store(world, NEW_PLAIN)
        async with world.driving():
            await world.until_session(session, "authenticated")
            assert world.host.hypervisor.vms[2].credentials == NEW
            with pytest.raises(CredentialsInUse, match=session.id):
                await stored(world)

    play(with_key(tmp_path), scenario)


def test_vm_with_credentials_ends_on_host_without_key(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session, _fake = await injected(world)
        keyless = replace(
            world, settings=world.settings.model_copy(update={"credentials_key": None})
        )
        async with keyless.driving():
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        assert (await stored(world))[0].may_be_stale

    play(with_key(tmp_path), scenario)


def test_credentials_stored_during_session_are_kept(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session, fake = await injected(world)
            fake.credentials = {"of": "the session"}
            await store(world, NEW_PLAIN)
            assert (await stored(world))[1] == NEW_PLAIN
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
            found, plain = await stored(world)
            assert (plain, found.may_be_stale) == (NEW_PLAIN, False)
            removed, fake = await injected(world)
            await world.credentials.remove(world.user_id, "claude")
            await world.sessions.apply(removed.id, "terminate")
            await world.until_released(removed)
            with pytest.raises(CredentialsNotFound):
                await stored(world)

    play(with_key(tmp_path), scenario)


@pytest.mark.parametrize(
    ("kind", "words", "stale"),
    [
        (RefusingToolVm, "token expired", True),
        (OldImageVm, "does not accept credentials", False),
        (FailingCredentialsVm, "credentials cannot be reached", None),
    ],
)
def test_refused_injection_falls_back_to_login(
    tmp_path: Path, kind: type[FakeVm], words: str, stale: bool | None
) -> None:
    """If it is unknown whether the tool has the credentials, no other session gets them."""

    async def scenario(world: World) -> None:
        await store(world)
        if kind is OldImageVm:  # its record knows no providers
            for record in world.host.root.glob("store/images/*/record.json"):
                record.unlink()
        async with world.driving():
            session = await world.start(use_stored=True, holds_alone=True)

            async def is_refused() -> Session | None:
                found = await world.sessions.get(session.id)
                return found if found.stored_credentials == "refused" else None

            found = await until(is_refused, "the refusal")
            assert found.state == "vm_created"
            assert words in (found.login_detail or "")
            told = (await world.until_news(session, "credentials")).data
            assert told["injected"] is False
            if stale is None:
                with pytest.raises(CredentialsInUse, match=session.id):
                    await stored(world)
            else:
                assert (await stored(world))[0].may_be_stale == stale
            fake = world.host.hypervisor.vms[2]
            await world.sessions.set_login(session.id, "waiting")
            fake.log_in(NEW)
            if kind is FailingCredentialsVm:

                async def is_told() -> bool:
                    return (await world.sessions.get(session.id)).login == "failed"

                await until(is_told, "the end of the login")
                return
            await world.until_session(session, "authenticated")
        if kind is RefusingToolVm:
            found_again, plain = await stored(world)
            assert (plain, found_again.may_be_stale) == (NEW_PLAIN, False)

    play(with_key(tmp_path, kind=kind), scenario)


def test_failed_boot_leaves_credentials_not_stale(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session = await world.start(use_stored=True, holds_alone=True)
            await world.until_session(session, "failed")
            await world.until_released(session)
        found, _plain = await stored(world)
        assert (found.holder_id, found.may_be_stale) == (None, False)
        assert await log_of(world) == []

    play(with_key(tmp_path, kind=PanicsVm), scenario)


def test_session_end_during_injection_marks_credentials_maybe_stale(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session = await world.start(use_stored=True, holds_alone=True)
            fake = await world.host.hypervisor.started(2)

            async def is_given() -> bool:
                return fake.login["status"] == "starting"

            await until(is_given, "the injection")
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        found, plain = await stored(world)
        assert (found.holder_id, found.may_be_stale, plain) == (None, True, OLD_PLAIN)

    play(with_key(tmp_path, kind=NeverInjectedVm), scenario)


def test_injection_has_ended_before_credentials_are_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the VM could get credentials after the read-back, which nobody would read back."""
    under_way: list[str] = []
    seen: list[list[str]] = []
    begun = asyncio.Event()
    credentials = AgentClient.credentials

    async def never_injected(_: AgentClient, vm_ip: str, provider: str, plain: bytes) -> AgentLogin:
        under_way.append(provider)
        begun.set()
        try:
            return await asyncio.Future()
        finally:
            under_way.remove(provider)

    async def read(client: AgentClient, vm_ip: str, provider: str) -> bytes | None:
        seen.append(list(under_way))
        return await credentials(client, vm_ip, provider)

    monkeypatch.setattr(AgentClient, "inject", never_injected)
    monkeypatch.setattr(AgentClient, "credentials", read)

    async def scenario(world: World) -> None:
        await store(world)
        async with world.driving():
            session = await world.start(use_stored=True, holds_alone=True)
            await begun.wait()
            await world.sessions.apply(session.id, "terminate")
            await world.until_released(session)
        assert seen == [[]]
        assert not (await stored(world))[0].may_be_stale

    play(with_key(tmp_path), scenario)


def test_session_end_before_injection_leaves_credentials_not_stale(
    tmp_path: Path,
) -> None:
    async def scenario(world: World) -> None:
        await store(world)
        session = await world.start(use_stored=True, holds_alone=True)
        await world.sessions.apply(session.id, "terminate")
        async with world.driving():
            await world.until_released(session)
        assert not (await stored(world))[0].may_be_stale

    play(with_key(tmp_path), scenario)


def test_next_driver_does_not_inject_credentials_twice(tmp_path: Path) -> None:
    """The tool has used the credentials since, so the stored ones are older."""

    async def scenario(world: World) -> None:
        await store(world)
        session = await world.start(use_stored=True, holds_alone=True)
        async with world.driving():
            fake = await world.host.hypervisor.started(2)
            fake.log_in(NEW)
            fake.login["status"] = "starting"  # its tool is being asked whether it takes them
            await fake.reach("ready")
            await world.until_session(session, "vm_created")
            asked = fake.asked

            async def is_asked_on() -> bool:
                return fake.asked > asked + 5

            await until(is_asked_on, "more questions")
            assert fake.credentials == NEW
            fake.login["status"] = "done"
            await world.until_session(session, "authenticated")
            assert fake.credentials == NEW

    play(with_key(tmp_path, kind=SlowVm), scenario)


def test_session_needs_existing_credentials_that_can_be_opened(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        for refusal in (CredentialsNotFound, CredentialsSealed):
            if refusal is CredentialsSealed:
                async with world.driving():
                    first = await world.start(recipient=RECIPIENT)
                    await world.until_session(first, "vm_created")
                    await world.sessions.set_login(first.id, "waiting")
                    world.host.hypervisor.vms[2].log_in(OLD)
                    await world.until_session(first, "authenticated")
            before = len(await world.vms.held())
            with pytest.raises(refusal):
                await world.start(use_stored=True)
            assert len(await world.vms.held()) == before

    play(with_key(tmp_path), scenario)
