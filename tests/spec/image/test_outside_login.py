"""Logins of the CLI tools, over the agent's port.

They need no internet, since the tool makes the URL of its login. This file is the last one, since
it is the only one that changes its VM: by a browser tab and a process.
"""

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
# Starting gemini takes half a minute on an emulated CPU; codex is like claude.
TOOL, ITS_HOSTS = "claude", ("claude.com", "claude.ai", "anthropic.com")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_login_runs_before_a_request(guest: Ports, provider: str) -> None:
    answer = http_client.get(f"{guest.agent_url}/login/{provider}")
    asked = f"the agent answers {answer.status_code} about the login of {provider}: {answer.text}"
    assert answer.status_code == 200, asked
    assert (answer.json().get("provider"), answer.json().get("status")) == (provider, "none"), asked
    credentials = http_client.get(f"{guest.agent_url}/login/{provider}/credentials")
    assert credentials.status_code == 404, (
        f"the agent answers {credentials.status_code}, not 404, about credentials of {provider} "
        "before any login"
    )


def test_login_reaches_its_page(guest: Ports) -> None:
    with HttpSession(f"{guest.agent_url}/login/{TOOL}", timeout_seconds=60) as session:
        body = session.post("").json()
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not _is_settled(body):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{TOOL} has no login page after {TIMEOUT_SECONDS:g} s: {body}")
            time.sleep(POLL_SECONDS)  # each answer costs the emulated guest something
            body = session.get("").json()
    assert body["status"] == "waiting", f"the login of {TOOL} is {body['status']}: {body['detail']}"
    assert body["detail"] == "", f"the browser does not show the login page: {body['detail']}"
    page = urlsplit(body["url"])
    assert page.scheme == "https", f"the login page of {TOOL} is not an https URL: {body['url']}"
    host = page.hostname or ""
    is_known = any(host == its or host.endswith(f".{its}") for its in ITS_HOSTS)
    assert is_known, f"the login page of {TOOL} is on {host}, none of {', '.join(ITS_HOSTS)}"


def _is_settled(body: dict[str, str]) -> bool:
    """Return whether the tool has ended, or the browser shows its page."""
    return body["status"] in ("done", "failed") or (
        body["status"] == "waiting" and not body["detail"]
    )
