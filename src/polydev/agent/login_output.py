"""Parse a tool's output: the URL of its login, its device code, how the login ended. Pure.

Tools listen on loopback for the browser's return, so it is enough to show the URL that they open
in the VM's own browser. claude also prints another URL, whose page shows a code to paste; that one
only counts if the tool opens no page.
"""

from __future__ import annotations

import json
import re

from polydev.agent.login_state import is_device_code
from polydev.agent.login_url import is_login_url
from polydev.agent.terminal_text import last_lines, plain_text, urls_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.providers import GuestProvider
    from polydev.agent.reply_types import LoginStatus

TAIL_LINES = 12
# Shorter words are answers such as "yes".
LEAST_SECRET_CHARACTERS = 8


def printed_url(provider: GuestProvider, written: str) -> str | None:
    """Return the first URL in a tool's output that is a request to log in."""
    mark = provider.printed_url_mark
    return next((url for url in urls_written(written) if mark in url and is_login_url(url)), None)


def device_code(provider: GuestProvider, written: str) -> str | None:
    """Return the code that the login's page asks for, if the tool printed one."""
    if provider.device_code is None:
        return None
    found = re.search(provider.device_code, plain_text(written))
    return found.group(1) if found and is_device_code(found.group(1)) else None


def without_input(message: str, lines: list[str]) -> str:
    """Return a message about a login without the codes and passwords that its tool has echoed.

    Each part of a pasted URL or code is removed.
    """
    parts = {part for line in lines for part in re.split(r"[\s#?&=]+", plain_text(line))}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= LEAST_SECRET_CHARACTERS:
            message = message.replace(part, "…")
    return message


def answer_to(provider: GuestProvider, written: str) -> tuple[LoginStatus, str] | None:
    """Return how the login ended, by the answer to the last request; None before it."""
    for line in written.splitlines():
        if not line.startswith("{"):
            continue
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if answer.get("id") != len(provider.requests) - 1:
            continue
        if "error" in answer:
            return "failed", f"{provider.command[0]} could not log in: {_words(answer['error'])}"
        if "result" in answer:
            return "done", ""
    return None


def end_of(provider: GuestProvider, exit_code: int, written: str) -> tuple[LoginStatus, str]:
    """Return how the login ended, by the tool's exit code; a negative one is a signal."""
    if exit_code == 0 and not provider.requests:
        return "done", ""
    how = f"exited with status {exit_code}" if exit_code >= 0 else f"got signal {-exit_code}"
    words = f"{provider.command[0]} {how}: {last_lines(written, TAIL_LINES)}"
    return "failed", words.rstrip(": ")


def _words(error: object) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
