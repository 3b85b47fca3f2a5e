"""session.login: what it prints of a login that waits for its user, and of one that is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from invoke.context import Context

from polydev.client.api import ControllerApi
from polydev.controller.api.login import LOGIN_EXAMPLE
from tests.loopback import Answer, Asked, as_json, served
from verbs import sessions

SESSION = str(UUID(int=1))
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
def test_where_a_user_logs_in_and_with_which_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    login: dict[str, Any],
    said: str,
) -> None:
    def controller(asked: Asked) -> Answer:
        if asked.path.endswith("/oauth-url"):
            return as_json({**LOGIN_EXAMPLE, **login})
        return as_json({"sessions": [{"id": SESSION}], "next": None})

    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(sessions, "connect", connect)
        sessions.login(Context(), SESSION)
    assert capsys.readouterr().out == said
