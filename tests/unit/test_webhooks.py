"""Webhooks' pure parts: signatures, secrets, addresses, schedule, configuration."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import Webhook, WebhookVerificationError

from polydev.controller.check_config import problems
from polydev.controller.settings import ControllerSettings, WebhookSettings
from polydev.controller.webhook_signing import secrets_of, signed_headers
from polydev.controller.webhook_urls import MOST_URL_CHARACTERS, checked_url, shown_url
from polydev.controller.webhooks.retry_schedule import PAUSES_SECONDS, next_attempt

AT = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER = "whsec_" + base64.b64encode(KEY[::-1]).decode()
LONGEST_URL = "https://front.example.com/".ljust(MOST_URL_CHARACTERS, "a")
ENDPOINT = {"name": "front", "url": "https://front.example.com/hook"}


def test_signature_follows_the_standard_webhooks_scheme() -> None:
    """The example of the specification, computed by hand."""
    message, body = "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W", '{"type":"contact.created"}'
    headers = signed_headers([SECRET], message, AT, body)
    signed = f"{message}.{int(AT.timestamp())}.{body}".encode()
    expected = base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": message,
        "webhook-timestamp": "1795953600",
        "webhook-signature": f"v1,{expected}",
    }


def test_body_is_signed_with_each_secret() -> None:
    at = datetime.now(timezone.utc)
    headers = dict(signed_headers([SECRET, OTHER], "msg_1", at, "{}"))
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify("{}", headers) == {}
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify("{ }", headers)


def test_secrets_are_parsed_and_not_quoted_in_errors() -> None:
    text = f"# of us\nfront {SECRET}\n\naudit {OTHER}\nfront {OTHER}\n"
    assert secrets_of(text) == {"front": (SECRET, OTHER), "audit": (OTHER,)}
    for size in (24, 64):
        edge = "whsec_" + base64.b64encode(b"x" * size).decode()
        assert secrets_of(f"front {edge}") == {"front": (edge,)}
    short = "whsec_" + base64.b64encode(b"x" * 23).decode()
    for line, words in {
        "front": "line 2 is not a name and a secret",
        f"front {SECRET} more": "line 2 is not a name and a secret",
        f"front {SECRET.removeprefix('whsec_')}": "line 2: its secret does not begin with whsec_",
        f"front {SECRET}!": "line 2: its secret is not base64",
        f"front {short}": "line 2: its secret has 23 bytes instead of 24 to 64",
    }.items():
        with pytest.raises(ValueError, match=words) as refused:
            secrets_of(f"audit {OTHER}\n{line}")
        assert "AAEC" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        *("https://front.example.com/hook?key=1", "https://10.0.0.1:8443/", "https://[fd00::1]/x"),
        *("http://localhost:3000/x", "http://127.0.0.1/x", "http://192.168.7.7/x", "http://[::1]/"),
        *("http://169.254.1.1/", "http://[fe80::1]/", LONGEST_URL),
    ],
)
def test_allowed_webhook_urls(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://front.example.com/hook", "must begin with https://"),
        ("http://8.8.8.8/hook", "must begin with https://"),
        ("ftp://front.example.com", "must begin with https://"),
        ("front.example.com", "invalid host or port"),
        ("https://front.example.com:0/", "invalid host or port"),
        ("https://front..example.com/", "invalid host or port"),
        (f"https://{'a' * 64}.example.com/", "invalid host or port"),
        ("https://front.example.com\\evil/", "invalid host or port"),
        ("https://front.example.com/\udcff", "invalid host or port"),
        ("https://front.example.com:70000/", "invalid host or port"),
        ("https://front.example.com/a b", "invalid host or port"),
        ("https://ada:secret@front.example.com/", "user name or password"),
        ("https://front.example.com/#x", "fragment"),
        (f"{LONGEST_URL}a", "invalid host or port"),
    ],
)
def test_refused_webhook_urls(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        checked_url(url)
    assert "secret" not in str(refused.value)


def test_shown_url_has_no_query() -> None:
    assert shown_url("https://x.example.com:8443/a?token=1") == "https://x.example.com:8443/a"


def test_webhook_attempts_follow_the_schedule() -> None:
    dues = [next_attempt(number, AT, 0) for number in range(1, 11)]
    pauses = [(due - AT).total_seconds() for due in dues if due]
    assert (tuple(pauses), dues[-1]) == (PAUSES_SECONDS, None)
    # The specification's time from the first attempt to the last.
    assert sum(pauses) == timedelta(hours=75, minutes=35, seconds=5).total_seconds()


def test_jitter_and_retry_after_only_lengthen_a_pause() -> None:
    def pause(*given: Any) -> float:
        due = next_attempt(2, AT, *given)
        assert due is not None
        return (due - AT).total_seconds()

    assert (pause(0), pause(0.5), pause(1)) == (300, 330, 360)
    assert (pause(1, 10), pause(1, 1000), pause(0, 1e9)) == (360, 1000, 24 * 3600)


def plan(webhooks: Any, secret: str | None = f"front {SECRET}") -> list[str]:
    """Return the problems of a plan for these webhooks and secrets."""
    secrets = {} if secret is None else {"webhook-secrets": secret}
    found = problems({"config": {}, "given": {"webhooks": webhooks}, "secrets": secrets})
    return [f"{each['key']}: {each['message']}" for each in found]


def test_plan_checks_endpoints_and_secrets() -> None:
    assert plan({"endpoints": [ENDPOINT]}) == []
    assert plan({"endpoints": [{**ENDPOINT, "events": ["session.ready"]}]}) == []
    assert plan({"endpoints": []}, None) == []
    wrong: dict[str, Any] = {
        "controller.webhooks: endpoints.0: the secret webhook-secrets has no line for audit": {
            **ENDPOINT,
            "name": "audit",
        },
        "controller.webhooks.endpoints.0.url: must begin with https://": {
            **ENDPOINT,
            "url": "http://front.example.com",
        },
        "controller.webhooks.endpoints.0.events.0: ": {**ENDPOINT, "events": ["session.lost"]},
        "controller.webhooks.endpoints.0.name: ": {**ENDPOINT, "name": "Front end"},
    }
    for words, endpoint in wrong.items():
        (said,) = plan({"endpoints": [endpoint]})
        assert said.startswith(words), said
    (said,) = plan({"endpoints": [ENDPOINT, ENDPOINT]})
    assert said == "controller.webhooks.endpoints: two endpoints are named front"
    assert "no line for front" in plan({"endpoints": [ENDPOINT]}, None)[0]
    (said,) = plan({"endpoints": [ENDPOINT]}, f"front {SECRET[:20]}")
    assert said.startswith("secrets.webhook-secrets: line 1: its secret is not base64")
    assert SECRET[:20] not in said


def test_secrets_are_not_in_the_settings_repr() -> None:
    text = f"front {SECRET}"
    webhooks = WebhookSettings.model_validate({"endpoints": [ENDPOINT]})
    settings = ControllerSettings(webhook_secrets=SecretStr(text), webhooks=webhooks)
    assert SECRET not in repr(settings)
