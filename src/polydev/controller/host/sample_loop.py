"""The sample loop: every few seconds it measures the host, stores a sample and checks alerts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from polydev.controller.entities import Alert, Vm, now
from polydev.controller.host import deployments, network_watch_report
from polydev.controller.host.alert_checker import AlertChecker
from polydev.controller.host.alert_outbox import Outbox
from polydev.controller.host.alert_sender import AlertSender, SendResult
from polydev.controller.host.sample import Sample, Workload, sample_of
from polydev.controller.host.system_monitor import SystemMonitor
from polydev.controller.host.vm_usage import VmUsage, measure_vm
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.leader_lock import shared_folder
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.alerts import KEPT_ALERTS, Alerts
from polydev.controller.store.credential_log import CredentialLog
from polydev.controller.store.host_samples import HostSamples
from polydev.controller.store.sessions import MOST_LIVE_SESSIONS, Sessions
from polydev.controller.store.transactions import Database
from polydev.controller.store.usage import Usage
from polydev.controller.store.vms import Vms
from polydev.controller.store.webhook_log import WebhookLog
from polydev.controller.usage_accounting import CounterReading, day_of
from polydev.errors import VmError
from polydev.vm.cancel_on_timeout import limited

log = structlog.stdlib.get_logger(__name__)

DATABASE_TIMEOUT_SECONDS = 10.0
# Each measurement of a VM takes a thread for a moment.
VMS_AT_ONCE = 16


class SampleLoop:
    """`latest` and `standing` are the last sample and its alerts, for callers that may not wait.

    Two processes sample during a handover; only the leader stores samples and raises alerts.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        database: Database,
        vms: Vms,
        sessions: Sessions,
        hypervisor: Hypervisor | None,
        *,
        leads: Callable[[], bool] = lambda: True,
        deployments_folder: Path = deployments.FOLDER,
        network_file: Path = network_watch_report.FILE,
        sender: AlertSender | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self.host = SystemMonitor(settings.alert)
        self.latest: Sample | None = None
        self.standing: list[Alert] = []
        self._settings = settings
        self._database = database
        self._vms = vms
        self._sessions = sessions
        self._hypervisor = hypervisor
        self._leads = leads
        self._sender = sender or AlertSender(settings.alert_urls, Outbox(unsent_folder(settings)))
        self._samples = HostSamples(database)
        self._usage = Usage(database, settings.quotas)
        self._alerts = Alerts(database, clock)
        self._credential_log = CredentialLog(database, clock)
        self._alert_checker = AlertChecker(
            settings,
            self._alerts,
            WebhookLog(database, clock),
            hypervisor,
            self._sender.send,
            deployments_folder=deployments_folder,
            network_file=network_file,
        )
        self._clock = clock
        self._thinned_at: datetime | None = None

    @property
    def messages(self) -> Mapping[tuple[str, SendResult], int]:
        """Return how many messages were sent, and how many failed, by service and result."""
        return self._sender.counts

    async def run(self) -> None:
        """Sample, and send messages about alerts, until cancelled."""
        sending = asyncio.create_task(self._sender.run())
        try:
            while True:
                try:
                    await self.sample_once()
                except (SQLAlchemyError, OSError, asyncio.TimeoutError) as error:
                    # The error's text would quote the SQL statement.
                    log.warning("sample_not_kept", error=type(error).__name__)
                if sending.done():
                    sending.result()
                await asyncio.sleep(self._settings.samples.every_seconds)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending

    async def sample_once(self) -> Sample:
        """Measure everything; the leader stores the sample and checks alerts.

        Raises SQLAlchemyError, OSError or asyncio.TimeoutError if the database fails, but measures
        the host itself before.
        """
        system, workload = await asyncio.gather(
            self.host.system(), self._workload(), return_exceptions=True
        )
        if isinstance(system, BaseException):
            raise system
        if isinstance(workload, BaseException):
            self.latest = sample_of(system, self._settings.slots, None)
            raise workload
        sample = sample_of(system, self._settings.slots, workload)
        self.latest = sample
        await limited(DATABASE_TIMEOUT_SECONDS, self._keep(sample, workload))
        return sample

    async def _keep(self, sample: Sample, workload: Workload) -> None:
        if not self._leads():
            self.standing = await self._alerts.standing()
            return
        at = self._clock()
        await self._samples.add(at, sample.model_dump(mode="json"))
        await self._usage.count([reading_of(vm, workload.used, at) for vm in workload.held])
        self.standing = await self._alert_checker.check(sample, workload, at)
        every = timedelta(seconds=self._settings.samples.thinned_every_seconds)
        if self._thinned_at is None or at - self._thinned_at >= every:
            self._thinned_at = at
            await self._samples.thin(self._settings.samples, at)
            await self._alerts.prune(at - KEPT_ALERTS)
            await self._usage.prune(day_of(at - timedelta(days=self._settings.keep_usage_days)))
            kept = timedelta(days=self._settings.keep_credential_events_days)
            await self._credential_log.prune(at - kept)
            await self._credential_log.trim()

    async def _workload(self) -> Workload:
        return await limited(DATABASE_TIMEOUT_SECONDS, self._read_workload())

    async def _read_workload(self) -> Workload:
        since = self._clock() - timedelta(seconds=self._settings.alert.failed_boots_seconds)
        made_since = since - 2 * timedelta(seconds=self._settings.session.max_seconds)
        held = await self._vms.held()
        return Workload(
            held=held,
            live=await self._sessions.list(live_only=True, limit=MOST_LIVE_SESSIONS),
            failed_boots=await self._vms.failed_since(since),
            not_resumed=await self._vms.not_resumed(since),
            failed_while_up=await self._vms.failed_while_up(since, made_since),
            used=await self._used(held),
        )

    async def _used(self, held: list[Vm]) -> dict[str, VmUsage]:
        if self._hypervisor is None:
            return {}
        hypervisor, room = self._hypervisor, asyncio.Semaphore(VMS_AT_ONCE)

        async def one(vm: Vm) -> VmUsage:
            async with room:
                return await vm_usage_of(hypervisor, vm)

        found = await asyncio.gather(*map(one, held))
        return dict(zip((each.id for each in held), found, strict=True))


def reading_of(vm: Vm, used: Mapping[str, VmUsage], at: datetime) -> CounterReading:
    """Return a VM's counters, as far as they were measured."""
    found = used.get(vm.id, VmUsage())
    return CounterReading(
        vm.id,
        at,
        vm.paused_at is not None,
        found.cpu_seconds,
        found.received_bytes,
        found.sent_bytes,
    )


def unsent_folder(settings: ControllerSettings) -> Path:
    """Return the outbox's folder, which all processes of the service share."""
    return shared_folder(settings) / "unsent"


async def vm_usage_of(hypervisor: Hypervisor, vm: Vm) -> VmUsage:
    """Measure what a VM uses now, as far as that is possible. Raises nothing."""
    try:
        state = await hypervisor.poll(vm.slot)
    except VmError as error:
        return VmUsage(unavailable={"all": error.message})
    pid = state.pid if state.vm_id == vm.id else None
    return await measure_vm(vm.slot, pid, hypervisor.console(vm.slot, vm.id).parent)
