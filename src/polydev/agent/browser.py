"""Show a page in the running Chromium, over the socket that a second Chromium would use.

Starting a second Chromium would take an emulated guest seconds, and if none ran, it would stay.
"""

from __future__ import annotations

from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

from polydev.agent.errors import CheckFailed

SINGLETON = ".config/chromium/SingletonSocket"
ACCEPTED = b"ACK"


def message_for(url: str) -> bytes:
    """Return the message by which Chromium's ProcessSingleton passes on a start with a URL."""
    return b"\0".join([b"START", b"/", b"chromium", url.encode()])


def show(url: str, home: str, timeout_seconds: float) -> None:
    """Open a tab in the browser of the home's user. Raises CheckFailed if no browser answers."""
    path = f"{home}/{SINGLETON}"
    client = socket(AF_UNIX, SOCK_STREAM)
    try:
        client.settimeout(timeout_seconds)
        client.connect(path)
        client.sendall(message_for(url))
        client.shutdown(SHUT_WR)
        answer = client.recv(len(ACCEPTED))
    except OSError as error:
        raise CheckFailed(f"the browser does not take a page: {error}") from error
    finally:
        client.close()
    if answer != ACCEPTED:
        raise CheckFailed(f"the browser answers {answer!r} to a page")
