"""The top level of the settings."""

from __future__ import annotations

import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from polydev.controller.settings import secrets
from polydev.controller.settings.alert_thresholds import AlertSettings
from polydev.controller.settings.jwt_and_web_pages import JwtSettings, WebSettings, checked_origins
from polydev.controller.settings.limits import ConnectionLimits, Quotas, RateLimits
from polydev.controller.settings.sampling import Sampling
from polydev.controller.settings.sessions import LoginSettings, SessionLimits
from polydev.controller.settings.shared_types import MOST_DAYS, MOST_SECONDS, Network
from polydev.controller.settings.sources import (
    ENVIRONMENT_PREFIX,
    SECRETS,
    CredentialsDirectory,
    EnvironmentVariables,
)
from polydev.controller.settings.vms import BootDeadlines, PoolSettings, VmChecks, VmSettings
from polydev.controller.settings.webhooks import WebhookSettings
from polydev.host_layout import CONTROLLER_DATABASE, CONTROLLER_PORT
from polydev.image_layout import STORE
from polydev.validation import Ipv4Network, NamedPath, no_flag

TRUE_WORDS = ("1", "true", "yes", "on")
# A month's quota needs all of its days.
LEAST_USAGE_DAYS = 32
Networks = tuple[Network, ...]
# The only keys that may be true or false.
FLAGS = ("templates", "debug_preserve_vms")


