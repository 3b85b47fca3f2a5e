"""The objects that routes use, made once for each application."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from polydev.controller.auth.authentication import Authenticator
from polydev.controller.auth.csrf import BrowserRules
from polydev.controller.auth.jwks import Jwks
from polydev.controller.auth.jwt_reader import JwtReader
from polydev.controller.auth.rate_limits import RateLimiter, StreamLimit
from polydev.controller.auth.revocation_watch import TokenWatch
from polydev.controller.background_tasks import Background, Work
from polydev.controller.credential_encryption import keyring_of
from polydev.controller.database import create_engine
from polydev.controller.event_notifier import EventNotifier
from polydev.controller.health import Health
from polydev.controller.host.history_cache import HistoryCache
from polydev.controller.host.host_state import HostStateReader
from polydev.controller.host.image_providers import golden_providers, hands_over, rotates
from polydev.controller.host.processes import Processes
from polydev.controller.host.prometheus import HostCollector
from polydev.controller.host.sample_loop import SampleLoop
from polydev.controller.machines.agent_client import AgentClient
from polydev.controller.machines.console_stream import Consoles
from polydev.controller.machines.hypervisor import Hypervisor
from polydev.controller.machines.login_monitor import LoginStores
from polydev.controller.machines.metrics import MachineMetrics
from polydev.controller.machines.screenshots import Screenshots
from polydev.controller.machines.vm_driver import Driver
from polydev.controller.machines.vm_waker import VmWaker
from polydev.controller.metrics import Metrics
from polydev.controller.relay.viewers import Viewers
from polydev.controller.release_id import release_id
from polydev.controller.settings import ControllerSettings
from polydev.controller.store.alerts import Alerts
from polydev.controller.store.credential_handovers import CredentialHandovers
from polydev.controller.store.credential_injections import CredentialInjections
from polydev.controller.store.credential_log import CredentialLog
from polydev.controller.store.credentials import CredentialStore
from polydev.controller.store.host_samples import HostSamples
from polydev.controller.store.session_start_times import SessionStarts
from polydev.controller.store.sessions import Sessions
from polydev.controller.store.sign_ins import SignIns, Tickets
from polydev.controller.store.transactions import Database
from polydev.controller.store.usage import Usage
from polydev.controller.store.users import Tokens, Users
from polydev.controller.store.vm_slots import sync_slots
from polydev.controller.store.vms import Vms
from polydev.controller.store.webhook_log import WebhookLog
from polydev.controller.store.webhook_queue import WebhookQueue
from polydev.controller.webhook_signing import secrets_of
from polydev.controller.webhooks.deliveries import Deliveries
from polydev.providers import Provider


@dataclass(frozen=True)
class Services:
    """`hypervisor` and `driver` are None on a host without slots.

    request_limiter, start_limiter, credential_limiter   how often each caller may send
                       requests, start sessions, and use credentials
    stream_limit       how many streams each user may read at once
    token_watch        ends streams and viewers whose caller has lost access
    browser_rules      which requests our own pages send, and how browsers reach them
    consoles           the serial consoles that somebody follows
    waker              resumes paused VMs that somebody needs
    event_notifier     wakes those who follow sessions when any session has an event
    viewers            who looks at which session
    deliveries         sends webhooks in the background; `webhook_log` has all deliveries
    ending             set once the service stops: streams then end
    """

    settings: ControllerSettings
    database: Database
    users: Users
    tokens: Tokens
    sign_ins: SignIns
    tickets: Tickets
    sessions: Sessions
    vms: Vms
    credentials: CredentialStore
    credential_log: CredentialLog
    samples: HostSamples
    session_starts: SessionStarts
    processes: Processes
    host_state: HostStateReader
    usage: Usage
    history_cache: HistoryCache
    alerts: Alerts
    hypervisor: Hypervisor | None
    driver: Driver | None
    waker: VmWaker
    agent: AgentClient
    sample_loop: SampleLoop
    authenticator: Authenticator
    health: Health
    metrics: Metrics
    request_limiter: RateLimiter
    start_limiter: RateLimiter
    credential_limiter: RateLimiter
    stream_limit: StreamLimit
    token_watch: TokenWatch
    browser_rules: BrowserRules
    consoles: Consoles
    screenshots: Screenshots
    event_notifier: EventNotifier
    viewers: Viewers
    deliveries: Deliveries
    webhook_log: WebhookLog
    background: Background
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    def providers(self) -> Mapping[str, Provider]:
        """Return the providers of the golden image, by name: sessions can be started for these."""
        return golden_providers(self.settings.image_store)

    def begin(self) -> None:
        """Start the work in the background, once the server accepts connections."""
        self.background.begin()

    def rotates(self, provider: str) -> bool:
        """Whether its refresh tokens work once, so that only one session at a time may use them."""
        return rotates(self.settings.image_store, provider)

    def accepts_code(self, provider: str) -> bool:
        """Whether its tool accepts a code."""
        found = self.providers().get(provider)
        return found is not None and found.login.accepts_code

    async def end(self) -> None:
        """Stop leading, and end all streams. VMs keep running."""
        self.ending.set()
        self.event_notifier.notify()
        self.consoles.wake()
        await self.background.end()

    async def close(self) -> None:
        await self.end()
        await self.screenshots.close()
        await self.authenticator.close()
        await self.agent.close()
        await self.deliveries.close()
        if self.hypervisor is not None:
            await self.hypervisor.close()
        await self.database.close()


def build_services(settings: ControllerSettings, hypervisor: Hypervisor | None = None) -> Services:
    """Make all services. Nothing connects or runs yet."""
    started = time.monotonic()
    release = release_id(settings.release_file)
    database = Database(create_engine(settings.database_url))
    users, tokens, sign_ins = Users(database), Tokens(database), SignIns(database)
    sessions = Sessions(database, settings.session, quotas=settings.quotas)
    vms = Vms(database, settings.session)
    metrics = Metrics(release, started)
    agent = AgentClient(settings.vm_check.timeout_seconds)
    event_notifier = EventNotifier(sessions.latest_news_number)
    hypervisor = hypervisor or _hypervisor(settings)
    keys = keyring_of(settings.credentials_key)
    driver: Driver | None = None
    if hypervisor is not None:
        figures = MachineMetrics(metrics.registry)
        logins = LoginStores(
            agent,
            sessions,
            CredentialHandovers(database, keys, settings.login.complete_after_seconds),
            CredentialInjections(database, keys),
            lambda digest, name: hands_over(settings.image_store, digest, name),
            lambda name: rotates(settings.image_store, name),
        )
        driver = Driver(
            settings,
            vms,
            sessions,
            hypervisor,
            agent,
            logins,
            figures,
            on_step=event_notifier.notify,
        )

    def leads() -> bool:
        return driver is None or driver.leads

    sample_loop = SampleLoop(settings, database, vms, sessions, hypervisor, leads=leads)
    deliveries = _deliveries(settings, database, leads, metrics.registry)
    metrics.registry.register(HostCollector(sample_loop))
    alerts, samples = Alerts(database), HostSamples(database)
    session_starts = SessionStarts(database, settings.session)
    health = Health(database, settings.image_store, release, started)
    rate = settings.rate
    return Services(
        settings=settings,
        database=database,
        users=users,
        tokens=tokens,
        sign_ins=sign_ins,
        tickets=Tickets(database),
        sessions=sessions,
        vms=vms,
        credentials=CredentialStore(database, keys),
        credential_log=CredentialLog(database),
        samples=samples,
        session_starts=session_starts,
        processes=Processes(),
        history_cache=HistoryCache(samples, session_starts, settings.samples),
        host_state=HostStateReader(
            settings, sample_loop.host, alerts, health, vms, sessions, hypervisor
        ),
        alerts=alerts,
        usage=Usage(database, settings.quotas),
        hypervisor=hypervisor,
        driver=driver,
        waker=VmWaker(vms, event_notifier, driver.wake if driver else None),
        agent=agent,
        sample_loop=sample_loop,
        authenticator=_authenticator(settings, users, tokens, sign_ins),
        health=health,
        metrics=metrics,
        request_limiter=RateLimiter(rate.requests_per_second, rate.burst),
        start_limiter=RateLimiter(rate.starts_per_minute / 60, rate.starts_burst),
        credential_limiter=RateLimiter(rate.credentials_per_minute / 60, rate.credentials_burst),
        stream_limit=StreamLimit(rate.streams),
        browser_rules=BrowserRules(settings.web.public_url, settings.trusted_proxies),
        token_watch=TokenWatch(tokens, users, sign_ins),
        consoles=Consoles(vms),
        screenshots=Screenshots(),
        event_notifier=event_notifier,
        viewers=Viewers(sessions, event_notifier),
        deliveries=deliveries,
        webhook_log=WebhookLog(database),
        background=Background(_works(settings, database, driver, sample_loop, deliveries)),
    )


def _hypervisor(settings: ControllerSettings) -> Hypervisor | None:
    if not settings.slots:
        return None
    from polydev.controller.machines.systemd_hypervisor import (
        SystemdHypervisor,  # D-Bus is expensive to import
    )

    return SystemdHypervisor(settings)


def _authenticator(
    settings: ControllerSettings, users: Users, tokens: Tokens, sign_ins: SignIns
) -> Authenticator:
    rules = settings.identity
    keys = Jwks(rules.jwks_url) if rules.jwks_url else None
    rate = settings.rate
    failures = RateLimiter(rate.failures_per_minute / 60, rate.failures_burst)
    jwts = JwtReader(settings.jwt_secret, rules, keys)
    return Authenticator(users, tokens, sign_ins, jwts, failures, settings.trusted_proxies)


def _deliveries(
    settings: ControllerSettings,
    database: Database,
    leads: Callable[[], bool],
    registry: CollectorRegistry,
) -> Deliveries:
    secret = settings.webhook_secrets
    secrets = secrets_of(secret.get_secret_value()) if secret else {}
    store = WebhookQueue(database)
    return Deliveries(settings.webhooks, secrets, store, leads=leads, registry=registry)


def _works(
    settings: ControllerSettings,
    database: Database,
    driver: Driver | None,
    sample_loop: SampleLoop,
    deliveries: Deliveries,
) -> dict[str, Work]:
    async def declare_slots() -> None:
        declared = sync_slots(database, settings.slots, settings.vm_network)
        await database.uninterrupted(declared)

    # A work of its own: it may wait for VMs that the driver has to end.
    works: dict[str, Work] = {"slots": declare_slots, "sampler": sample_loop.run}
    works |= {"webhooks": deliveries.run}
    return works | ({"driver": driver.run} if driver else {})
