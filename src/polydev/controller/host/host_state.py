"""The host's current state, read once for all viewers who ask at about the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

import structlog

from polydev.controller.entities import Alert, Session, now
from polydev.controller.health import Health
from polydev.controller.host.cached_call import CachedCall
from polydev.controller.host.network_checks import NetworkChecks
from polydev.controller.host.overview import Overview, overview_of
from polydev.controller.host.system_monitor import SystemMonitor
from polydev.controller.host.system_status import NetworkHealth, SystemStatus
from polydev.controller.machines.hypervisor import Hypervisor, TemplatesReport
from polydev.controller.machines.pool import PoolState, pool_state
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.alerts import Alerts
from polydev.controller.store.sessions import MOST_LIVE_SESSIONS, Sessions
from polydev.controller.store.vms import Vms
from polydev.errors import Error

log = structlog.stdlib.get_logger(__name__)

FRESH_SECONDS = 2.0
# Longer, since it asks a DNS resolver.
NETWORK_FRESH_SECONDS = 15.0


@dataclass(frozen=True)
class HostState:
    """State of the host at one time.

    slots       how many slots are declared; `pool.held` are the VMs in them
    live        sessions that are not over
    """

    at: datetime
    system: SystemStatus
    network: NetworkHealth
    standing: tuple[Alert, ...]
    pool: PoolState
    slots: int
    live: tuple[Session, ...]
    overview: Overview


class HostStateReader:
    """Reads the state with `latest`; callers within two seconds get the same one."""

    def __init__(
        self,
        settings: ControllerSettings,
        host: SystemMonitor,
        alerts: Alerts,
        health: Health,
        vms: Vms,
        sessions: Sessions,
        hypervisor: Hypervisor | None,
    ) -> None:
        self._settings = settings
        self._host = host
        self._alerts = alerts
        self._health = health
        self._vms = vms
        self._sessions = sessions
        self._hypervisor = hypervisor if settings.templates else None
        network = NetworkChecks(settings.vm_network, settings.slots)
        self._network = CachedCall(network.report, NETWORK_FRESH_SECONDS)
        self.latest = CachedCall(self._take, FRESH_SECONDS)

    async def _take(self) -> HostState:
        """Collect the state now. Raises the database's errors."""
        settings = self._settings
        system, network, health, templates = await asyncio.gather(
            self._host.system(), self._network(), self._health.report(), self._templates()
        )
        standing, held, live = await asyncio.gather(
            self._alerts.standing(),
            self._vms.held(),
            self._sessions.list(live_only=True, limit=MOST_LIVE_SESSIONS),
        )
        pool = await pool_state(settings, held, self._hypervisor)
        components = dict(health.components)
        pool_slots = len(settings.slots) - settings.pool.spare_slots
        overview = overview_of(system, network, components, templates, pool, pool_slots, standing)
        return HostState(
            at=now(),
            system=system,
            network=network,
            standing=tuple(standing),
            pool=pool,
            slots=len(settings.slots),
            live=tuple(live),
            overview=overview,
        )

    async def _templates(self) -> TemplatesReport | None:
        if self._hypervisor is None:
            return None
        try:
            return await self._hypervisor.templates()
        except Error as error:
            log.debug("templates_not_read", reason=error.message)
            return None
