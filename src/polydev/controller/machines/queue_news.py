"""Tells sessions whose VMs do not start yet which one each of them is of those that wait."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from polydev.controller.machines.decisions import Queued
from polydev.controller.store.sessions import Sessions

log = structlog.stdlib.get_logger(__name__)


class QueueNews:
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
