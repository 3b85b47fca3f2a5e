"""Checks that talk to the parts of the desktop as their users do.

Each returns a short detail if all is well, and raises CheckFailed with the cause if not.
"""

from __future__ import annotations

from polydev.agent.errors import CheckFailed
from polydev.agent.outgoing_connection import Stream
from polydev.agent.rfb import open_rfb
from polydev.agent.websocket import WebSocketStream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.settings import AgentSettings

NOVNC_PAGE = "/vnc.html"
NOVNC_SOCKET = "/websockify"
MAX_PAGE_BYTES = 1 << 20

# An X11 client's opening: little-endian, protocol 11.0, no authorization.
X_OPENING = b"l\0\x0b\0" + bytes(8)
X_REFUSED, X_ACCEPTED = 0, 1


def check_vnc(settings: AgentSettings) -> str:
    """Check that the VNC server greets and lets a viewer in."""
    address = (settings.service_address, settings.vnc_port)
    with Stream(address, settings.check_timeout_seconds) as stream:
        return f"{open_rfb(stream)} on {stream.name}"


def check_novnc(settings: AgentSettings) -> str:
    """Check that noVNC has its page, and that its WebSocket leads to a VNC server."""
    address = (settings.service_address, settings.novnc_port)
    with Stream(address, settings.check_timeout_seconds) as stream:
        _fetch_page(stream)
    with Stream(address, settings.check_timeout_seconds) as stream:
        websocket = WebSocketStream(stream, NOVNC_SOCKET)
        version = open_rfb(websocket)
        websocket.close()
        return f"{version} over {websocket.name}"


def check_display(settings: AgentSettings) -> str:
    """Check that the X server answers a client, even with a refusal."""
    with Stream(settings.x_socket, settings.check_timeout_seconds) as stream:
        stream.send(X_OPENING)
        answer = stream.read_exactly(1, "an X11 answer")[0]
        if answer not in (X_REFUSED, X_ACCEPTED):
            raise CheckFailed(f"{stream.name} gives an answer that is not X11")
        return f"X server answers on {stream.name}"


def _fetch_page(stream: Stream) -> None:
    where = f"GET {NOVNC_PAGE} on {stream.name}"
    stream.send(
        f"GET {NOVNC_PAGE} HTTP/1.1\r\nHost: {stream.name}\r\nConnection: close\r\n\r\n".encode()
    )
    head = stream.read_through(b"\r\n\r\n", 8192, f"an answer to GET {NOVNC_PAGE}")
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise CheckFailed(f"{where} gives {status!r}")
    # The end of the page shows that it is HTML, and complete.
    stream.read_through(b"</html>", MAX_PAGE_BYTES, "the end of an HTML page")
