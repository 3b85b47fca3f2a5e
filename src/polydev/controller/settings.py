"""The controller's settings: a YAML file, overridden by the environment, secrets by systemd.

Environment variables are POLYDEV_CONTROLLER_<KEY>, levels parted by two underscores. A secret is
a file in $CREDENTIALS_DIRECTORY (systemd's LoadCredential=) named like its key with hyphens:
`jwt_secret` is `jwt-secret`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from typing_extensions import Self

from polydev.controller.model import Role
from polydev.controller.webhook_events import EVENT_TYPES, EventType
from polydev.controller.webhook_urls import checked_url
from polydev.errors import ConfigError
from polydev.image_layout import STORE
from polydev.validation import dotted, near, problems_of
from polydev.yaml_files import load_yaml

ENVIRONMENT_PREFIX = "POLYDEV_CONTROLLER_"
# Fields that are secrets; a secret's file is called like its field, with hyphens.
SECRETS = (
    "alert_urls",
    "credentials_key",
    "database_url",
    "jwt_secret",
    "tls_certificate",
    "tls_key",
    "webhook_secrets",
)
MIN_JWT_SECRET_BYTES = 32  # RFC 7518, 3.2: as long as the hash of HS256
BYTE_ORDER_MARK = "\ufeff"
TRUE_WORDS = ("1", "true", "yes", "on")
# Ten years, and a century: beyond, points in time have no date.
MOST_SECONDS = 10 * 366 * 24 * 3600
MOST_DAYS = 36525
# A month's quota needs all of its days.
LEAST_USAGE_DAYS = 32
# A token that is off by more was not made for now.
MOST_LEEWAY_SECONDS = 3600
MOST_VM_MIB = 1024 * 1024
# The longest pause between two heartbeats of a session that has a viewer.
WATCHED_SECONDS = 10.0
# Of the critical value that a temperature sensor names: a warning is due above it.
WARM_PERCENT = 80.0
LEAST_PAUSE_SECONDS = 3 * WATCHED_SECONDS
# Anything shorter is done without a pause.
LEAST_SECONDS = 0.001
Seconds = Annotated[float, Field(ge=LEAST_SECONDS, le=MOST_SECONDS)]


class Environment(EnvSettingsSource):
    """Variables, whose errors name them. One whose key there is not would change nothing."""

    def __call__(self) -> dict[str, Any]:
        known = list(self.settings_cls.model_fields)
        for variable in os.environ:
            if variable.upper().startswith(ENVIRONMENT_PREFIX):
                name = variable[len(ENVIRONMENT_PREFIX) :].lower().partition("__")[0]
                if name not in known:
                    raise ConfigError(
                        f"the variable {variable}: there is no key {name}{near(name, known)}",
                        "docs/controller.md has every key",
                    )
        return super().__call__()

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            variable = ENVIRONMENT_PREFIX + field_name.upper()
            raise ConfigError(
                f"the variable {variable}: lists and groups of keys are written as JSON, which "
                "this is not",
                'such as [2, 3] or {"per_user": 4}; docs/controller.md has every key',
            ) from None


class CredentialsDirectory(PydanticBaseSettingsSource):
    """Secrets from the folder that systemd makes for the service."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(folder or ".", secret_name(field_name))
        try:
            value = file.read_bytes().decode().strip() if folder and file.is_file() else None
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"cannot be read: {why}", file=file) from None
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {
            name: self.get_field_value(self.settings_cls.model_fields[name], name)[0]
            for name in SECRETS
        }
        return {name: value for name, value in found.items() if value is not None}


def is_key_of_two(secret: bytes) -> bool:
    """Whether PyJWT takes it for the key of another algorithm, and so for no secret."""
    from jwt.utils import is_pem_format, is_ssh_key  # dear to import, and not always

    return is_pem_format(secret) or is_ssh_key(secret)


def wrong_case(key: object) -> str | None:
    """The key that is meant by one in other letters; pydantic-settings takes both for the same."""
    name = str(key).lower()
    return name if name in ControllerSettings.model_fields and name != key else None


