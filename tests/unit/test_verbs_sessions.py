"""Verbs of sessions: their requests to the controller, and their output."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from invoke.context import Context

from polydev.client.controller_api import ControllerApi
from polydev.controller.api.login import LOGIN_EXAMPLE
from tests.loopback import Answer, Asked, as_json, served
from verbs import sessions

SESSION, USER = str(UUID(int=1)), str(UUID(int=2))
URL = "https://github.com/login/device"


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ({"url": URL}, f"{URL}\n"),
        ({"url": URL, "deviceCode": "ABCD-1234"}, f"{URL}\ncode to enter: ABCD-1234\n"),
        ({"url": None, "deviceCode": "ABCD-1234"}, "code to enter: ABCD-1234\n"),
        ({"url": None, "status": "done"}, "claude is logged in\n"),
    ],
)
def test_login_shows_url_and_device_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    login: dict[str, Any],
    said: str,
) -> None:
    def controller(asked: Asked) -> Answer:
        if asked.path.endswith("/oauth-url"):
            return as_json({**LOGIN_EXAMPLE, **login})
        return as_json({"sessions": [{"id": SESSION}], "next": None})

    with connected(monkeypatch, controller):
        sessions.login(Context(), SESSION)
    assert capsys.readouterr().out == said


def test_give_code_reads_the_code_from_stdin(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = []

    def controller(asked: Asked) -> Answer:
        if asked.path == f"/api/auth/session/{SESSION}/oauth-code":
            typed.append(json.loads(asked.body))
            return as_json({})
        return as_json({"sessions": [{"id": SESSION}], "next": None})

    monkeypatch.setattr("sys.stdin", io.StringIO("ABC#state\nmore\n"))
    with connected(monkeypatch, controller):
        sessions.give_code(Context(), SESSION[:8])
    assert typed == [{"code": "ABC#state"}]
    assert f"./inv session.login {SESSION[:8]}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wishes"),
    [
        ({}, {}),
        ({"stored": True}, {"useStoredCredentials": True}),
        ({"recipient": "age1abc"}, {"credentialsRecipient": "age1abc"}),
    ],
)
def test_start_passes_its_options_to_the_api(
    monkeypatch: pytest.MonkeyPatch, words: dict[str, Any], wishes: dict[str, Any]
) -> None:
    started = []

    def controller(asked: Asked) -> Answer:
        started.append(json.loads(asked.body))
        return as_json({"id": SESSION, "status": "vm_creating"})

    with connected(monkeypatch, controller):
        sessions.start_session(Context(), user=USER, provider="codex", **words)
    assert started == [{"userId": USER, "provider": "codex", **wishes}]


@contextmanager
def connected(
    monkeypatch: pytest.MonkeyPatch, controller: Callable[[Asked], Answer]
) -> Iterator[None]:
    """Connect the verbs to this controller."""
    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(sessions, "connect", connect)
        yield