class ControllerSettings(BaseSettings):
    """All settings, frozen. Values that are passed in stand for the file: variables override them.

    Fields are validated in their order, so a secret stands before what must fit it.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )

    host: str = "127.0.0.1"
    """The address to listen on, with `port`, if systemd hands over no socket."""
    port: int = Field(default=CONTROLLER_PORT, ge=0, le=65535)
    database_url: str = Field(
        default=f"sqlite+aiosqlite:///{CONTROLLER_DATABASE}",
        repr=False,  # may hold a password
    )
    image_store: NamedPath = STORE
    release_file: NamedPath | None = None
    """None: release.json in the folder that holds the venv."""
    drain_seconds: int = Field(default=30, ge=1, lt=60)
    """How long requests may take once the service is stopped; systemd kills it after a minute."""
    keep_alive_seconds: int = Field(default=5, ge=1, le=MOST_SECONDS)
    """How long a connection may wait for its next request."""
    drain_keep_alive_seconds: float = Field(default=2, ge=0.1, lt=60)
    """The same, once the service is stopped."""
    max_body_bytes: int = Field(default=1024 * 1024, ge=1)
    slots: tuple[Annotated[int, Field(ge=2, le=254)], ...] = ()
    """The host's slots; without any, no session can be started."""
    vm_network: Ipv4Network = IPv4Network("192.168.100.0/24")
    vm_root: NamedPath = Path("/var/lib/microvm")
    vm: VmSettings = VmSettings()
    boots_at_once: int = Field(
        default_factory=lambda made: max(1, (os.cpu_count() or 1) // made["vm"].cpus), ge=1
    )
    """How many VMs may boot at the same time; others wait. By default as many as the cores can
    boot without slowing each other down."""
    boot_deadline_seconds: BootDeadlines = BootDeadlines()
    templates: bool = True
    """Resume VMs of sessions from a template of the golden image; false: each boots."""
    pool: PoolSettings = PoolSettings()
    session: SessionLimits = SessionLimits()
    login: LoginSettings = LoginSettings()
    quotas: Quotas = Quotas()
    keep_usage_days: int = Field(default=400, ge=LEAST_USAGE_DAYS, le=MOST_DAYS)
    """How long the usage of each user and day is kept."""
    keep_credential_events_days: int = Field(default=400, ge=1, le=MOST_DAYS)
    """How long the log of users' credentials is kept."""
    vm_check: VmChecks = VmChecks()
    keep_failed_seconds: int = Field(default=24 * 3600, ge=0, le=MOST_SECONDS)
    """How long the logs of a VM that failed are kept."""
    keep_ended_days: int = Field(default=90, ge=0, le=MOST_DAYS)
    """How long sessions that are over are kept, with their VMs; 0: for ever."""
    debug_preserve_vms: bool = Field(
        default_factory=lambda: os.environ.get("DEBUG_PRESERVE_VMS", "").lower() in TRUE_WORDS
    )
    """Keep VMs that failed instead of destroying them; for debugging."""
    rate: RateLimits = RateLimits()
    connections: ConnectionLimits = ConnectionLimits()
    trusted_proxies: Networks = ()
    """Addresses or networks of proxies whose X-Forwarded-For headers are believed."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser."""
    identity: JwtSettings = JwtSettings()
    web: WebSettings = WebSettings()
    samples: Sampling = Sampling()
    alert: AlertSettings = AlertSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    jwt_secret: SecretStr | None = None
    """The secret that HS256 tokens are signed with."""
    credentials_key: SecretStr | None = None
    """Keys of 32 bytes in base64, one a line, that users' credentials are encrypted with. The first
    encrypts, all of them decrypt; without any, no credentials are stored."""
    alert_urls: SecretStr | None = None
    """Apprise URLs that alerts are sent to, separated by blanks or lines."""
    webhook_secrets: SecretStr | None = None
    """Secrets that webhooks are signed with: lines of an endpoint's name and `whsec_…`. Each of
    several lines of one name signs."""
    webhooks: WebhookSettings = WebhookSettings()
    tls_key: SecretStr | None = None
    """The private key of `tls_certificate`, as PEM without a passphrase."""
    tls_certificate: SecretStr | None = Field(default=None, validate_default=True)
    """The server's certificate and those of its authority, as PEM. With it the controller serves
    HTTPS."""

    @field_validator("*", mode="before")
    @classmethod
    def _check_flags(cls, value: Any, field: ValidationInfo) -> Any:
        return value if field.field_name in FLAGS else no_flag(value)

    @field_validator(*SECRETS, mode="before")
    @classmethod
    def _check_secret(cls, value: Any) -> Any:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            secrets.check_is_text(text)
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _check_jwt_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secrets.check_jwt_secret(secret.get_secret_value())
        return secret

    @field_validator("credentials_key")
    @classmethod
    def _check_credentials_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secrets.check_credentials_key(secret)
        return secret

    @field_validator("tls_key")
    @classmethod
    def _check_tls_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secrets.check_tls_key(secret.get_secret_value())
        return secret

    @field_validator("tls_certificate")
    @classmethod
    def _check_tls_certificate(
        cls, certificate: SecretStr | None, others: ValidationInfo
    ) -> SecretStr | None:
        if certificate is not None:
            secrets.check_tls_certificate(certificate.get_secret_value())
        if "tls_key" not in others.data:  # its own error is reported already
            return certificate
        key = others.data["tls_key"]
        if (certificate is None) != (key is None):
            raise ValueError("tls-certificate and tls-key must both be given, or neither")
        if certificate is not None:
            secrets.check_tls_pair(certificate.get_secret_value(), key.get_secret_value())
        return certificate

    @field_validator("alert_urls")
    @classmethod
    def _check_alert_urls(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secrets.check_alert_urls(secret.get_secret_value())
        return secret

    @field_validator("webhook_secrets")
    @classmethod
    def _check_webhook_secrets(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secrets.check_webhook_secrets(secret.get_secret_value())
        return secret

    @field_validator("webhooks")
    @classmethod
    def _check_webhooks(cls, given: WebhookSettings, others: ValidationInfo) -> WebhookSettings:
        if given.endpoints and "webhook_secrets" in others.data:
            secret = others.data["webhook_secrets"]
            names = [each.name for each in given.endpoints]
            secrets.check_endpoints_have_secrets(names, secret.get_secret_value() if secret else "")
        return given

    @field_validator("slots")
    @classmethod
    def _check_slots(cls, slots: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(slots)) < len(slots):
            raise ValueError("names a slot twice")
        return slots

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, proxies: Networks) -> Networks:
        for each in proxies:
            if each.prefixlen == 0:
                raise ValueError(
                    f"{each} trusts everybody: any client could forge the address it comes from"
                )
        return proxies

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        return checked_origins(origins)

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, url: str) -> str:
        from polydev.controller.database import checked_url  # expensive, and not always needed

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
        return EnvironmentVariables(settings_cls), CredentialsDirectory(settings_cls), init_settings


def wrong_case(key: object) -> str | None:
    """Return the key that one in other letters means; pydantic-settings takes both for the same."""
    name = str(key).lower()
    return name if name in ControllerSettings.model_fields and name != key else None
