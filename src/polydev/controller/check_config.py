"""Check a configuration before a host gets it: `master-controller check-config`.

A deployment runs this on the operator's machine, from the sources that it is going to deploy. It
applies the rules of `ControllerSettings`, and has Apprise read the alert addresses. Environment
variables and the operator's own secrets are ignored.

JSON in:  config   keys that the deployment sets itself
          given    the keys of the inventory's `controller`
          secrets  name and text of each of the inventory's `secrets`
JSON out: problems, each with a key of the inventory and a message
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from polydev.controller.settings import SECRETS, ControllerSettings, secret_name, wrong_case
from polydev.validation import HIGHEST_PORT, dotted, near, problems_of


class Candidate(ControllerSettings):
    """Settings from the passed values only."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: Any,
        **__: Any,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def problems(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the problems of a configuration; an empty list if it is valid."""
    config, given, secrets = (dict(document[key]) for key in ("config", "given", "secrets"))
    found = [*_misplaced(given), *_unknown(secrets)]
    wrong = {key for key, _ in found}
    fields = {name.replace("-", "_"): text.strip() for name, text in secrets.items()}
    kept = {name: text for name, text in fields.items() if name in SECRETS}
    sound = {key: value for key, value in given.items() if f"controller.{key}" not in wrong}
    try:
        Candidate(**{**config, **sound, **kept})
    except ValidationError as error:
        found += [
            (_path(dotted(path), kept), words)
            for path, words in problems_of(error, ControllerSettings)
        ]
    except TypeError:
        found.append(("controller", "its keys must be text"))
    addresses = kept.get("alert_urls", "").split()
    if addresses and "secrets.alert-urls" not in {key for key, _ in found}:
        found += _unusable_alert_urls(addresses)
    if "tls_certificate" in kept and "secrets.tls-certificate" not in {key for key, _ in found}:
        found += _no_browser_takes(kept["tls_certificate"])
    return [{"key": key, "message": words} for key, words in found]


def _unusable_alert_urls(addresses: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield alert addresses that Apprise cannot use. The service's start has no time for this."""
    from polydev.controller.host.alert_sender import apprise_of

    for number, url in enumerate(addresses, 1):
        service = apprise_of(url)
        if service is None:
            yield "secrets.alert-urls", f"address {number} is not of a service that Apprise knows"
        elif any(each.port is not None and not 0 < each.port <= HIGHEST_PORT for each in service):
            words = f"address {number} has a port that is not from 1 to {HIGHEST_PORT}"
            yield "secrets.alert-urls", words


def _no_browser_takes(certificate: str) -> Iterator[tuple[str, str]]:
    """Yield a certificate that is not valid now. The service would start with it and warn."""
    from polydev.controller.tls import trouble_now

    if trouble := trouble_now(certificate, datetime.now(timezone.utc)):
        yield "secrets.tls-certificate", f"{trouble}: browsers refuse it"


def _misplaced(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in given:
        if meant := wrong_case(key):
            yield f"controller.{key}", f"there is no such key; did you mean {meant}?"
        elif key in SECRETS:
            yield f"controller.{key}", f"is a secret: give it as a file named `{secret_name(key)}`"


def _unknown(secrets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    known = [secret_name(field) for field in SECRETS]
    for name in secrets:
        if name not in known:
            words = f"unknown secret{near(name, known)}"
            yield f"secrets.{name}", f"{words}; known secrets are {', '.join(known)}"


def _path(key: str, secrets: Mapping[str, str]) -> str:
    is_secret = key in secrets or key in ("tls_certificate", "tls_key")
    return f"secrets.{secret_name(key)}" if is_secret else f"controller.{key}"