def secret_name(field: str) -> str:
    """The name of the file of a secret."""
    return field.replace("_", "-")


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VmSettings(Group):
    """Every VM of this host: its sizes, and when it is paused. The cache is TCG's.

    pause_after_seconds     how long after its last viewer a VM is paused whose tool does not log
                            in; 0: never
    least_free_memory_mib   what the host's memory must have left for one more to start
    """

    cpus: int = Field(default=2, ge=1, le=64)
    memory_mib: int = Field(default=2048, ge=128, le=MOST_VM_MIB)
    translation_cache_mib: int = Field(default=1024, ge=32, le=MOST_VM_MIB)
    pause_after_seconds: float = Field(default=60, ge=0, le=MOST_SECONDS)
    least_free_memory_mib: int = Field(default=512, ge=0, le=MOST_VM_MIB)

    @field_validator("pause_after_seconds")
    @classmethod
    def _lets_a_viewer_be_noted(cls, seconds: float) -> float:
        if 0 < seconds < LEAST_PAUSE_SECONDS:
            raise ValueError(
                f"viewers are noted every {WATCHED_SECONDS:g} s: it must be 0 (never) or at least "
                f"{LEAST_PAUSE_SECONDS:g}"
            )
        return seconds


class PoolSettings(Group):
    """VMs that are resumed, run for a moment and paused before a session asks for one.

    size            how many of them wait; a host that resumes no VMs from templates has none
    spare_slots     slots that they leave free
    least_free_memory_mib   what the host's memory must have left; they end where it has less
    """

    size: int = Field(default=2, ge=0, le=253)
    spare_slots: int = Field(default=1, ge=0, le=253)
    least_free_memory_mib: int = Field(default=1024, ge=0, le=MOST_VM_MIB)


class BootDeadlines(Group):
    """By when each stage must be reached, in seconds since the one before it.

    On a busy machine it may take longer: what the VM waits for a CPU does not count.
    """

    kernel: Seconds = 60
    init: Seconds = 120
    network: Seconds = 120
    services: Seconds = 180
    ready: Seconds = 300


class SessionLimits(Group):
    """`idle_seconds` is the life after the last viewer or heartbeat; none outlives `max_seconds`.

    A heartbeat is live for `heartbeat_live_seconds`.
    """

    per_user: int = Field(default=2, ge=1)
    idle_seconds: Seconds = 300
    max_seconds: Seconds = 4 * 3600
    heartbeat_live_seconds: Seconds = 30


class Quota(Group):
    """What a user may use in a day or month of UTC before no further session starts; 0: no limit.

    Traffic is what their VMs receive and send.
    """

    vm_hours_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)
    vm_hours_per_month: float = Field(default=0, ge=0, le=MOST_SECONDS)
    cpu_hours_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)
    traffic_gib_per_day: float = Field(default=0, ge=0, le=MOST_SECONDS)


class Quotas(Quota):
    """The quota of everybody. What a role or a user names goes before, the user's first."""

    by_role: Mapping[Role, Quota] = Field(default_factory=dict)
    by_user: Mapping[UUID, Quota] = Field(default_factory=dict)

    def of(self, user_id: str, role: Role) -> Quota:
        """Return the quota of one user."""
        named: dict[str, float] = {}
        for each in (self, self.by_role.get(role), self.by_user.get(UUID(user_id))):
            if each is not None:
                named |= each.model_dump(exclude_unset=True, include=set(Quota.model_fields))
        return Quota(**named)

    @property
    def are_set(self) -> bool:
        """Whether anybody has a limit."""
        given = (self, *self.by_role.values(), *self.by_user.values())
        return any(getattr(each, name) for each in given for name in Quota.model_fields)


class LoginSettings(Group):
    """Logins of sessions' tools.

    complete_after_seconds  how long after its credentials were handed over a session is completed,
                            which destroys its VM; null: not by itself
    """

    complete_after_seconds: Annotated[float, Field(ge=0, le=MOST_SECONDS)] | None = 10


