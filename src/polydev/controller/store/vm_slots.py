"""Slots: declared by the settings, and taken by VMs, which a constraint of the database guards."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.session_and_vm_states import VmState
from polydev.controller.store import tables
from polydev.controller.store.transactions import Database
from polydev.errors import ConfigError
from polydev.host_layout import slot_address

_slots, _vms = tables.slots.c, tables.vms.c
HELD = sa.exists().where(_vms.slot == _slots.number, _vms.released_at.is_(None))


@dataclass(frozen=True)
class _Slot:
    vm_ip: str
    held: bool


async def sync_slots(database: Database, numbers: Iterable[int], network: IPv4Network) -> None:
    """Declare exactly these slots. A held slot keeps its address until it is free.

    Raises ConfigError if a slot would get the address of another slot's VM.
    """
    wanted = {number: str(slot_address(network, number)) for number in sorted(set(numbers))}
    async with database.writing() as connection:
        if connection.dialect.name == "postgresql":
            # Two controllers may start at once, and rows that do not exist yet cannot be locked.
            await connection.execute(sa.text("LOCK TABLE slots IN SHARE ROW EXCLUSIVE MODE"))
        known = await _known(connection)
        _refuse_taken_addresses(wanted, known)
        await connection.execute(sa.update(tables.slots).values(declared=False))
        await _give_addresses(connection, wanted, known)
        new = [number for number in wanted if number not in known]
        for number in new:
            await connection.execute(
                sa.insert(tables.slots).values(number=number, vm_ip=wanted[number], declared=True)
            )
        await connection.execute(
            sa.update(tables.slots).where(_slots.number.in_(wanted)).values(declared=True)
        )


async def _known(connection: AsyncConnection) -> dict[int, _Slot]:
    found = await connection.execute(sa.select(_slots.number, _slots.vm_ip, HELD.label("held")))
    return {row.number: _Slot(row.vm_ip, bool(row.held)) for row in found}


def _refuse_taken_addresses(wanted: Mapping[int, str], known: Mapping[int, _Slot]) -> None:
    held = {slot.vm_ip: number for number, slot in known.items() if slot.held}
    for number, address in wanted.items():
        holder = held.get(address, number)
        if holder != number:
            raise ConfigError(
                f"slot {number} would get the address of slot {holder}, which a VM still holds",
                "end that VM first, or choose another vm_network",
                key="vm_network",
            )


async def _give_addresses(
    connection: AsyncConnection, wanted: Mapping[int, str], known: Mapping[int, _Slot]
) -> None:
    """Change addresses of free slots, with placeholders first, since slots may swap addresses.

    A slot that is not declared any more gives up its address if another needs it.
    """
    needed = set(wanted.values())
    changed = [
        number
        for number, slot in known.items()
        if not slot.held
        and (slot.vm_ip != wanted[number] if number in wanted else slot.vm_ip in needed)
    ]
    for number in changed:
        await _set_address(connection, number, f"none {number}")
    for number in changed:
        if number in wanted:
            await _set_address(connection, number, wanted[number])


async def _set_address(connection: AsyncConnection, number: int, address: str) -> None:
    await connection.execute(
        sa.update(tables.slots).where(_slots.number == number).values(vm_ip=address)
    )


async def take_slot(connection: AsyncConnection, image_digest: str, at: datetime) -> str | None:
    """Create a VM in the lowest free slot, and return its id; None if no slot is free.

    If another process takes the slot first, the constraint fails and the next slot is tried.
    """
    for _ in range(await count_slots(connection)):
        slot = await _free_slot(connection)
        if slot is None:
            return None
        vm_id = str(uuid.uuid4())
        try:
            async with connection.begin_nested():
                await connection.execute(
                    sa.insert(tables.vms).values(_new_vm(vm_id, slot, image_digest, at))
                )
        except IntegrityError:
            continue
        return vm_id
    return None


async def take_pooled(
    connection: AsyncConnection, at: datetime, states: Sequence[VmState]
) -> tuple[str, VmState] | None:
    """Take the oldest VM in one of these states from the pool; return its id and new state.

    None if there is none. A VM that was ready is `starting` now, since it still has to get its
    identity. The driver keeps in the pool only VMs of the image that new ones are made of.
    """
    waiting = (_vms.pooled, _vms.state.in_(states), _vms.released_at.is_(None))
    oldest = sa.select(_vms.id, _vms.state).where(*waiting).order_by(_vms.created_at).limit(1)
    statement = oldest.with_for_update(skip_locked=True)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    state: VmState = "starting" if row.state == "ready" else row.state
    started_at = None if state == "creating" else at
    times = {"started_at": started_at, "ready_at": None, "paused_at": None, "stage_at": at}
    await connection.execute(
        sa.update(tables.vms).where(_vms.id == row.id).values(pooled=False, state=state, **times)
    )
    return row.id, state


async def count_slots(connection: AsyncConnection) -> int:
    found = await connection.execute(
        sa.select(sa.func.count()).select_from(tables.slots).where(_slots.declared)
    )
    return found.scalar_one()


async def count_free_slots(connection: AsyncConnection) -> int:
    free = sa.select(sa.func.count()).select_from(tables.slots).where(_slots.declared, ~HELD)
    return (await connection.execute(free)).scalar_one()


async def _free_slot(connection: AsyncConnection) -> int | None:
    statement = sa.select(_slots.number).where(_slots.declared, ~HELD)
    found = await connection.execute(statement.order_by(_slots.number).limit(1))
    return found.scalar_one_or_none()


def _new_vm(vm_id: str, slot: int, image_digest: str, at: datetime) -> dict[str, object]:
    return {
        "id": vm_id,
        "slot": slot,
        "state": "creating",
        "stage": "none",
        "stage_at": at,
        "image_digest": image_digest,
        "created_at": at,
        "failed_units": [],
        "failed_checks": 0,
        "timings": {},
    }
