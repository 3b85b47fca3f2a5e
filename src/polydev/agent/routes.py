"""What the agent answers to which path. Sockets are `server`'s business."""

from __future__ import annotations

from polydev import __version__
from polydev.agent.http import ACTING_METHODS, METHODS, Reply, Request, problem
from polydev.agent.jsontext import json_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.health import Health
    from polydev.agent.messages import IndexReply
    from polydev.agent.settings import Settings

LOGIN = "/login/"
PATHS = {
    "/": "this list",
    "/health": "200 when desktop, vnc, novnc and browser all work, else 503; says what fails",
    "/metrics": "the same and the machine's load, for Prometheus",
    "/login/{provider}": "how far a tool's login is; POST starts it",
}


class Routes:
    """Answers requests; safe to be called from many threads."""

    def __init__(self, health: Health, settings: Settings) -> None:
        self._health = health
        self._settings = settings
        self._answers: dict[str, Callable[[], Reply]] = {
            "/": self._index,
            "/health": self._report,
            "/metrics": self._metrics,
        }

    def __call__(self, request: Request) -> Reply:
        is_login = request.path.startswith(LOGIN)
        methods = ACTING_METHODS if is_login else METHODS
        if request.method not in methods:
            allow = ", ".join(methods)
            return problem(405, f"{request.method} is not allowed here", {"Allow": allow})
        if is_login:
            return self._login(request)
        answer = self._answers.get(request.path)
        if answer is None:
            return problem(404, f"there is no {request.path}; there are {', '.join(PATHS)}")
        return answer()

    def _index(self) -> Reply:
        index: IndexReply = {"name": "polydev-agent", "agent_version": __version__, "paths": PATHS}
        return Reply(200, json_text(index))

    def _report(self) -> Reply:
        report = self._health.report()
        if report["status"] == "ready":
            return Reply(200, json_text(report))
        note = f"{report['status']}, failing: {', '.join(report['failing'])}"
        return Reply(503, json_text(report), note=note)

    def _login(self, request: Request) -> Reply:
        from polydev.agent.login import current_login, start_login
        from polydev.agent.login_state import PROVIDERS

        provider = request.path.removeprefix(LOGIN)
        if provider not in PROVIDERS:
            return problem(
                404, f"there is no login of {provider}; there are {', '.join(PROVIDERS)}"
            )
        answer = start_login if request.method == "POST" else current_login
        return Reply(200, json_text(answer(provider, self._settings)))

    def _metrics(self) -> Reply:
        from polydev.agent.metrics import CONTENT_TYPE, metrics_text

        try:
            return Reply(200, metrics_text(self._health.report(), self._settings), CONTENT_TYPE)
        except ImportError as error:
            return problem(503, f"metrics need python3-prometheus-client: {error}")
