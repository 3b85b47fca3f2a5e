"""The paths of the agent and their answers. `server` has the sockets."""

from __future__ import annotations

from polydev import __version__
from polydev.agent.http_messages import HttpReply, HttpRequest, json_reply, problem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from polydev.agent.health import HealthChecks
    from polydev.agent.reply_types import IndexReply
    from polydev.agent.settings import AgentSettings

LOGIN = "/login/"
METHODS = ("GET", "HEAD")
PATHS = {
    "/": "this list",
    "/health": "200 when desktop, vnc, novnc and browser all work, else 503; says what fails",
    "/metrics": "the same and the machine's load, for Prometheus",
    "/login/{provider}": "how far a tool's login is; POST starts it",
    "/login/{provider}/code": "POST types a code into the tool's terminal",
    "/login/{provider}/credentials": "GET reads what the login gave, PUT injects it, DELETE wipes",
}


class Routes:
    """Answers requests, from any number of threads."""

    def __init__(self, health: HealthChecks, settings: AgentSettings) -> None:
        self._health = health
        self._settings = settings
        self._answers: dict[str, Callable[[], HttpReply]] = {
            "/": self._index,
            "/health": self._report,
            "/metrics": self._metrics,
        }

    def __call__(self, request: HttpRequest) -> HttpReply:
        if request.path.startswith(LOGIN):
            from polydev.agent.login_routes import answer_login

            return answer_login(request, request.path.removeprefix(LOGIN), self._settings)
        if request.method not in METHODS:
            detail = f"{request.method} is not allowed here"
            return problem(405, detail, {"Allow": ", ".join(METHODS)})
        answer = self._answers.get(request.path)
        if answer is None:
            return problem(404, f"there is no {request.path}; there are {', '.join(PATHS)}")
        return answer()

    def _index(self) -> HttpReply:
        index: IndexReply = {"name": "polydev-agent", "agent_version": __version__, "paths": PATHS}
        return json_reply(200, index)

    def _report(self) -> HttpReply:
        report = self._health.report()
        if report["status"] == "ready":
            return json_reply(200, report)
        note = f"{report['status']}, failing: {', '.join(report['failing'])}"
        return json_reply(503, report, note)

    def _metrics(self) -> HttpReply:
        from polydev.agent.metrics import CONTENT_TYPE, metrics_text

        try:
            return HttpReply(200, metrics_text(self._health.report(), self._settings), CONTENT_TYPE)
        except ImportError as error:
            return problem(503, f"metrics need python3-prometheus-client: {error}")
