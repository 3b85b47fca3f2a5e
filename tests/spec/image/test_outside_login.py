"""Logins of the CLI tools, over the agent's port. Needs no internet: a login's URL is made by
the tool. The only spec that changes its VM, by a tab and a process more, and so the last."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

import pytest

from polydev import http_client
from polydev.http_client import HttpSession
from polydev.vm.config import Ports

pytestmark = pytest.mark.outside

PROVIDERS = ("claude", "codex", "gemini")
TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.5
# gemini's start takes an emulated CPU half a minute, codex' is like claude's.
TOOL, ITS_HOSTS = "claude", ("claude.com", "claude.ai", "anthropic.com")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_login_is_under_way_unasked(guest: Ports, provider: str) -> None:
    answer = http_client.get(f"{guest.agent_url}/login/{provider}")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["provider"], answer.json()["status"]) == (provider, "none")
    credentials = http_client.get(f"{guest.agent_url}/login/{provider}/credentials")
    assert credentials.status_code == 404, credentials.text


def test_a_login_comes_to_its_page(guest: Ports) -> None:
    with HttpSession(f"{guest.agent_url}/login/{TOOL}", timeout_seconds=60) as session:
        body = session.post("").json()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not _is_settled(body):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{TOOL} after {TIMEOUT_SECONDS:g} s: {body}")
            time.sleep(POLL_SECONDS)  # each answer costs the emulated guest something
            body = session.get("", timeout=20).json()
    assert body["status"] == "waiting", f"{TOOL}: {body}"
    assert body["detail"] == "", "the browser does not show the page"
    page = urlsplit(body["url"])
    assert page.scheme == "https"
    host = page.hostname or ""
    assert any(host == its or host.endswith(f".{its}") for its in ITS_HOSTS), page.hostname


def _is_settled(body: dict[str, str]) -> bool:
    """Has the tool ended, or its page been shown? A browser that does not take it is a detail."""
    return body["status"] in ("done", "failed") or (
        body["status"] == "waiting" and not body["detail"]
    )
