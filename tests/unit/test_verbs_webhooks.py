"""webhooks, webhook.resend, webhook.try: requests, output, exit status."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from invoke.context import Context

from polydev.client.controller_api import ControllerApi
from polydev.controller.api.webhooks import EXAMPLE
from tests.loopback import Answer, Asked, Served, as_json, served
from verbs import webhooks

ENDPOINT = {
    "name": "front-end",
    "url": "https://front.example.com/hook",
    "wantsMore": False,
    "waiting": 3,
    "failingSince": "2026-11-21T10:15:22Z",
    "failedLately": 1,
}
TRIAL = {"endpoint": "front-end", "status": 200, "said": "thanks", "seconds": 0.25}


@contextmanager
def reached(
    monkeypatch: pytest.MonkeyPatch, endpoints: list[dict[str, Any]], taken: bool = True
) -> Iterator[Served]:
    def controller(asked: Asked) -> Answer:
        if asked.path.endswith("/endpoints"):
            return as_json({"endpoints": endpoints})
        if asked.path.endswith("/try"):
            return as_json({**TRIAL, "taken": taken})
        if asked.path.endswith("/resend"):
            return as_json(EXAMPLE, 202)
        return as_json({"deliveries": [EXAMPLE] if endpoints else [], "next": None})

    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(webhooks, "connect", connect)
        yield server


@pytest.fixture
def out(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def test_webhooks_lists_deliveries_and_endpoints(
    monkeypatch: pytest.MonkeyPatch, out: Callable[[], str]
) -> None:
    with reached(monkeypatch, [ENDPOINT]) as server:
        webhooks.webhooks(Context(), failed=True, endpoint="front-end", limit=5)
        text = out()
        assert "answered 410: wants no more" in text
        assert "it answered 500: no database" in text
        asked = server.asked[-1].target
        assert asked.endswith("deliveries?limit=5&state=failed&endpoint=front-end")
        webhooks.webhooks(Context(), json=True)
        assert json.loads(out())["deliveries"][0]["id"] == EXAMPLE["id"]
    with reached(monkeypatch, []):
        webhooks.webhooks(Context())
    assert out() == "no endpoints are configured; docs/webhooks.md describes how\n\nno deliveries\n"


def test_resend_sends_a_delivery_again(
    monkeypatch: pytest.MonkeyPatch, out: Callable[[], str]
) -> None:
    with reached(monkeypatch, [ENDPOINT]) as server:
        webhooks.resend(Context(), "17")
    asked = server.asked[0]
    assert (asked.method, asked.path) == ("POST", "/api/admin/webhooks/deliveries/17/resend")
    assert out().startswith("session.ready goes to front-end again")


def test_resend_refuses_a_word_that_is_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        webhooks.resend(Context(), "front-end")
    assert ended.value.code == 1
    assert "front-end is not the number of a delivery" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["", "front-end", "https://front.example.com/hook?key=1"])
def test_try_accepts_an_endpoint_name_or_url(
    monkeypatch: pytest.MonkeyPatch, out: Callable[[], str], named: str
) -> None:
    for taken, status in ((True, 0), (False, 1)):
        with reached(monkeypatch, [ENDPOINT], taken) as server:
            with pytest.raises(SystemExit) as ended:
                webhooks.try_endpoints(Context(), named)
            assert ended.value.code == status
        assert server.asked[-1].path == "/api/admin/webhooks/endpoints/front-end/try"
        assert ("NOT TAKEN" in out()) is not taken


def test_unconfigured_endpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with reached(monkeypatch, [ENDPOINT]), pytest.raises(SystemExit) as ended:
        webhooks.try_endpoints(Context(), "https://other.example.com")
    assert ended.value.code == 1
    assert "the host has front-end" in capsys.readouterr().err
