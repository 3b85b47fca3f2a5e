"""Waiting for a login's URL: requests, progress messages, and the end."""

from __future__ import annotations

import pytest

from polydev.client.controller_api import ControllerApi, ControllerRefused
from polydev.client.session_login import ASK_SECONDS, wait_for_url
from tests.loopback import Answer, Asked, as_json, served

PATH = "/api/auth/session/5b0c/oauth-url"
LOGIN = {"sessionId": "5b0c", "provider": "codex", "url": None}


class Answers:
    """Gives each answer once, in order; remembers what was asked, said and slept."""

    def __init__(self, *statuses: str) -> None:
        self.left = list(statuses)
        self.asked: list[str] = []
        self.said: list[str] = []
        self.pauses: list[float] = []

    def __call__(self, request: Asked) -> Answer:
        self.asked.append(f"{request.method} {request.path}")
        status = self.left.pop(0)
        if status == "failed":
            return as_json({"detail": "the login of codex failed: no disk"}, 502)
        url = "https://auth.example/1" if status == "waiting" else None
        return as_json({**LOGIN, "status": status, "url": url}, 200 if url else 202)

    def wait(self, *, again: bool = False) -> dict[str, object]:
        with served(self) as server, ControllerApi(server.url, "t") as api:
            return wait_for_url(
                api, "5b0c", self.said.append, again=again, pause=self.pauses.append
            )


def test_each_login_state_is_printed_once_until_url_is_known() -> None:
    answers = Answers("vm_starting", "vm_starting", "starting", "starting", "waiting")
    assert answers.wait()["url"] == "https://auth.example/1"
    assert answers.said == ["the VM boots", "the tool starts"]
    assert answers.asked == [f"GET {PATH}"] * 5
    assert answers.pauses == [ASK_SECONDS] * 4


def test_again_option_starts_the_tool_once() -> None:
    answers = Answers("starting", "waiting")
    answers.wait(again=True)
    assert answers.asked == [f"POST {PATH}", f"GET {PATH}"]


def test_completed_login_returns_without_waiting() -> None:
    answers = Answers("done")
    assert answers.wait()["status"] == "done"
    assert answers.pauses == []


def test_failed_login_raises_with_tool_message() -> None:
    with pytest.raises(ControllerRefused, match="no disk"):
        Answers("starting", "failed").wait()
