"""Repair of sessions and VMs whose rows contradict each other.

No transaction of the store leaves such rows; a restored backup or a change by hand may.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session, Vm
from polydev.controller.session_and_vm_states import LIVE_VM_STATES
from polydev.controller.store import tables
from polydev.controller.store.row_mapping import HELD_VMS, LIVE_SESSIONS
from polydev.controller.store.session_changes import change_session, change_vm, locked_vm
from polydev.controller.store.transactions import Database

_vms = tables.vms.c


async def repair_sessions(database: Database, clock: Callable[[], datetime]) -> list[str]:
    """Repair all contradictions, one VM at a time, and return what was done, in words."""
    async with database.reading() as connection:
        suspects = (await connection.execute(_suspects())).scalars().all()
    done = []
    for vm_id in suspects:
        async with database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            done += await _repair_one(connection, vm, session, clock())
    return done


def _suspects() -> sa.CompoundSelect[str]:
    """Select VMs whose state contradicts their slot or their session."""
    live, held = LIVE_SESSIONS.c, HELD_VMS.c
    stopped = _vms.state.not_in(LIVE_VM_STATES)
    named = (
        sa.select(_vms.id)
        .join_from(LIVE_SESSIONS, tables.vms, _vms.id == live.vm_id)
        .where(sa.or_(stopped, _vms.released_at.is_not(None)))
    )
    lonely = sa.and_(
        held.state.in_(LIVE_VM_STATES),
        ~held.pooled,
        held.id.not_in(sa.select(live.vm_id).scalar_subquery()),
    )
    over = held.state.in_(("ended", "failed"))
    return sa.union(named, sa.select(held.id).where(sa.or_(lonely, over)))


async def _repair_one(
    connection: AsyncConnection, vm: Vm, session: Session | None, at: datetime
) -> list[str]:
    done = []
    live, held = vm.state in LIVE_VM_STATES, vm.released_at is None
    has_session = session is not None and session.is_live
    if live and held and not (has_session or vm.pooled):
        await change_vm(connection, vm.id, state="stopping")
        done.append(f"VM {vm.id} is stopped: it belongs to no session")
    if live and not held:
        reason = "it no longer had a slot"
        await change_vm(connection, vm.id, state="failed", reason=reason, ended_at=at)
        done.append(f"VM {vm.id} failed: {reason}")
    if held and vm.state in ("ended", "failed"):
        await change_vm(connection, vm.id, state="stopping", ended_at=None)
        done.append(f"VM {vm.id} is stopped again: it had ended but held slot {vm.slot}")
    if session is not None and has_session and not (live and held):
        reason = f"its VM is gone: {vm.reason}" if vm.reason else "its VM is gone"
        await change_session(connection, session, "fail", at, reason=reason)
        done.append(f"session {session.id} failed: {reason}")
    return done
