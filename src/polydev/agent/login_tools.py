"""The tools that log in: how each is started, and what its output means. Pure.

All of them listen on loopback for the browser's return, so that the URL that they want opened,
shown in the VM's own browser, is enough: nothing has to be pasted. claude prints another URL,
whose page shows a code to paste; that one only counts where no browser was asked for.
"""

from __future__ import annotations

import json

from polydev.agent.login_state import is_login_url
from polydev.agent.terminal import last_lines, urls_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from polydev.agent.messages import LoginStatus

TAIL_LINES = 12
# Every OAuth request names its client; pages of help and local servers do not.
OAUTH_MARK = "client_id="


class Tool:
    """A program that logs in, ending with status 0 when it has.

    With `requests` it is spoken to in JSON-RPC on its standard input instead, a line each, and
    the answer to the last one says how the login ended; end of input then ends the tool.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        environment: Mapping[str, str] | None = None,
        requests: tuple[Mapping[str, object], ...] = (),
    ) -> None:
        self.argv = argv
        self.environment = environment or {}
        self.requests = requests

    def input(self) -> bytes:
        """What the tool is told; numbered by place."""
        numbered = [{"jsonrpc": "2.0", "id": at, **ask} for at, ask in enumerate(self.requests)]
        return b"".join(json.dumps(request).encode() + b"\n" for request in numbered)


# gemini has no command that logs in, and its screen asks about folders and consent first. As an
# editor's agent (Agent Client Protocol) it logs in when told to, and says when it has.
TOOLS = {
    "claude": Tool(("claude", "auth", "login")),
    "codex": Tool(("codex", "login")),
    "gemini": Tool(
        ("gemini", "--acp"),
        # Else it starts itself a second time, for more memory than a login needs.
        {"GEMINI_CLI_NO_RELAUNCH": "true"},
        (
            {"method": "initialize", "params": {"protocolVersion": 1, "clientCapabilities": {}}},
            {"method": "authenticate", "params": {"methodId": "oauth-personal"}},
        ),
    ),
}


def printed_url(written: str) -> str | None:
    """The first URL among what a tool wrote that is a request to log in."""
    urls = urls_written(written)
    return next((url for url in urls if OAUTH_MARK in url and is_login_url(url)), None)


def answer_to(tool: Tool, written: str) -> tuple[LoginStatus, str] | None:
    """How the login ended, by the answer to the last request; None before there is one."""
    for line in written.splitlines():
        if not line.startswith("{"):
            continue
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if answer.get("id") == len(tool.requests) - 1 and "error" in answer:
            return "failed", f"{tool.argv[0]} could not log in: {_words(answer['error'])}"
        if answer.get("id") == len(tool.requests) - 1 and "result" in answer:
            return "done", ""
    return None


def end_of(tool: Tool, exit_code: int, written: str) -> tuple[LoginStatus, str]:
    """How the login ended, by the tool's end; a negative exit code is a signal's number."""
    if exit_code == 0 and not tool.requests:
        return "done", ""
    how = f"exited with status {exit_code}" if exit_code >= 0 else f"got signal {-exit_code}"
    return "failed", f"{tool.argv[0]} {how}: {last_lines(written, TAIL_LINES)}".rstrip(": ")


def _words(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
