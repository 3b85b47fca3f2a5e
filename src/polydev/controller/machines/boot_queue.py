"""The queue of VMs that wait to boot: who waits, why, and the event that tells its session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import structlog

from polydev.controller.model import Vm
from polydev.controller.store.sessions import Sessions

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True)
class Queued:
    """Why a VM does not start yet: which one it is of those that wait, and what else they lack."""

    place: int
    because: str = ""

    def words(self) -> dict[str, object]:
        """The data of the event `queued`."""
        return {"place": self.place} | ({"because": self.because} if self.because else {})


def boot_queue(held: Iterable[Vm], boots_at_once: int, lack: str = "") -> dict[str, Queued]:
    """Which of these VMs, oldest first, must wait until others have booted.

    lack    what the host has too little of, so that none may start now
    Those of the pool do not count: they are made where nobody waits.
    """
    vms = [vm for vm in held if not vm.pooled]
    room = 0 if lack else boots_at_once - sum(vm.state == "starting" for vm in vms)
    waiting = [vm.id for vm in vms if vm.state == "creating"][max(0, room) :]
    return {vm_id: Queued(place, lack) for place, vm_id in enumerate(waiting, 1)}


def memory_lack(free_mib: float, least_mib: float) -> str:
    """The words for a host with too little memory for one more VM; empty where it has enough."""
    return "" if free_mib >= least_mib else "the host's memory is short"


class BootQueueEvents:
    """Every start moves all places, so all that changed is told in one transaction."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._told: Mapping[str, Queued] = {}

    async def tell(self, queue: Mapping[str, Queued]) -> None:
        """Tell what is new in the queue: places of VMs, by id."""
        news = {vm_id: each for vm_id, each in queue.items() if self._told.get(vm_id) != each}
        if news:
            words = {vm_id: each.words() for vm_id, each in news.items()}
            await self._sessions.add_news_of_vms("queued", words)
            log.info("vms_queued", vm_ids=list(queue))
        self._told = queue
