"""The handshake of an RFB (VNC) connection, up to the server's permission.

The check does not stop after the greeting: TigerVNC counts every connection from an address as a
failed login until one succeeds, and refuses all from that address after five. Checks that only
read greetings would lock out the viewers of noVNC, which have the same address. TigerVNC then
greets with version 003.003 and a refusal, which the greeting alone does not show. No ClientInit is
sent, so the server sets nothing up and disconnects nobody.
"""

from __future__ import annotations

from polydev.agent.errors import CheckFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polydev.agent.outgoing_connection import ByteStream

GREETING_BYTES = 12
MAX_REASON_BYTES = 300
NO_PASSWORD = 1


def open_rfb(stream: ByteStream) -> str:
    """Do the handshake and return the server's version, such as "RFB 003.008"."""
    greeting = stream.read_exactly(GREETING_BYTES, "an RFB greeting")
    if not is_greeting(greeting):
        raise CheckFailed(f"{stream.name} says {greeting!r}, which is not an RFB greeting")
    version = greeting.decode().strip()
    if version >= "RFB 003.007":
        _choose_security(stream, version)
    else:
        stream.send(b"RFB 003.003\n")
        if _number(stream) == 0:
            raise CheckFailed(_refusal(stream))
    return version


def is_greeting(data: bytes) -> bool:
    """Whether this is `RFB 003.00x` and a newline."""
    return (
        len(data) == GREETING_BYTES
        and data.startswith(b"RFB 003.00")
        and data[10:11].isdigit()
        and data.endswith(b"\n")
    )


def _choose_security(stream: ByteStream, version: str) -> None:
    stream.send(b"RFB 003.007\n" if version == "RFB 003.007" else b"RFB 003.008\n")
    count = stream.read_exactly(1, "its RFB security types")[0]
    if count == 0:
        raise CheckFailed(_refusal(stream))
    if NO_PASSWORD not in stream.read_exactly(count, "its RFB security types"):
        return  # it asks for a password, so it works
    stream.send(bytes([NO_PASSWORD]))
    if version != "RFB 003.007" and _number(stream) != 0:
        raise CheckFailed(_refusal(stream))


def _refusal(stream: ByteStream) -> str:
    length = min(_number(stream), MAX_REASON_BYTES)
    reason = stream.read_exactly(length, "its reason for a refusal").decode("ascii", "replace")
    return f"{stream.name} turns viewers away: {reason}"


def _number(stream: ByteStream) -> int:
    return int.from_bytes(stream.read_exactly(4, "the next step of RFB"), "big")
