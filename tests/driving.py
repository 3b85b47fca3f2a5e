"""A driver on a host of fake VMs, with short intervals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from polydev.controller.credential_encryption import keyring_of
from polydev.controller.database import create_engine
from polydev.controller.entities import Session, SessionNews, Vm
from polydev.controller.host.image_providers import hands_over, rotates
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.login_monitor import LoginStores
from polydev.controller.machines.vm_driver import Driver
from polydev.controller.machines.vm_driver_timing import Intervals
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.credential_handovers import CredentialHandovers
from polydev.controller.store.credential_injections import CredentialInjections
from polydev.controller.store.credentials import CredentialStore
from polydev.controller.store.sessions import NewSession, Sessions
from polydev.controller.store.transactions import Database
from polydev.controller.store.users import Users
from polydev.controller.store.vm_slots import sync_slots
from polydev.controller.store.vms import Vms
from tests.vms import IMAGE_DIGEST, FakeHost, FakeVm, HealthyVm, fake_hosts

# A test that hangs fails after this time; nothing else takes so long.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.01
QUICK = Intervals(
    tick=0.01,
    busy_tick=0.01,
    cleanup=0.02,
    ask=0.01,
    ask_blind=0.01,
    ask_share=0,
    login=0.01,
    retry=0.01,
    retry_most=0.02,
    primed=0,
    pool_retry_most=0.02,
)
CHECKS = {"every_seconds": 0.01, "timeout_seconds": PATIENCE_SECONDS, "failures": 3}

T = TypeVar("T")


class CountedDriver(Driver):
    """A driver that counts its rounds in `turns`."""

    turns = 0

    async def _guarded_tick(self) -> float:
        pause = await super()._guarded_tick()
        self.turns += 1
        return pause

    async def more_turns(self) -> None:
        """Wait for enough rounds that pending work is done."""
        enough = self.turns + 20

        async def has_turned() -> bool:
            return self.turns >= enough

        await until(has_turned, "more turns of the driver")


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 21, 10, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.at

    def pass_(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


def logins_of(
    settings: ControllerSettings,
    database: Database,
    sessions: Sessions,
    agent: AgentClient,
    clock: Clock,
) -> LoginStores:
    """Return the stores with which a driver follows logins."""
    keys, after = keyring_of(settings.credentials_key), settings.login.complete_after_seconds
    return LoginStores(
        agent,
        sessions,
        CredentialHandovers(database, keys, after, clock),
        CredentialInjections(database, keys, clock),
        lambda digest, name: hands_over(settings.image_store, digest, name),
        lambda name: rotates(settings.image_store, name),
    )


@dataclass
class World:
    """`rotates`: whether only one VM at a time may have a user's stored credentials."""

    host: FakeHost
    settings: ControllerSettings
    database: Database
    sessions: Sessions
    vms: Vms
    user_id: str
    clock: Clock
    rotates: bool = True

    async def start(self, user_id: str | None = None, **words: Any) -> Session:
        new = NewSession(user_id or self.user_id, "claude", IMAGE_DIGEST, **words)
        session, _ = await self.sessions.start(new)
        return session

    @asynccontextmanager
    async def driving(
        self,
        hypervisor: Hypervisor | None = None,
        vms: Any = None,
        intervals: Intervals = QUICK,
        on_step: Callable[[], None] = lambda: None,
    ) -> AsyncIterator[CountedDriver]:
        """Run a driver, as one process does, for the block."""
        agent = AgentClient(self.settings.vm_check.timeout_seconds)
        driver = CountedDriver(
            self.settings,
            vms or self.vms,
            self.sessions,
            hypervisor or self.host.hypervisor,
            agent,
            self.logins(agent),
            clock=self.clock,
            intervals=intervals,
            cpu_sample=self.host.hypervisor.cpu_sample,
            free_memory_mib=lambda: self.host.hypervisor.free_memory_mib,
            on_step=on_step,
        )
        task = asyncio.create_task(driver.run())
        try:
            yield driver
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await agent.close()

    def logins(self, agent: AgentClient) -> LoginStores:
        """Return the stores with which a driver follows logins."""
        logins = logins_of(self.settings, self.database, self.sessions, agent, self.clock)
        return replace(logins, rotates=lambda _: self.rotates)

    @property
    def credentials(self) -> CredentialStore:
        return CredentialStore(self.database, keyring_of(self.settings.credentials_key), self.clock)

    async def vm_of(self, session: Session) -> Vm:
        return await self.vms.get(session.vm_id)

    async def until_checked(self) -> None:
        """Wait until the driver has checked booting VMs often enough to find one late."""
        seen = self.host.hypervisor.looks

        async def often() -> bool:
            return self.host.hypervisor.looks > seen + 20

        await until(often, "more looks")

    async def until_session(self, session: Session, *states: str) -> Session:
        async def look() -> Session | None:
            found = await self.sessions.get(session.id)
            assert found.is_live or found.state in states, f"it ended: {found}"
            return found if found.state in states else None

        return await until(look, f"{' or '.join(states)} of session {session.id}")

    async def until_stage(self, session: Session, stage: str) -> Vm:
        async def look() -> Vm | None:
            vm = await self.vm_of(session)
            return vm if stage in vm.timings else None

        return await until(look, f"stage {stage}")

    async def until_released(self, session: Session) -> Vm:
        async def look() -> Vm | None:
            vm = await self.vm_of(session)
            return vm if vm.released_at else None

        return await until(look, f"the release of VM {session.vm_id}")

    async def news(self, session: Session, kind: str) -> list[SessionNews]:
        return [news for news in await self.sessions.news(session.id) if news.kind == kind]

    async def until_news(self, session: Session, kind: str) -> SessionNews:
        async def look() -> SessionNews | None:
            found = await self.news(session, kind)
            return found[0] if found else None

        return await until(look, f"news {kind}")

    async def assert_nothing_left(self, *, logs: bool = False) -> None:
        """Check that no row holds a slot and no VM or file is left, except logs to keep."""
        assert not await self.vms.held()
        assert not self.host.hypervisor.running()

        async def look() -> bool | None:
            left = [path.name for path in self.host.root.glob("microvm/*/*/*")]
            links = list(self.host.root.glob("microvm/*/current"))
            files = {"serial.log", "qemu.log"} if logs else set()
            return True if set(left) <= files and not links else None

        await until(look, "the removal of files")


