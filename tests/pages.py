"""Pages without a browser: requests of signed-in browsers, and who may see which page."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from polydev.controller.auth.cookies import CSRF_HEADER, PLAIN_NAME, csrf_token
from tests.api import Served

BROWSER = {"Accept": "text/html,application/xhtml+xml"}
# The statuses for nobody, the user, another user, an operator and an admin.
Statuses = tuple[int, int, int, int, int]
VIEWERS = ("nobody", "user", "other user", "operator", "admin")
OPEN: Statuses = (200, 200, 200, 200, 200)
FOR_OPERATORS: Statuses = (303, 403, 403, 200, 200)
# Nobody is sent to sign in.
EACH_OWN: Statuses = (303, 200, 200, 200, 200)
THE_USERS: Statuses = (303, 200, 403, 200, 200)
NOT_THERE: Statuses = (303, 403, 403, 404, 404)
UNSAID: Statuses = (303, 403, 403, 422, 422)  # which other image is meant
SIGNED_OUT: Statuses = (401, 204, 204, 204, 204)
# A route and what it needs to be asked: see `test_web_pages`.
PAGES: Mapping[tuple[str, str], Statuses] = {
    ("GET", "/login"): OPEN,
    ("POST", "/login"): (401, 401, 401, 401, 401),
    ("GET", "/login/state"): OPEN,
    ("POST", "/login/code"): (401, 401, 401, 401, 401),
    ("POST", "/logout"): SIGNED_OUT,
    ("GET", "/"): EACH_OWN,
    ("GET", "/start/sessions"): EACH_OWN,
    ("GET", "/start/logins"): EACH_OWN,
    ("GET", "/start/log"): EACH_OWN,
    ("GET", "/session/{session_id}"): THE_USERS,
    ("GET", "/admin"): FOR_OPERATORS,
    ("GET", "/admin/live"): FOR_OPERATORS,
    ("GET", "/admin/charts.json"): FOR_OPERATORS,
    ("GET", "/favicon.ico"): (307, 307, 307, 307, 307),
    ("GET", "/static/{digest}/{name:path}"): OPEN,
    ("GET", "/admin/sessions"): FOR_OPERATORS,
    ("GET", "/admin/sessions/rows"): FOR_OPERATORS,
    ("GET", "/admin/vms/{vm_id}"): FOR_OPERATORS,
    ("GET", "/admin/vms/{vm_id}/summary"): FOR_OPERATORS,
    ("GET", "/admin/users"): FOR_OPERATORS,
    ("GET", "/admin/users/{user_id}"): FOR_OPERATORS,
    ("GET", "/admin/images"): FOR_OPERATORS,
    ("GET", "/admin/images/{digest}"): FOR_OPERATORS,
    ("GET", "/admin/images/{digest}/packages"): FOR_OPERATORS,
    ("GET", "/admin/images/{digest}/diff"): UNSAID,
    ("GET", "/admin/deployments"): FOR_OPERATORS,
    ("GET", "/admin/deployments/{deployment_id}"): NOT_THERE,
    ("GET", "/admin/alerts"): FOR_OPERATORS,
    ("GET", "/admin/alerts/rows"): FOR_OPERATORS,
}


class Browser:
    """A browser of one caller: it keeps its cookie, and sends what a page of ours would."""

    def __init__(self, asked: Served, cookie: str | None = None) -> None:
        self.asked = asked
        self.cookie = cookie

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **words: object
    ) -> httpx.Response:
        sent = {**BROWSER, **self._shown(method), **(headers or {})}
        answer = await self.asked.client.request(method, path, headers=sent, **words)  # type: ignore[arg-type]
        self.asked.client.cookies.clear()
        if PLAIN_NAME in answer.cookies:
            self.cookie = answer.cookies[PLAIN_NAME]
        return answer

    def _shown(self, method: str) -> dict[str, str]:
        if self.cookie is None:
            return {}
        shown = {"Cookie": f"{PLAIN_NAME}={self.cookie}"}
        return shown if method == "GET" else {**shown, CSRF_HEADER: csrf_token(self.cookie)}


async def browser(asked: Served, caller: str) -> Browser:
    """Signed in as a caller of `tests.api`; nobody is not signed in."""
    made = Browser(asked)
    token = asked.tokens[caller]
    if token is not None:
        answer = await made.ask("POST", "/login", data={"token": token})
        assert answer.status_code == 303, answer.text
        assert made.cookie is not None
    return made