class VmChecks(Group):
    """How a VM that is up is watched."""

    every_seconds: Seconds = 10
    timeout_seconds: Seconds = 10
    failures: int = Field(default=3, ge=1)


class RateLimits(Group):
    """Requests that one caller may make, on average and at once; starts of sessions apart, and
    what is done with credentials, of which each leaves an entry in their log.

    `failures` are those of one address with tokens that are not taken.
    """

    requests_per_second: float = Field(default=50, gt=0)
    burst: int = Field(default=200, ge=1)
    starts_per_minute: float = Field(default=30, gt=0)
    starts_burst: int = Field(default=10, ge=1)
    credentials_per_minute: float = Field(default=60, gt=0)
    credentials_burst: int = Field(default=200, ge=1)
    streams: int = Field(default=32, ge=1)
    """Event streams and followed consoles that one user may read at once."""
    failures_per_minute: float = Field(default=30, gt=0)
    failures_burst: int = Field(default=20, ge=1)


class ConnectionLimits(Group):
    """What a connection may take before its request is complete, and to read its answer.

    header_seconds, body_seconds    by when the whole header, and then the whole body, must be there
    send_seconds                    by when a client must have read what was sent
    most                            connections that are open
    unfinished                      of those, the ones without a complete request
    unfinished_per_address          and those of one IPv4 address or network of IPv6
    """

    header_seconds: Seconds = 10
    body_seconds: Seconds = 60
    send_seconds: Seconds = 60
    most: int = Field(default=4096, ge=1)
    unfinished: int = Field(default=1024, ge=1)
    unfinished_per_address: int = Field(default=256, ge=1)


class JwtSettings(Group):
    """Whose JWTs are taken, besides those signed with `jwt_secret`."""

    jwks_url: str | None = Field(default=None, pattern="^https?://")
    audience: str | None = Field(default=None, min_length=1)
    issuer: str | None = Field(default=None, min_length=1)
    leeway_seconds: float = Field(default=10, ge=0, le=MOST_LEEWAY_SECONDS)

    @field_validator("jwks_url")
    @classmethod
    def _has_a_host(cls, url: str | None) -> str | None:
        try:
            parts = urlsplit(url or "https://none.example")
            is_readable = bool(parts.hostname) and parts.port != 0
            is_readable &= re.search(r"\s|[\x00-\x1f\x7f]", url or "") is None
        except ValueError:
            is_readable = False
        if not is_readable:
            raise ValueError("its host or port cannot be read")
        return url


