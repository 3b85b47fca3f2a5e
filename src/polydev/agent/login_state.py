"""The state of a tool's login, as the JSON file that `login_program` writes for the agent.

The agent runs as root and reads what a user's program wrote, so it trusts nothing in it: anything
that `state_text` would not write counts as a failed login.
"""

from __future__ import annotations

import json
import os

from polydev.agent.login_url import MAX_URL_CHARACTERS, is_login_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.reply_types import LoginReply, LoginStatus

STATE_FILE = "state"
MAX_DETAIL_BYTES = 1024
MAX_DEVICE_CODE_CHARACTERS = 64
MAX_STATE_BYTES = 2 * MAX_URL_CHARACTERS  # the URL, and the rest with its letters escaped

_STATUSES: tuple[LoginStatus, ...] = ("starting", "waiting", "done", "failed")


def bounded_detail(text: str) -> str:
    """Return the end of a text without control characters, as long as a state may have."""
    shown = "".join(letter for letter in text if letter == "\n" or letter.isprintable())
    return shown.encode("utf-8", "replace")[-MAX_DETAIL_BYTES:].decode("utf-8", "ignore").strip()


def is_device_code(text: object) -> bool:
    """Whether a user could type this on a login page."""
    if not isinstance(text, str) or not 0 < len(text) <= MAX_DEVICE_CODE_CHARACTERS:
        return False
    return text.isascii() and text.isprintable()


def state_text(
    status: LoginStatus, url: str | None, detail: str, device_code: str | None = None
) -> str:
    """Return the JSON that `reply_of_state` reads."""
    state = {"status": status, "url": url, "device_code": device_code}
    return json.dumps({**state, "detail": bounded_detail(detail)})


def keep_state(
    folder: str, status: LoginStatus, url: str | None, detail: str, device_code: str | None = None
) -> None:
    """Write the state in one step, so that readers see a complete one."""
    new = f"{folder}/{STATE_FILE}.new"
    with open(new, "wb") as file:
        file.write(state_text(status, url, detail, device_code).encode())
    os.chmod(new, 0o644)
    os.rename(new, f"{folder}/{STATE_FILE}")


def kept_state(folder: str) -> LoginReply:
    """Return the state in a login's folder, for programs of the folder's user."""
    try:
        with open(f"{folder}/{STATE_FILE}", "rb") as file:
            return reply_of_state("", file.read())
    except OSError:
        return reply_of_state("", None)


def login_reply(
    provider: str,
    status: LoginStatus,
    url: str | None = None,
    detail: str = "",
    device_code: str | None = None,
) -> LoginReply:
    return {
        "provider": provider,
        "status": status,
        "url": url,
        "device_code": device_code,
        "detail": detail,
    }


def reply_of_state(provider: str, data: bytes | None) -> LoginReply:
    """Return the reply for the bytes of a state file; None if there is no file."""
    if data is None:
        return login_reply(provider, "none")
    try:
        state = json.loads(data if len(data) <= MAX_STATE_BYTES else b"")
        status, url, device_code = state["status"], state["url"], state["device_code"]
        detail = bounded_detail(state["detail"])
        is_as_written = (
            status in _STATUSES
            and (is_login_url(url) if url is not None else status != "waiting")
            and (device_code is None or is_device_code(device_code))
        )
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
        is_as_written = False
    if not is_as_written:
        return login_reply(provider, "failed", None, "the login's state is not as it is written")
    return login_reply(provider, status, url, detail, device_code)
