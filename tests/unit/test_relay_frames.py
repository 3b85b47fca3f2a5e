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
    """As a viewer sends them."""
    return b"".join(frame.serialize(mask=True) for frame in frames)


def seen(data: bytes) -> list[Frame]:
    """As a viewer reads them."""
    client = ClientProtocol(parse_uri("ws://localhost"), state=OPEN, max_size=None)
    assert client.side is Side.CLIENT
    client.receive_data(data)
    return [event for event in client.events_received() if isinstance(event, Frame)]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 1 << 20])
def test_a_header_says_how_long_its_message_is(length: int) -> None:
    payload = bytes(length)
    assert seen(binary_header(length) + payload) == [Frame(Opcode.BINARY, payload)]


def test_a_header_takes_eight_bytes_for_lengths_of_any_size() -> None:
    assert binary_header(1 << 40) == b"\x82\x7f\0\0\x01\0\0\0\0\0"


def test_a_ping_is_one() -> None:
    assert seen(PING) == [Frame(Opcode.PING, b"")]


def test_a_closing_is_read_as_it_was_meant() -> None:
    (frame,) = seen(close_frame(CloseReason(4410, "the session is over", "session-over")))
    assert Close.parse(frame.data) == Close(4410, "the session is over")


@given(st.text())
def test_a_reason_of_any_length_fits_and_stays_text(text: str) -> None:
    (frame,) = seen(close_frame(CloseReason(1011, text, "any")))
    assert text.startswith(Close.parse(frame.data).reason)
    assert len(frame.data) <= 125


def test_a_reason_is_not_cut_inside_a_character() -> None:
    assert shortened("x" * 122 + "é") == b"x" * 122


@given(st.lists(st.binary(max_size=200), max_size=5), st.lists(st.integers(1, 50), max_size=40))
def test_data_is_the_same_however_it_is_framed_and_cut(
    messages: list[bytes], cuts: list[int]
) -> None:
    whole = b"".join(sent(Frame(Opcode.BINARY, each)) for each in messages)
    read, at, under_test = b"", 0, reader()
    for cut in [*cuts, len(whole)]:
        read += under_test.read(whole[at : at + cut]).data
        at += cut
    assert read == b"".join(messages)


def test_fragments_go_on_as_they_come_with_pings_between() -> None:
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
def test_a_viewer_that_closes_is_told_so_whatever_it_says(payload: bytes) -> None:
    received = reader().read(sent(Frame(Opcode.BINARY, b"last"), Frame(Opcode.CLOSE, payload)))
    assert received.data == b"last"
    assert received.closing == BY_VIEWER


def test_text_is_refused_and_so_is_what_follows_it() -> None:
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
def test_what_breaks_the_protocol_is_closed_for_its_reason(data: bytes, code: int) -> None:
    under_test = reader()
    closing = under_test.read(data).closing
    assert closing is not None
    assert closing.code == code
    assert closing.reason
    assert under_test.read(b"anything").data == b""


def test_many_fragments_are_no_way_around_the_limit() -> None:
    under_test = reader()
    half = bytes(MOST // 2 + 1)
    assert under_test.read(sent(Frame(Opcode.BINARY, half, fin=False))).closing is None
    closing = under_test.read(sent(Frame(Opcode.CONT, half))).closing
    assert closing is not None
    assert closing.code == 1009
