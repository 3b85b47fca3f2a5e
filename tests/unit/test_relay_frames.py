"""WebSocket frames: headers, fragments, pings, and violations of the protocol."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN, Side
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from polydev.controller.relay.close_reasons import BY_VIEWER, NOT_BINARY, CloseReason
from polydev.controller.relay.frames import (
    PING,
    FrameReader,
    binary_header,
    close_frame,
    shortened,
)

MOST = 1 << 20


def reader() -> FrameReader:
    return FrameReader(ServerProtocol(state=OPEN, max_size=MOST))


def sent(*frames: Frame) -> bytes:
    """Serialize frames as a viewer does."""
    return b"".join(frame.serialize(mask=True) for frame in frames)


def seen(data: bytes) -> list[Frame]:
    """Parse frames as a viewer does."""
    client = ClientProtocol(parse_uri("ws://localhost"), state=OPEN, max_size=None)
    assert client.side is Side.CLIENT
    client.receive_data(data)
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 1 << 20])
def test_header_contains_the_message_length(length: int) -> None:
    payload = bytes(length)
    assert seen(binary_header(length) + payload) == [Frame(Opcode.BINARY, payload)]


def test_header_supports_64_bit_lengths() -> None:
    assert binary_header(1 << 40) == b"\x82\x7f\0\0\x01\0\0\0\0\0"


def test_ping_frame_is_valid() -> None:
    assert seen(PING) == [Frame(Opcode.PING, b"")]


def test_close_frame_is_parsed_with_code_and_reason() -> None:
    (frame,) = seen(close_frame(CloseReason(4410, "the session is over", "session-over")))
    assert Close.parse(frame.data) == Close(4410, "the session is over")


@given(st.text())
def test_close_reason_of_any_length_fits_as_utf_8(text: str) -> None:
    (frame,) = seen(close_frame(CloseReason(1011, text, "any")))
    assert text.startswith(Close.parse(frame.data).reason)
    assert len(frame.data) <= 125


def test_close_reason_is_not_cut_inside_a_character() -> None:
    assert shortened("x" * 122 + "é") == b"x" * 122


@given(st.lists(st.binary(max_size=200), max_size=5), st.lists(st.integers(1, 50), max_size=40))
def test_data_is_independent_of_frames_and_chunks(messages: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(sent(Frame(Opcode.BINARY, each)) for each in messages)
    read, at, under_test = b"", 0, reader()
    for cut in [*cuts, len(whole)]:
        read += under_test.read(whole[at : at + cut]).data
        at += cut
    assert read == b"".join(messages)


def test_fragments_are_forwarded_with_pings_between() -> None:
    under_test = reader()
    first = under_test.read(sent(Frame(Opcode.BINARY, b"ab", fin=False), Frame(Opcode.PING, b"?")))
    assert first.data == b"ab"
    assert first.pong is not None
    assert seen(first.pong) == [Frame(Opcode.PONG, b"?")]
    assert under_test.read(sent(Frame(Opcode.CONT, b"cd"))).data == b"cd"


def test_only_the_last_of_many_pings_is_answered() -> None:
    pings = [Frame(Opcode.PING, bytes([number])) for number in range(200)]
    received = reader().read(sent(*pings))
    assert received.pong is not None
    assert seen(received.pong) == [Frame(Opcode.PONG, bytes([199]))]


@pytest.mark.parametrize("payload", [b"", Close(1001, "the tab was closed").serialize()])
def test_close_frame_of_a_viewer_is_answered(payload: bytes) -> None:
    received = reader().read(sent(Frame(Opcode.BINARY, b"last"), Frame(Opcode.CLOSE, payload)))
    assert received.data == b"last"
    assert received.closing == BY_VIEWER


def test_text_frame_is_refused_and_ends_reading() -> None:
    received = reader().read(sent(Frame(Opcode.TEXT, b"hello"), Frame(Opcode.BINARY, b"x")))
    assert received.closing == NOT_BINARY
    assert received.data == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Frame(Opcode.BINARY, b"not masked").serialize(mask=False), 1002),
        (sent(Frame(Opcode.CONT, b"of nothing")), 1002),
        (b"\xc2\x80\0\0\0\0", 1002),
        (sent(Frame(Opcode.BINARY, bytes(MOST + 1))), 1009),
        (b"\x88\x82\0\0\0\0" + (1006).to_bytes(2, "big"), 1002),
        (b"\x88\x83\0\0\0\0" + (1000).to_bytes(2, "big") + b"\xff", 1007),
    ],
    ids=["unmasked", "stray", "compressed", "too-big", "illegal-code", "no-text"],
)
def test_protocol_violations_close_with_a_reason(data: bytes, code: int) -> None:
    under_test = reader()
    closing = under_test.read(data).closing
    assert closing is not None
    assert closing.code == code
    assert closing.reason
    assert under_test.read(b"anything").data == b""


def test_message_limit_applies_to_all_fragments() -> None:
    under_test = reader()
    half = bytes(MOST // 2 + 1)
    assert under_test.read(sent(Frame(Opcode.BINARY, half, fin=False))).closing is None
    closing = under_test.read(sent(Frame(Opcode.CONT, half))).closing
    assert closing is not None
    assert closing.code == 1009
