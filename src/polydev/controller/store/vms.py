"""VMs: each change of a VM in one transaction with its session.

Reports about a VM may come late or twice: one that its state does not allow changes nothing, and
the driver continues from the state in the database.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import BEING_MADE, Session, Vm, now
from polydev.controller.session_and_vm_states import LIVE_VM_STATES
from polydev.controller.settings import SessionLimits
from polydev.controller.store import tables
from polydev.controller.store.credential_holders import release_with_vm
from polydev.controller.store.pagination import paginated
from polydev.controller.store.row_mapping import HELD_VMS, VMS, vm_of
from polydev.controller.store.session_changes import (
    add_news,
    change_session,
    change_vm,
    locked_vm,
    no_vm,
)
from polydev.controller.store.session_expiry import idle_end
from polydev.controller.store.session_repair import repair_sessions
from polydev.controller.store.transactions import Database, uninterrupted
from polydev.controller.store.vm_slots import count_free_slots, take_slot
from polydev.errors import VmError
from polydev.vm.boot_stages import STAGES, Stage
from polydev.vm.identity import Receipt

_vms = tables.vms.c


@uninterrupted
class Vms:
    def __init__(
        self, database: Database, limits: SessionLimits, clock: Callable[[], datetime] = now
    ) -> None:
        self._database = database
        self._limits = limits
        self._clock = clock

    async def get(self, vm_id: str) -> Vm:
        """Return a VM. Raises VmError."""
        async with self._database.reading() as connection:
            found = await connection.execute(VMS.where(_vms.id == vm_id))
            row = found.mappings().one_or_none()
        if row is None:
            raise no_vm(vm_id)
        return vm_of(row)

    async def some(self, ids: Collection[str]) -> dict[str, Vm]:
        """Return those of these VMs that exist, by id."""
        return {vm.id: vm for vm in await self._read(VMS.where(_vms.id.in_(ids)))}

    async def over_of(self, ids: Collection[str]) -> set[str]:
        """Return which of these VMs are released or unknown."""
        there = sa.select(_vms.id).where(_vms.id.in_(ids), _vms.released_at.is_(None))
        async with self._database.reading() as connection:
            return set(ids) - set((await connection.execute(there)).scalars())

    async def list(
        self,
        user_id: str | None = None,
        held_only: bool = False,
        limit: int = 100,
        before: Vm | None = None,
    ) -> builtins.list[Vm]:
        """List VMs of a user or of all, newest first; with `before`, those that follow it."""
        asked = HELD_VMS.c if held_only else _vms
        statement = sa.select(HELD_VMS) if held_only else VMS
        if user_id is not None:
            whose = tables.sessions.c
            statement = statement.join(tables.sessions, whose.vm_id == asked.id)
            statement = statement.where(whose.user_id == user_id)
        return await self._read(paginated(statement, asked, limit, before))

    async def held(self) -> builtins.list[Vm]:
        """Return the VMs that hold a slot, oldest first; the driver works on these."""
        held = HELD_VMS.c
        return await self._read(sa.select(HELD_VMS).order_by(held.created_at, held.slot))

    async def _read(self, statement: sa.Select[tuple[object, ...]]) -> builtins.list[Vm]:
        async with self._database.reading() as connection:
            found = await connection.execute(statement)
            return [vm_of(row) for row in found.mappings()]

    async def add_pooled(self, image_digest: str, template: str, spare_slots: int) -> Vm | None:
        """Create a VM for the pool; None where no more than `spare_slots` slots are free."""
        async with self._database.writing() as connection:
            if await count_free_slots(connection) <= spare_slots:
                return None
            vm_id = await take_slot(connection, image_digest, self._clock())
            if vm_id is None:  # another process was quicker
                return None
            await change_vm(connection, vm_id, pooled=True, template=template)
            vm, _nobody = await locked_vm(connection, vm_id)
            return vm

    async def primed(self, vm_id: str) -> None:
        """Note that a VM of the pool has started and is paused: a session may take it."""
        async with self._database.writing() as connection:
            vm, _nobody = await locked_vm(connection, vm_id)
            if vm.pooled and vm.state == "starting":
                at = self._clock()
                await change_vm(connection, vm_id, state="ready", ready_at=at, paused_at=at)

    async def drain(self, vm_id: str, reason: str | None = None) -> None:
        """Stop a VM if it is still in the pool. `reason`: why it failed, if it did."""
        async with self._database.writing() as connection:
            vm, _nobody = await locked_vm(connection, vm_id)
            if vm.pooled and vm.state in LIVE_VM_STATES:
                said = None if reason is None else _storable(reason)
                await change_vm(connection, vm_id, state="stopping", reason=said)

    async def launched(self, vm_id: str) -> None:
        """Note that a VM's process runs."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state != "creating":
                return
            at = self._clock()
            await change_vm(connection, vm_id, state="starting", started_at=at)
            # A VM that boots instead of being resumed was launched before.
            if session and session.state == "vm_creating":
                await change_session(connection, session, "vm_launched", at)

    async def resumes(self, vm_id: str, image_digest: str, template: str) -> None:
        """Note that a VM is going to be resumed from an image's template."""
        async with self._database.writing() as connection:
            vm, _session = await locked_vm(connection, vm_id)
            if vm.state == "creating":
                await change_vm(connection, vm_id, template=template, image_digest=image_digest)

    async def boots(self, vm_id: str, because: str, image_digest: str | None = None) -> None:
        """Note that a VM boots instead of being resumed, and why; its session gets news of it.

        It boots its own image, or the given one.
        """
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state not in ("creating", "starting"):
                return
            reason, at = _storable(because), self._clock()
            again = {"state": "creating", "started_at": None, "stage": "none", "stage_at": at}
            again |= {"template": None, "image_digest": image_digest or vm.image_digest}
            await change_vm(connection, vm_id, boots_because=reason, **again)
            if session and session.is_live:
                await add_news(connection, session.id, at, "booting", {"because": reason})

    async def resumed(self, vm_id: str, receipt: Receipt) -> None:
        """Note the guest's receipt: a clone has taken this VM's identity and is ready."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state == "starting" and vm.template:
                await change_vm(connection, vm_id, receipt=asdict(receipt))
                await self._be_ready(connection, vm, session)

    async def stage_reached(self, vm_id: str, stage: Stage) -> None:
        """Note when a VM reached a boot stage; and the stage, if it reached no later one before."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state in LIVE_VM_STATES:
                await _note_stage(connection, vm, session, stage, self._clock())

    async def ready(self, vm_id: str) -> None:
        """Note that a VM's agent answers; from now on heartbeats keep its session alive."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state == "starting":
                await self._be_ready(connection, vm, session)

    async def _be_ready(self, connection: AsyncConnection, vm: Vm, session: Session | None) -> None:
        at = self._clock()
        await change_vm(connection, vm.id, state="ready", ready_at=at)
        await _note_stage(connection, vm, session, "ready", at)
        if session and session.is_live:
            expires_at = idle_end(session, at, self._limits)
            await change_session(connection, session, "vm_ready", at, expires_at=expires_at)

    async def used(self, vm_id: str) -> None:
        """Note that a VM is in use: it is not paused, or wakes."""
        async with self._database.writing() as connection:
            await change_vm(connection, vm_id, used_at=self._clock())

    async def pause(self, seen: Vm) -> bool:
        """Note that a VM is being paused; False if it was used since it was `seen`."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, seen.id)
            if vm.state != "ready" or vm.paused_at or vm.used_at != seen.used_at:
                return False
            at = self._clock()
            await change_vm(connection, vm.id, paused_at=at)
            if session and session.is_live:
                await add_news(connection, session.id, at, "paused", {})
            return True

    async def woken(self, vm_id: str) -> None:
        """Note that a VM runs again after a pause."""
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.paused_at is None:
                return
            at = self._clock()
            await change_vm(connection, vm_id, paused_at=None, used_at=at)
            if session and session.is_live:
                await add_news(connection, session.id, at, "awake", {})

    async def checked(self, vm_id: str, ok: bool) -> int:
        """Note a health check, and return how many failed in a row."""
        if ok and not (await self.get(vm_id)).failed_checks:
            return 0  # the usual case, in which nothing is written
        async with self._database.writing() as connection:
            vm, _session = await locked_vm(connection, vm_id)
            failed = 0 if ok else vm.failed_checks + 1
            await change_vm(connection, vm_id, failed_checks=failed)
            return failed

    async def fail(
        self,
        vm_id: str,
        reason: str,
        failed_units: Sequence[str] = (),
        serial_tail: str | None = None,
    ) -> None:
        """Stop a live VM and fail its session, both for this reason."""
        said = {
            "reason": _storable(reason),
            "failed_units": list(failed_units),
            "serial_tail": None if serial_tail is None else _storable(serial_tail),
        }
        await self._stop(vm_id, _storable(reason), said)

    async def stop(self, vm_id: str) -> None:
        """Stop a live VM as requested; its session fails."""
        await self._stop(vm_id, "its VM was ended", {})

    async def _stop(self, vm_id: str, reason: str, said: Mapping[str, object]) -> None:
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.state not in LIVE_VM_STATES:
                return
            await change_vm(connection, vm_id, state="stopping", **said)
            if session and session.is_live:
                await change_session(connection, session, "fail", self._clock(), reason=reason)

    async def released(self, vm_id: str) -> None:
        """Note that nothing of a VM runs or is on disk any more: its slot and address are free.

        Raises VmError while it is live, or while it has a live session.
        """
        async with self._database.writing() as connection:
            vm, session = await locked_vm(connection, vm_id)
            if vm.released_at is not None:
                return
            if vm.state in LIVE_VM_STATES:
                raise VmError(f"cannot release VM {vm_id}: it is {vm.state}")
            if session and session.is_live:
                raise VmError(f"cannot release VM {vm_id}: session {session.id} is using it")
            at = self._clock()
            await release_with_vm(connection, vm, session, at)
            state = "failed" if vm.reason else "ended"
            await change_vm(connection, vm_id, state=state, ended_at=at, released_at=at)

    async def repair(self) -> builtins.list[str]:
        """Repair rows that contradict each other, and return what was done, in words."""
        return await repair_sessions(self._database, self._clock)

    async def failed_since(self, since: datetime) -> int:
        """Count VMs that failed after that time without ever being ready."""
        held, count = HELD_VMS.c, sa.select(sa.func.count())
        over = count.select_from(tables.vms).where(
            _vms.reason.is_not(None), _vms.ready_at.is_(None), _vms.ended_at >= since
        )
        stops = count.select_from(HELD_VMS).where(held.reason.is_not(None), held.ready_at.is_(None))
        async with self._database.reading() as connection:
            counts = [await connection.execute(asked) for asked in (over, stops)]
            return sum(count.scalar_one() for count in counts)

    async def not_resumed(self, since: datetime) -> tuple[int, str]:
        """Count VMs made since then that booted instead of being resumed; the newest one's reason.

        VMs that booted while their template was being made do not count.
        """
        asked = VMS.where(_vms.created_at >= since, _vms.boots_because != BEING_MADE)
        found = await self._read(asked.order_by(_vms.created_at.desc()))
        return len(found), found[0].boots_because or "" if found else ""

    async def failed_while_up(self, since: datetime, made_since: datetime) -> int:
        """Count VMs that failed since then after they were ready.

        made_since  VMs made before that need not be read
        """
        failed = (_vms.reason.is_not(None), _vms.ready_at.is_not(None))
        lately = sa.or_(_vms.released_at.is_(None), _vms.ended_at >= since)
        counted = sa.select(sa.func.count()).where(_vms.created_at >= made_since, *failed, lately)
        async with self._database.reading() as connection:
            return (await connection.execute(counted)).scalar_one()


async def _note_stage(
    connection: AsyncConnection, vm: Vm, session: Session | None, stage: Stage, at: datetime
) -> None:
    if stage in vm.timings:
        return
    seconds = round((at - (vm.started_at or vm.created_at)).total_seconds(), 3)
    values: dict[str, object] = {"timings": {**vm.timings, stage: seconds}}
    if STAGES.index(stage) > STAGES.index(vm.stage):
        values |= {"stage": stage, "stage_at": at}
    await change_vm(connection, vm.id, **values)
    if session and session.is_live:
        await add_news(connection, session.id, at, "stage", {"stage": stage, "seconds": seconds})


def _storable(text: str) -> str:
    """Remove NUL, which PostgreSQL cannot store; a serial console may print anything."""
    return text.replace("\0", "")
