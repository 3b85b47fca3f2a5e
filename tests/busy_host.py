"""A host in use, for the operators' pages: users, sessions in every state, usage, quotas.

Names and texts that a user or a guest chooses have markup in them where a test wants that.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from polydev.controller.entities import Session, Vm, now
from polydev.controller.host.sample import Sample, VmSample
from polydev.controller.store import tables
from polydev.controller.store.usage import add_use
from polydev.controller.usage_accounting import Use, day_of
from tests.relays import Screens, Serve, screens
from tests.vms import IMAGE_DIGEST

HOUR = 3600
QUOTAS = {
    "vm_hours_per_day": 8,
    "traffic_gib_per_day": 20,
    "by_role": {"admin": {"vm_hours_per_day": 0, "traffic_gib_per_day": 0}},
}
PEOPLE = {"Ada Berg": 6.5, "Alan Cole": 8.2, "Grace Diaz": 2.1, "Lena Frey": 0.0}
CONSOLE = (
    "[    0.000000] Linux version 6.1.0-56-amd64 (debian-kernel@lists.debian.org)\n"
    "[\x1b[0;1;32m  OK  \x1b[0m] Reached target \x1b[0;1;39mnetwork.target\x1b[0m - Network.\n"
    "[  OK  ] Started polydev-vnc.service - X display :1 seen over VNC.\n"
    "[  OK  ] Reached target multi-user.target.\n"
    "polydev: ready after 22.85 s\n"
)


@dataclass
class BusyHost:
    """`ids` are users by name; `sessions` by what is special of each."""

    made: Screens
    ids: dict[str, str]
    sessions: dict[str, Session]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.made.port}"

    def vm_page(self, name: str) -> str:
        return f"{self.url}/admin/vms/{self.sessions[name].vm_id}"

    async def begin(self, name: str, user: str, screen: Serve | None = None) -> Session:
        """Start a session of a user whose VM is ready and has written to its console."""
        self.made.users[user] = self.ids[user]
        session = await self.made.session(screen, user=user)
        self.say(session, CONSOLE)
        self.sessions[name] = session
        return session

    def say(self, session: Session, text: str) -> None:
        """Have the VM write to its console."""
        with (self.made.vms[session.id].folder / "serial.log").open("a") as file:
            file.write(text)

    async def measure(self, cpu_percent: float = 12.5) -> None:
        """Take a sample in which each VM uses CPU, later ones more."""
        held = await self.made.services.vms.held()
        found = [_sample(vm, number, cpu_percent) for number, vm in enumerate(held, 2)]
        self.made.services.sample_loop.latest = Sample(vm=found)


def _sample(vm: Vm, number: int, cpu_percent: float) -> VmSample:
    return VmSample(
        vm_id=vm.id,
        slot=vm.slot,
        cpu_seconds=99.0,
        cpu_percent=0.0 if vm.paused_at else cpu_percent * (1 + number % 3),
        memory_bytes=number * 340 * 2**20,
        disk_bytes=number * 90 * 2**20,
        received_bytes=number * 24 * 2**20,
        sent_bytes=number * 5 * 2**20,
    )


@asynccontextmanager
async def busy_hosts(
    root: Path, packed_assets: Path, screen: Serve | None = None, **changes: Any
) -> AsyncIterator[BusyHost]:
    """Ada's session is ready, Alan's is paused, Grace's boots, Lena's failed; one VM waits."""
    given = {"slots": range(2, 12), "quotas": QUOTAS, **changes}
    async with screens(root, packed_assets=packed_assets, **given) as made:
        host = BusyHost(made, {}, {})
        await _people(host)
        await _machines(host, screen)
        await _age(host)
        for number, (name, hours) in enumerate(PEOPLE.items()):
            await use_days(host, name, hours, number)
        await host.measure()
        yield host


async def _people(host: BusyHost) -> None:
    services = host.made.services
    for name, user_id in host.made.users.items():
        await services.users.rename(user_id, name.capitalize())
    host.ids["Root"] = (await services.users.add("admin", "Mara Holt")).id
    host.made.tokens["Root"] = (await services.tokens.create(host.ids["Root"], "laptop"))[1]
    for name in PEOPLE:
        host.ids[name] = (await services.users.add("user", name)).id
    token, _ = await services.tokens.create(host.ids["Ada Berg"], "notebook")
    await services.tokens.create(host.ids["Ada Berg"], "build server", now() + timedelta(days=30))
    await services.tokens.revoke(token.id)
    await services.tokens.create(host.ids["Ada Berg"], "phone")


async def use_days(host: BusyHost, name: str, hours: float, seed: int = 0) -> None:
    """Record usage of a user for today and for some of the 29 days before."""
    today, gib = day_of(now()), 2**30
    used = {}
    for ago in range(30):
        share = 1.0 if ago == 0 else ((ago * 37 + seed * 11) % 10) / 9 * (ago % 7 not in (5, 6))
        if share and hours:
            used[host.ids[name], today - timedelta(days=ago)] = Use(
                vm_seconds=hours * HOUR * share,
                cpu_seconds=hours * HOUR * share * 0.31,
                received_bytes=int(hours * share * gib * 1.9),
                sent_bytes=int(hours * share * gib * 0.2),
                sessions=int(1 + 3 * share),
            )
    async with host.made.services.database.writing() as connection:
        await add_use(connection, used)


async def _machines(host: BusyHost, screen: Serve | None) -> None:
    services = host.made.services
    await host.begin("ready", "Ada Berg", screen)
    paused = await host.begin("paused", "Alan Cole")
    await services.vms.pause(await services.vms.get(paused.vm_id))
    for name, user in (("booting", "Grace Diaz"), ("failed", "Lena Frey")):
        host.made.users[user] = host.ids[user]
        host.sessions[name] = await host.made.booting(user=user)
        await services.vms.stage_reached(host.sessions[name].vm_id, "kernel")
        await services.vms.stage_reached(host.sessions[name].vm_id, "init")
        host.say(host.sessions[name], CONSOLE)
    failed = host.sessions["failed"].vm_id
    reason = "its services failed: polydev-desktop.service"
    tail = CONSOLE.replace("OK", "FAILED")
    await services.vms.fail(failed, reason, ["polydev-desktop.service"], tail)
    vm = await services.vms.add_pooled(IMAGE_DIGEST, "7e" * 32, 0)
    assert vm is not None
    await services.vms.launched(vm.id)
    await services.vms.primed(vm.id)


async def _age(host: BusyHost) -> None:
    """Move sessions into the past and give their boots durations."""
    timings = {"kernel": 1.2, "init": 4.8, "network": 8.9, "services": 14.3, "ready": 22.9}
    async with host.made.services.database.writing() as connection:
        for number, session in enumerate(host.sessions.values()):
            past = timedelta(minutes=97) / (number + 1)
            begun, vm = session.created_at - past, tables.vms
            values = {"created_at": begun, "started_at": begun}
            if session.state == "vm_created":
                values |= {"ready_at": begun + timedelta(seconds=22.9)}
                made = sa.update(vm).where(vm.c.id == session.vm_id).values(timings=timings)
                await connection.execute(made)
            await connection.execute(sa.update(vm).where(vm.c.id == session.vm_id).values(**values))
            whose = tables.sessions.c.id == session.id
            await connection.execute(
                sa.update(tables.sessions).where(whose).values(created_at=begun)
            )
