"""Shows a page in the Chromium that runs, over the socket by which a second start of it would.

That second start would take the emulated guest seconds, and without a first it would become one.
"""

from __future__ import annotations

from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

from polydev.agent.errors import CheckFailed

SINGLETON = ".config/chromium/SingletonSocket"
ACCEPTED = b"ACK"


def message_for(url: str) -> bytes:
    """A start of Chromium with one argument, as its ProcessSingleton says it."""
    return b"\0".join([b"START", b"/", b"chromium", url.encode()])


def show(url: str, home: str, timeout_seconds: float) -> None:
    """Open a tab in the browser of the user whose home this is; CheckFailed if none takes it."""
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
