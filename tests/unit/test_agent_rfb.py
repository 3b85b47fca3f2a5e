"""The RFB handshake and the WebSocket around it, against servers that are lists of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.agent.errors import CheckFailed
from polydev.agent.rfb import is_greeting, open_rfb
from polydev.agent.websocket import ANSWER, WebSocketStream, client_frame, close_words

REFUSAL = b"\0\0\0\x05go on"
ACCEPTED = b"\0\0\0\0"


class ScriptedStream:
    """A connection to a server that sends fixed bytes and ignores its input."""

    def __init__(self, script: bytes) -> None:
        self.name = "scripted"
        self.sent = b""
        self._script = script

    def send(self, data: bytes) -> None:
        self.sent += data

    def read_exactly(self, count: int, expected: str) -> bytes:
        if len(self._script) < count:
            raise CheckFailed(f"no {expected}")
        said, self._script = self._script[:count], self._script[count:]
        return said

    def read_through(self, marker: bytes, limit_bytes: int, expected: str) -> bytes:
        end = self._script.find(marker)
        if not 0 <= end <= limit_bytes:
            raise CheckFailed(f"no {expected}")
        return self.read_exactly(end + len(marker), expected)


@pytest.mark.parametrize(
    ("script", "version", "sent"),
    [
        (b"RFB 003.008\n\x01\x01" + ACCEPTED, "RFB 003.008", b"RFB 003.008\n\x01"),
        (b"RFB 003.008\n\x02\x02\x01" + ACCEPTED, "RFB 003.008", b"RFB 003.008\n\x01"),
        (b"RFB 003.008\n\x01\x02", "RFB 003.008", b"RFB 003.008\n"),
        (b"RFB 003.007\n\x01\x01", "RFB 003.007", b"RFB 003.007\n\x01"),
        (b"RFB 003.003\n\0\0\0\x01", "RFB 003.003", b"RFB 003.003\n"),
    ],
    ids=["no-password", "choice", "password", "3.7", "3.3"],
)
def test_valid_handshakes_are_accepted(script: bytes, version: str, sent: bytes) -> None:
    stream = ScriptedStream(script)
    assert open_rfb(stream) == version
    assert stream.sent == sent


@pytest.mark.parametrize(
    ("script", "detail"),
    [
        (b"RFB 003.003\n\0\0\0\0" + REFUSAL, "scripted turns viewers away: go on"),
        (b"RFB 003.008\n\0" + REFUSAL, "scripted turns viewers away: go on"),
        (b"RFB 003.008\n\x01\x01\0\0\0\x01" + REFUSAL, "scripted turns viewers away: go on"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "scripted says b'SSH-2.0-Open', which is not an RFB greeting"),
        (b"RFB 003.008\n", "no its RFB security types"),
        (b"RFB", "no an RFB greeting"),
    ],
    ids=["locked-out", "refused", "refused-late", "other-protocol", "silent", "short"],
)
def test_invalid_handshakes_are_reported(script: bytes, detail: str) -> None:
    with pytest.raises(CheckFailed) as failure:
        open_rfb(ScriptedStream(script))
    assert str(failure.value) == detail


@pytest.mark.parametrize(
    "data", [b"", b"RFB 003.008", b"RFB 003.00x\n", b"RFB 004.008\n", b"RFB 003.008\r"]
)
def test_malformed_greetings_are_refused(data: bytes) -> None:
    assert not is_greeting(data)


def upgraded(frames: bytes) -> WebSocketStream:
    head = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + ANSWER + b"\r\n\r\n"
    return WebSocketStream(ScriptedStream(head + frames), "/websockify")  # type: ignore[arg-type]


def server_frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    first = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return first + b"\x7e" + len(payload).to_bytes(2, "big") + payload
    return first + b"\x7f" + len(payload).to_bytes(8, "big") + payload


@given(st.lists(st.binary(), min_size=1), st.data())
def test_bytes_are_read_across_frames_of_any_size(chunks: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(chunks)
    stream = upgraded(b"".join(server_frame(2, chunk) for chunk in chunks))
    first = data.draw(st.integers(0, len(whole)))
    assert stream.read_exactly(first, "bytes") == whole[:first]
    assert stream.read_exactly(len(whole) - first, "bytes") == whole[first:]


@pytest.mark.parametrize("size", [125, 126, 65535, 65536])
def test_all_three_frame_length_forms_are_read(size: int) -> None:
    assert upgraded(server_frame(2, b"x" * size)).read_exactly(size, "bytes") == b"x" * size


def test_pings_and_fragments_are_handled() -> None:
    frames = server_frame(9, b"ping") + server_frame(2, b"RF", final=False) + server_frame(0, b"B")
    assert upgraded(frames).read_exactly(3, "bytes") == b"RFB"


@pytest.mark.parametrize(
    ("frames", "detail"),
    [
        (
            server_frame(8, b"\x03\xf3Failed to connect"),
            "ws://scripted/websockify closed with '1011 Failed to connect' before it",
        ),
        (server_frame(1, b"text"), "ws://scripted/websockify sent a text frame before it"),
        (client_frame(2, b"RFB"), "ws://scripted/websockify sent a masked frame"),
        (
            b"\x82\x7f" + b"\x10" * 8,
            f"ws://scripted/websockify sent a frame of {0x1010101010101010} bytes",
        ),
    ],
    ids=["closed", "text", "masked", "huge"],
)
def test_unexpected_frames_are_reported(frames: bytes, detail: str) -> None:
    with pytest.raises(CheckFailed) as failure:
        upgraded(frames).read_exactly(12, "it")
    assert str(failure.value) == detail


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: wrong\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_answer_without_an_upgrade_is_refused(head: bytes) -> None:
    with pytest.raises(CheckFailed, match="answers an upgrade with"):
        WebSocketStream(ScriptedStream(head), "/websockify")  # type: ignore[arg-type]


def bytes_or_detail(frames: bytes) -> bytes | str:
    try:
        return upgraded(frames).read_exactly(12, "bytes")
    except CheckFailed as failure:
        return str(failure)


@given(st.binary())
def test_arbitrary_frames_give_bytes_or_an_error(frames: bytes) -> None:
    outcome = bytes_or_detail(frames)
    assert len(outcome) == 12 if isinstance(outcome, bytes) else outcome


def test_close_frames_are_described() -> None:
    assert close_words(b"\x03\xe8") == "1000"
    assert close_words(b"") == "no code"
    assert close_words(b"\x03\xf3no \xff") == "1011 no \ufffd"
