"""open, health: links to a controller's pages, the browser, and the text of health."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from invoke.context import Context

from polydev.client.controller_api import ControllerApi
from polydev.client.open_in_browser import show_in_browser, sign_in_link
from tests.loopback import Answer, Asked, as_json, served
from verbs import open_and_health
from verbs.open_and_health import health_text

CODE = "CxEgbaMXQm2p5Xo4b0F2d0VJkq3b1sM7c9aZr8nT1yU"
SESSIONS = [{"id": "5b0c7a52-3f0e"}, {"id": "5b0c9999-3f0e"}]
FINDING = {
    "part": "disk",
    "subject": "/data",
    "status": "critical",
    "detail": "disk /data is at 95 %",
    "hint": "make room",
}


def controller(asked: Asked) -> Answer:
    if asked.method == "POST" and asked.path == "/api/auth/sign-in-link":
        return as_json({"url": f"/login#code={CODE}", "expiresAt": "2026-11-21T10:17:05Z"}, 201)
    assert asked.path == "/api/auth/sessions", asked
    return as_json({"sessions": SESSIONS, "next": None})


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[ControllerApi]:
    """The controller that the verbs ask."""
    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(open_and_health, "connect", connect)
        yield api


def opened(capsys: pytest.CaptureFixture[str], *words: str, **named: Any) -> Any:
    open_and_health.open_pages(Context(), *words, json=True, **named)
    return json.loads(capsys.readouterr().out)


def test_sign_in_link_has_its_code_in_the_fragment(reached: ControllerApi) -> None:
    link = sign_in_link(reached, "/session/ä b&c")
    before, _, code = link.url.partition("#")
    assert before == f"{reached.url}/login?next=/session/%C3%A4%20b%26c"
    assert code == f"code={CODE}"
    assert link.page == f"{reached.url}/session/ä b&c"


def test_open_gives_a_link_to_the_dashboard(
    reached: ControllerApi, capsys: pytest.CaptureFixture[str]
) -> None:
    found = opened(capsys)
    assert found == {
        "url": f"{reached.url}/login?next=/admin#code={CODE}",
        "page": f"{reached.url}/admin",
        "expiresAt": "2026-11-21T10:17:05Z",
        "opened": False,
    }


def test_open_finds_a_session_by_id_prefix(
    reached: ControllerApi, capsys: pytest.CaptureFixture[str]
) -> None:
    assert opened(capsys, "5b0c7")["page"] == f"{reached.url}/session/5b0c7a52-3f0e"
    with pytest.raises(SystemExit):
        open_and_health.open_pages(Context(), "5b0c", json=True)
    assert "matches 2 sessions" in capsys.readouterr().out


@pytest.mark.parametrize("has_display", [True, False])
def test_browser_is_opened_only_with_a_display(
    reached: ControllerApi,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_display: bool,
) -> None:
    shown: list[str] = []

    def show(url: str) -> bool:
        shown.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", show)
    environment = {"DISPLAY": ":0"} if has_display else {"DISPLAY": ""}
    assert show_in_browser("http://there", environment) == has_display
    monkeypatch.setattr("polydev.client.open_in_browser.show_in_browser", lambda url: bool(shown))
    open_and_health.open_pages(Context())
    said = capsys.readouterr().out
    assert said.startswith(f"{reached.url}/login?next=/admin#code=")
    assert ("opened in your browser" in said) == has_display
    assert "until 10:17:05 UTC" in said


@pytest.mark.parametrize(("status", "code"), [("healthy", 0), ("warning", 2), ("critical", 2)])
def test_exit_status_follows_the_health_of_the_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    findings = [] if status == "healthy" else [{**FINDING, "status": status}]
    overview = {"at": "2026-11-21T10:15:00Z", "status": status, "findings": findings}
    with served(lambda _: as_json(overview)) as server:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            with ControllerApi(server.url, "pdt_x") as api:
                yield api

        monkeypatch.setattr(open_and_health, "connect", connect)
        with pytest.raises(SystemExit) as ended:
            open_and_health.health(Context(), json=True)
        assert ended.value.code == code
        assert json.loads(capsys.readouterr().out) == overview
        assert [asked.path for asked in server.asked] == ["/api/admin/overview"]


def test_health_text_lists_findings() -> None:
    assert health_text({"status": "healthy", "findings": []}) == "the host is healthy"
    told = health_text({"status": "critical", "findings": [FINDING]})
    assert told.splitlines()[0] == "the host is critical"
    for words in ("disk /data", "disk /data is at 95 %", "make room"):
        assert words in told
