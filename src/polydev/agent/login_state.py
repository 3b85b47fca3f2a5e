"""What is known of a tool's login, as the few lines that its runner keeps for the agent. Pure.

The agent runs as root and reads what a user's program wrote, so nothing here believes a word:
what is not as `state_text` writes it is a failure that says so.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.messages import LoginReply, LoginStatus

PROVIDERS = ("claude", "codex", "gemini")
STATE_FILE = "state"
MAX_URL_CHARACTERS = 4096
MAX_DETAIL_BYTES = 1024
MAX_STATE_BYTES = MAX_URL_CHARACTERS + MAX_DETAIL_BYTES + 16  # 16: the status and two newlines

_STATUSES: tuple[LoginStatus, ...] = ("starting", "waiting", "done", "failed")
_NOT_IN_URLS = frozenset('"<>\\^`{|}')
_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")


def is_login_url(text: str) -> bool:
    """Is this an http or https URL with a host, as a login may be at?"""
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or len(text) > MAX_URL_CHARACTERS:
        return False
    if any(not "!" <= letter <= "~" or letter in _NOT_IN_URLS for letter in text):
        return False
    authority = rest.partition("/")[0].partition("?")[0].partition("#")[0]
    host, colon, port = authority.partition(":")
    return bool(host) and _HOST.issuperset(host) and (not colon or port.isdecimal())


def bounded_detail(text: str) -> str:
    """The end of a text, without control characters, within what a state holds."""
    shown = "".join(letter for letter in text if letter == "\n" or letter.isprintable())
    return shown.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:].decode("utf-8", "ignore").strip()


def state_text(status: LoginStatus, url: str | None, detail: str) -> str:
    """The lines that `reply_of_state` reads: status, URL or nothing, detail."""
    return f"{status}\n{url or ''}\n{bounded_detail(detail)}"


def login_reply(
    provider: str, status: LoginStatus, url: str | None = None, detail: str = ""
) -> LoginReply:
    return {"provider": provider, "status": status, "url": url, "detail": detail}


def reply_of_state(provider: str, data: bytes | None) -> LoginReply:
    """The answer that a state file's bytes, or there being none, mean."""
    if data is None:
        return login_reply(provider, "none")
    word, first, rest = data.decode("utf-8", "replace").partition("\n")
    url, second, detail = rest.partition("\n")
    status = next((known for known in _STATUSES if known == word), None)
    is_whole = bool(first and second) and len(data) <= MAX_STATE_BYTES
    fits = is_login_url(url) if url or status == "waiting" else True
    if status is None or not (is_whole and fits):
        return login_reply(provider, "failed", None, "the login's state is not as it is written")
    return login_reply(provider, status, url or None, bounded_detail(detail))
