"""The queue of VMs that wait to boot: which wait, why, and the events for their sessions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from polydev.controller.entities import Vm
from polydev.controller.store.sessions import Sessions

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Queued:
    """A VM's place in the queue, and what the host lacks, if anything."""

    place: int
    because: str = ""

    def event_data(self) -> dict[str, object]:
        """Return the data of the event `queued`."""
        return {"place": self.place} | ({"because": self.because} if self.because else {})


def boot_queue(held: Iterable[Vm], boots_at_once: int, shortage: str = "") -> dict[str, Queued]:
    """Return which of these VMs, oldest first, must wait until others have booted.

    shortage    what the host has too little of, so that no VM may start now
    VMs of the pool do not count: they are made only when no session waits.
    """
    vms = [vm for vm in held if not vm.pooled]
    room = 0 if shortage else boots_at_once - sum(vm.state == "starting" for vm in vms)
    waiting = [vm.id for vm in vms if vm.state == "creating"][max(0, room) :]
    return {vm_id: Queued(place, shortage) for place, vm_id in enumerate(waiting, 1)}


def memory_shortage(free_mib: float, least_mib: float) -> str:
    """Return what to say of a host with too little memory for one more VM; empty if it has it."""
    return "" if free_mib >= least_mib else "the host is short of memory"


class BootQueueEvents:
    """Writes the event `queued`: each start changes all places, so one transaction has them all."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._last: Mapping[str, Queued] = {}

    async def write(self, queue: Mapping[str, Queued]) -> None:
        """Write an event for each VM whose place or reason has changed."""
        news = {vm_id: each for vm_id, each in queue.items() if self._last.get(vm_id) != each}
        if news:
            words = {vm_id: each.event_data() for vm_id, each in news.items()}
            await self._sessions.add_news_of_vms("queued", words)
            log.info("vms_queued", vm_ids=list(queue))
        self._last = queue
