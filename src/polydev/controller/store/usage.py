"""Usage of each user by day, and what is left of their quotas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import date, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Role, Session, Vm
from polydev.controller.settings import Quotas
from polydev.controller.store import tables
from polydev.controller.store.row_mapping import SESSIONS, VMS, session_of, vm_of
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.usage_accounting import (
    CounterReading,
    Use,
    complete,
    first_reading,
    use_between,
)
from polydev.controller.usage_quotas import (
    QuotaExceeded,
    QuotaState,
    month_of,
    quota_states,
    used_up,
)

_usage, _readings = tables.usage.c, tables.usage_readings.c
FIGURES = ("vm_seconds", "cpu_seconds", "received_bytes", "sent_bytes", "sessions")

Days = Mapping[date, Use]


@uninterrupted
class Usage:
    def __init__(self, database: Database, quotas: Quotas) -> None:
        self._database = database
        self._quotas = quotas

    async def count(self, readings: Collection[CounterReading]) -> None:
        """Add what VMs used since their last reading; an older reading counts nothing.

        VMs that ended since then count until their end.
        """
        async with self._database.writing() as connection:
            if connection.dialect.name == "postgresql":
                # Two processes may count at once, and rows that do not exist yet cannot be locked.
                lock = "LOCK TABLE usage_readings IN SHARE ROW EXCLUSIVE MODE"
                await connection.execute(sa.text(lock))
            known = await _known(connection)
            read = {each.vm_id: each for each in readings}
            vms = await _vms(connection, {*known, *read})
            sessions = await _sessions_of(connection, list(vms))
            used: dict[tuple[str, date], Use] = defaultdict(Use)
            for vm_id, vm in vms.items():
                new, session = _newest(vm, known.get(vm_id), read.get(vm_id)), sessions.get(vm_id)
                if new is not None and session is not None:
                    last = known.get(vm_id) or first_reading(vm, session)
                    for day, use in use_between(last, new, vm, session).items():
                        used[session.user_id, day] += use
            await add_use(connection, used)
            await _keep(connection, known, read, vms)

    async def days(self, since: date, user_id: str | None = None) -> Mapping[str, Days]:
        """Return what each user, or one, used on each day from `since` on, by the user's id."""
        async with self._database.reading() as connection:
            return await _days(connection, since, None if user_id is None else [user_id])

    async def quotas(
        self, users: Mapping[str, Role], at: datetime
    ) -> Mapping[str, tuple[QuotaState, ...]]:
        """Return the quotas of these users, by id. Reads nothing if no quota is set."""
        if not self._quotas.are_set or not users:
            return dict.fromkeys(users, ())
        async with self._database.reading() as connection:
            found = await _days(connection, month_of(at), list(users))
        return {
            user_id: quota_states(self._quotas.of(user_id, role), found.get(user_id, {}), at)
            for user_id, role in users.items()
        }

    async def prune(self, before: date) -> int:
        """Delete usage from before that day, and return how many rows."""
        async with self._database.writing() as connection:
            done = await connection.execute(sa.delete(tables.usage).where(_usage.day < before))
            return done.rowcount


def _newest(
    vm: Vm, last: CounterReading | None, new: CounterReading | None
) -> CounterReading | None:
    """Return a VM's new reading; of a VM that has ended, its last one as of its end."""
    if new is not None or last is None or vm.released_at is None:
        return new
    return complete(last, CounterReading(vm.id, vm.released_at, vm.paused_at is not None))


async def _known(connection: AsyncConnection) -> dict[str, CounterReading]:
    found = await connection.execute(sa.select(tables.usage_readings))
    return {row.vm_id: CounterReading(**row._mapping) for row in found}


async def _vms(connection: AsyncConnection, ids: Collection[str]) -> dict[str, Vm]:
    found = await connection.execute(VMS.where(tables.vms.c.id.in_(ids)))
    return {row["id"]: vm_of(row) for row in found.mappings()}


async def _sessions_of(connection: AsyncConnection, vm_ids: Collection[str]) -> dict[str, Session]:
    """Return the sessions of these VMs, by the VM's id."""
    found = await connection.execute(SESSIONS.where(tables.sessions.c.vm_id.in_(vm_ids)))
    return {row["vm_id"]: session_of(row) for row in found.mappings()}


async def _keep(
    connection: AsyncConnection,
    known: Mapping[str, CounterReading],
    read: Mapping[str, CounterReading],
    vms: Mapping[str, Vm],
) -> None:
    """Write the readings of VMs that hold a slot, and delete those of other VMs."""
    held = {vm_id: vm for vm_id, vm in vms.items() if vm.released_at is None}
    new = [
        asdict(complete(last, each))
        for vm_id, each in read.items()
        if vm_id in held and ((last := known.get(vm_id)) is None or each.at > last.at)
    ]
    gone = [*(known.keys() - held.keys()), *(each["vm_id"] for each in new)]
    if gone:
        await connection.execute(sa.delete(tables.usage_readings).where(_readings.vm_id.in_(gone)))
    if new:
        await connection.execute(sa.insert(tables.usage_readings), new)


async def add_use(connection: AsyncConnection, used: Mapping[tuple[str, date], Use]) -> None:
    """Add what users used on days, in one order, so that transactions cannot deadlock."""
    if not used:
        return
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(tables.usage)
    sums = {name: _usage[name] + statement.excluded[name] for name in FIGURES}
    statement = statement.on_conflict_do_update(index_elements=["user_id", "day"], set_=sums)
    rows = [{"user_id": user, "day": day, **asdict(used[user, day])} for user, day in sorted(used)]
    await connection.execute(statement, rows)


async def refuse_beyond_quota(
    connection: AsyncConnection, quotas: Quotas, user_id: str, at: datetime
) -> None:
    """Raise QuotaExceeded if the user has used up a quota."""
    if not quotas.are_set:
        return
    role = sa.select(tables.users.c.role).where(tables.users.c.id == user_id)
    quota = quotas.of(user_id, (await connection.execute(role)).scalar_one())
    days = await _days(connection, month_of(at), [user_id])
    if state := used_up(quota_states(quota, days.get(user_id, {}), at)):
        raise QuotaExceeded(state, at)


async def _days(
    connection: AsyncConnection, since: date, users: Collection[str] | None
) -> Mapping[str, Days]:
    statement = sa.select(tables.usage).where(_usage.day >= since).order_by(_usage.day)
    if users is not None:
        statement = statement.where(_usage.user_id.in_(users))
    found: dict[str, dict[date, Use]] = defaultdict(dict)
    for row in (await connection.execute(statement)).mappings():
        found[row["user_id"]][row["day"]] = Use(**{name: row[name] for name in FIGURES})
    return found