class WebSettings(Group):
    """The pages.

    public_url        as users' browsers see it, where a proxy hides it: https://vms.example.com
    embed_origins     web pages that may show a session in a frame; none by default
    sign_in_seconds   how long a browser stays signed in
    ticket_seconds    by when a link that opens a page must be opened
    """

    public_url: str | None = None
    embed_origins: tuple[str, ...] = ()
    sign_in_seconds: Seconds = 12 * 3600
    ticket_seconds: Seconds = 300

    @field_validator("public_url")
    @classmethod
    def _is_an_origin(cls, url: str | None) -> str | None:
        return None if url is None else _checked_origins((url,))[0]

    @field_validator("embed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_origins(origins, "of one entry: ")


def _checked_origins(origins: tuple[str, ...], of: str = "") -> tuple[str, ...]:
    from polydev.controller.cors import checked_origin

    try:
        return tuple(checked_origin(each) for each in origins)
    except ValueError as error:
        raise ValueError(f"{of}{error}") from None


class Sampling(Group):
    """The host's figures: how often they are taken, and kept whole and thinned out."""

    every_seconds: Seconds = 10
    whole_seconds: Seconds = 3600
    thinned_every_seconds: Seconds = 60
    keep_seconds: Seconds = 24 * 3600


class AlertRules(Group):
    """Percent at which an alert is raised, and how far below it must come to be cleared.

    Those of the temperature are percent of the sensor's critical value, and are fixed.
    """

    warning_percent: float = Field(default=70, gt=0, le=100)
    critical_percent: float = Field(default=90, gt=0, le=100)
    hysteresis_percent: float = Field(default=5, ge=0)
    for_seconds: float = Field(default=30, ge=0, le=MOST_SECONDS)
    """How long a value must be above before it counts."""
    failed_boots: int = Field(default=3, ge=1)
    failed_boots_seconds: Seconds = 900

    @model_validator(mode="after")
    def _can_be_raised_and_cleared(self) -> Self:
        if self.warning_percent >= self.critical_percent:
            raise ValueError("warning_percent must be less than critical_percent")
        if self.hysteresis_percent >= min(self.warning_percent, WARM_PERCENT):
            raise ValueError(
                "hysteresis_percent must be less than warning_percent and less than "
                f"{WARM_PERCENT:g}, or no alert ends"
            )
        return self


class WebhookEndpoint(Group):
    """A receiver of webhooks.

    name     by which logs, alerts and verbs know it, and its lines of `webhook-secrets` begin
    events   what it is told of; null: of everything
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    url: str
    events: tuple[EventType, ...] | None = None

    @property
    def types(self) -> tuple[EventType, ...]:
        return EVENT_TYPES if self.events is None else self.events

    @field_validator("url")
    @classmethod
    def _is_reachable(cls, url: str) -> str:
        return checked_url(url)


class WebhookSettings(Group):
    """The endpoints that are told of sessions and credentials, and limits of their deliveries.

    timeout_seconds  for one attempt, all in all
    at_once          attempts at one endpoint at the same time, while it takes what it is sent
    most_waiting     deliveries that may wait for one endpoint; the oldest fail for later ones
    alert_seconds    an alert tells of deliveries that have been failing for so long
    keep_days        how long deliveries can be looked up and sent again
    """

    endpoints: tuple[WebhookEndpoint, ...] = Field(default=(), max_length=16)
    timeout_seconds: float = Field(default=20, ge=1, le=25)
    at_once: int = Field(default=4, ge=1, le=32)
    most_waiting: int = Field(default=10_000, ge=1, le=1_000_000)
    alert_seconds: Seconds = 3600
    keep_days: int = Field(default=30, ge=1, le=MOST_DAYS)

    @field_validator("endpoints")
    @classmethod
    def _have_names_of_their_own(
        cls, endpoints: tuple[WebhookEndpoint, ...]
    ) -> tuple[WebhookEndpoint, ...]:
        names = [each.name for each in endpoints]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} names two endpoints")
        return endpoints


class ControllerSettings(BaseSettings):
    """One frozen value. What is passed in stands for the file, so the environment overrides it."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    host: str = "127.0.0.1"
    """Where to listen if systemd hands over no socket; so is `port`."""
    port: int = Field(default=4000, ge=0, le=65535)
    database_url: str = Field(
        default="sqlite+aiosqlite:////var/lib/master-controller/controller.sqlite3",
        repr=False,  # may hold a password
    )
    image_store: Path = STORE
    release_file: Path | None = None
    """None: release.json in the folder that holds the venv."""
    drain_seconds: int = Field(default=30, ge=1, lt=60)
    """How long requests under way may take once the service is told to end; systemd kills what
    runs on after a minute."""
    keep_alive_seconds: int = Field(default=5, ge=1, le=MOST_SECONDS)
    """How long a connection may wait for its next request."""
    drain_keep_alive_seconds: float = Field(default=2, ge=0.1, lt=60)
    """The same, once the service is told to end."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    slots: tuple[Annotated[int, Field(ge=2, le=254)], ...] = ()
    """The slots that the host has, each once; without any, no session can be started."""
    vm_network: IPv4Network = IPv4Network("192.168.100.0/24")
    vm_root: Path = Path("/var/lib/microvm")
    vm: VmSettings = VmSettings()
    boots_at_once: int = Field(
        default_factory=lambda made: max(1, (os.cpu_count() or 1) // made["vm"].cpus), ge=1
    )
    """How many VMs may boot at the same time; others wait. By default what the cores can do:
    more would only make each of them late."""
    boot_deadline_seconds: BootDeadlines = BootDeadlines()
    templates: bool = True
    """Sessions' VMs are resumed from a template of the golden image; false: each boots."""
    pool: PoolSettings = PoolSettings()
    session: SessionLimits = SessionLimits()
    login: LoginSettings = LoginSettings()
    quotas: Quotas = Quotas()
    keep_usage_days: int = Field(default=400, ge=LEAST_USAGE_DAYS, le=MOST_DAYS)
    """How long it is known what each user used on each day."""
    keep_credential_events_days: int = Field(default=400, ge=1, le=MOST_DAYS)
    """How long it is known what was done with users' credentials."""
    vm_check: VmChecks = VmChecks()
    keep_failed_seconds: int = Field(default=24 * 3600, ge=0, le=MOST_SECONDS)
    """How long the logs of a VM that failed are kept."""
    keep_ended_days: int = Field(default=90, ge=0, le=MOST_DAYS)
    """How long sessions that are over are kept, with their VMs; 0: for ever."""
    debug_preserve_vms: bool = Field(
        default_factory=lambda: os.environ.get("DEBUG_PRESERVE_VMS", "").lower() in TRUE_WORDS
    )
    """Keep VMs that would be destroyed for failing; for debugging."""
    rate: RateLimits = RateLimits()
    connections: ConnectionLimits = ConnectionLimits()
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Whose word on where a request comes from is taken: addresses or networks of proxies."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser."""
    identity: JwtSettings = JwtSettings()
    web: WebSettings = WebSettings()
    samples: Sampling = Sampling()
    alert: AlertRules = AlertRules()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    jwt_secret: SecretStr | None = None
    """What HS256 tokens are signed with."""
    credentials_key: SecretStr | None = None
    """What users' credentials are sealed with: keys of 32 bytes in base64, one a line. The first
    seals, every one opens; without any, none are kept."""
    alert_urls: SecretStr | None = None
    """Apprise URLs to which alerts go, parted by blanks or lines; they hold secrets."""

    webhook_secrets: SecretStr | None = None
    """What webhooks are signed with: a line for each endpoint, its name and `whsec_…`. Of several
    lines of one name each signs."""
    webhooks: WebhookSettings = WebhookSettings()

    tls_key: SecretStr | None = None
    """The private key of `tls_certificate`, as PEM without a passphrase."""
    tls_certificate: SecretStr | None = Field(default=None, validate_default=True)
    """With it the controller serves HTTPS: the server's certificate and its authority's, as PEM."""

    @field_validator(*SECRETS, mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            if text.startswith(BYTE_ORDER_MARK):
                raise ValueError("it begins with a byte order mark: save it as plain UTF-8")
            if not text.strip():
                raise ValueError("it is empty")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _is_hard_to_guess(cls, secret: SecretStr | None) -> SecretStr | None:
        size = len(secret.get_secret_value().encode()) if secret else MIN_JWT_SECRET_BYTES
        if size < MIN_JWT_SECRET_BYTES:
            raise ValueError(
                f"it has {size} bytes, and tokens could be forged: at least {MIN_JWT_SECRET_BYTES} "
                "are needed (`openssl rand -base64 32` makes one)"
            )
        if secret and is_key_of_two(secret.get_secret_value().encode()):
            raise ValueError(
                "it is a public or private key, by which no HS256 token is signed "
                "(`openssl rand -base64 32` makes a secret; public keys come by identity.jwks_url)"
            )
        return secret

    @field_validator("credentials_key")
    @classmethod
    def _are_keys(cls, secret: SecretStr | None) -> SecretStr | None:
        from polydev.controller.sealing import SECRET_NAME, keyring_of

        try:
            keyring_of(secret)
        except ConfigError as error:
            words = error.message.removeprefix(f"the secret {SECRET_NAME} ")
            raise ValueError(f"{words} ({error.hint})") from None
        return secret

    @field_validator("tls_key")
    @classmethod
    def _is_private_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            from polydev.controller.tls import require_key  # dear to import, and not always

            require_key(secret.get_secret_value())
        return secret

    @field_validator("tls_certificate")
    @classmethod
    def _fits_its_key(
        cls, certificate: SecretStr | None, others: ValidationInfo
    ) -> SecretStr | None:
        if certificate is not None:
            from polydev.controller.tls import certificates_of  # dear to import, and not always

            certificates_of(certificate.get_secret_value())
        if "tls_key" not in others.data:  # wrong by itself, and told so
            return certificate
        key = others.data["tls_key"]
        if (certificate is None) != (key is None):
            raise ValueError("tls-certificate and tls-key are of use together only: name both")
        if certificate is not None:
            from polydev.controller.tls import require_fit

            require_fit(certificate.get_secret_value(), key.get_secret_value())
        return certificate

    @field_validator("alert_urls")
    @classmethod
    def _are_urls(cls, secret: SecretStr | None) -> SecretStr | None:
        for number, url in enumerate(secret.get_secret_value().split() if secret else (), 1):
            if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", url) is None:
                raise ValueError(f"address {number} is no URL of Apprise, such as mailto://…")
        return secret

    @field_validator("webhook_secrets")
    @classmethod
    def _are_secrets_of_endpoints(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            from polydev.controller.webhook_signing import secrets_of

            secrets_of(secret.get_secret_value())
        return secret

    @field_validator("webhooks")
    @classmethod
    def _have_secrets(cls, given: WebhookSettings, others: ValidationInfo) -> WebhookSettings:
        if not given.endpoints or "webhook_secrets" not in others.data:
            return given
        from polydev.controller.webhook_signing import HOW_TO_MAKE, secrets_of

        secret = others.data["webhook_secrets"]
        known = secrets_of(secret.get_secret_value()) if secret else {}
        for number, each in enumerate(given.endpoints):
            if each.name not in known:
                raise ValueError(
                    f"endpoints.{number}: the secret webhook-secrets has no line for {each.name} "
                    f"({HOW_TO_MAKE})"
                )
        return given

    @field_validator("slots")
    @classmethod
    def _is_there_once(cls, slots: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(slots)) < len(slots):
            raise ValueError("names a slot twice")
        return slots

    @field_validator("trusted_proxies")
    @classmethod
    def _are_not_everybody(
        cls, proxies: tuple[IPv4Network | IPv6Network, ...]
    ) -> tuple[IPv4Network | IPv6Network, ...]:
        for each in proxies:
            if each.prefixlen == 0:
                raise ValueError(f"{each} is everybody: anybody could say where a request is from")
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return _checked_origins(origins, "of one entry: ")

    @field_validator("database_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        from polydev.controller.database import checked_url  # dear to import, and not always

        return checked_url(url)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return Environment(settings_cls), CredentialsDirectory(settings_cls), init_settings


def load_settings(file: Path) -> ControllerSettings:
    """Read `file` and everything that overrides it. Raises ConfigError naming file and key."""
    values = load_yaml(file)
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError("must hold keys and values", file=file)
    for key in values:
        if meant := wrong_case(key):
            raise ConfigError(
                f"there is no such key; did you mean {meant}?", file=file, key=str(key)
            )
    try:
        return ControllerSettings(**values)
    except ValidationError as error:
        raise _config_error(file, error) from None  # pydantic's own text quotes the values


def _config_error(file: Path, error: ValidationError) -> ConfigError:
    first, *others = [
        (dotted(path), words) for path, words in problems_of(error, ControllerSettings)
    ]
    rest = "".join(f"; {key}: {message}" for key, message in others)
    places = [f"the secret {secret_name(first[0])}"] if first[0] in SECRETS else []
    places += ["the file", f"the variable {_variable_of(first[0])}"]
    return ConfigError(
        f"{first[1]}{rest}",
        f"correct {' or '.join(places)}",
        file=file,
        key=first[0],
    )


def _variable_of(key: str) -> str:
    """The variable that overrides a key; an item of a list has none but the list's."""
    names = takewhile(lambda part: not part.isdecimal(), key.split("."))
    return ENVIRONMENT_PREFIX + "__".join(names).upper()