async def until(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """Poll until the result is true."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_SECONDS
    while not (seen := await look()):
        assert loop.time() < deadline, f"{what} did not come"
        await asyncio.sleep(POLL_SECONDS)
    return seen


@asynccontextmanager
async def worlds(
    root: Path, slots: Sequence[int] = (2, 3), kind: type[FakeVm] = HealthyVm, **settings: Any
) -> AsyncIterator[World]:
    """A host with its database and one user, without a driver."""
    async with fake_hosts(root, slots, kind) as host:
        values = {"vm_check": CHECKS, **host.settings_values, **settings}
        made = ControllerSettings(**values)
        database = Database(create_engine(made.database_url))
        await sync_slots(database, made.slots, made.vm_network)
        user = await Users(database).add("user")
        clock = Clock()
        try:
            yield World(
                host,
                made,
                database,
                Sessions(database, made.session, clock),
                Vms(database, made.session, clock),
                user.id,
                clock,
            )
        finally:
            await database.close()


Scenario = Callable[[World], Awaitable[None]]


def play(world: AbstractAsyncContextManager[World], scenario: Scenario) -> None:
    """Run a scenario; fail if a task outlives it."""

    async def played() -> None:
        async with world as made:
            await scenario(made)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # Connections of fake VMs that were hung up may take another turn to notice.
        left = [task for task in others if "served" not in repr(task)]
        assert not left, left

    asyncio.run(played())
