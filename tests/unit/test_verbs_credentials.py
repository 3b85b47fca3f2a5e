"""credentials.log: the log of a user's credentials."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from invoke.context import Context

from polydev.client.controller_api import ControllerApi
from polydev.controller.api.credential_log import EXAMPLE
from tests.loopback import Answer, Asked, as_json, served
from verbs import credentials


def controller(asked: Asked) -> Answer:
    assert asked.target == "/api/auth/credentials/log?limit=200", asked
    by_user = {**EXAMPLE, "kind": "read", "by": "token", "actorId": EXAMPLE["userId"]}
    return as_json({"events": [EXAMPLE, by_user], "next": None})


@pytest.fixture
def _reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(credentials, "connect", connect)
        yield


@pytest.mark.usefixtures("_reached")
def test_log_shows_event_and_caller(capsys: pytest.CaptureFixture[str]) -> None:
    credentials.show_log(Context(), limit=1000)
    _columns, handed_over, read = capsys.readouterr().out.splitlines()
    assert "handed over" in handed_over
    assert "controller" in handed_over
    assert "0f9f6a0e" in read
