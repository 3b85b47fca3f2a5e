"""The filter of read-only viewers: messages that pass, and those that are dropped."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.controller.relay.close_reasons import POLICY_VIOLATION
from polydev.controller.relay.spectator_filter import (
    EXTENDED_CLIPBOARD,
    EXTENDED_MOUSE_BUTTONS,
    MOST_ENCODINGS,
    MOST_FENCE_BYTES,
    NO_TEXT,
    Filtered,
    SpectatorFilter,
    set_encodings,
)

HELLO = b"RFB 003.008\n\x01\x01"
HELLO_PASSED = b"RFB 003.008\n\x01\x01" + set_encodings() + NO_TEXT
RAW, HEXTILE = struct.pack(">i", 0), struct.pack(">i", 5)

PIXEL_FORMAT = b"\x00\0\0\0" + bytes(16)
UPDATE_REQUEST = struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800)
CONTINUOUS = struct.pack(">BBHHHH", 150, 1, 0, 0, 1280, 800)
FENCE = struct.pack(">B3xIB", 248, 1, 4) + b"1234"
PASSED = [PIXEL_FORMAT, UPDATE_REQUEST, CONTINUOUS, FENCE]

KEY = struct.pack(">BBHI", 4, 1, 0, 0x61)
POINTER = struct.pack(">BBHH", 5, 0x81, 10, 20)
EXTENDED_POINTER = struct.pack(">BBHHB", 5, 0x81, 10, 20, 3)
TEXT = struct.pack(">B3xi", 6, 6) + b"\x03secre"
EXTENDED_TEXT = struct.pack(">B3xiI", 6, -9, 1 << 28) + b"\x03xyza"
XVP = struct.pack(">BxBB", 250, 1, 2)
DESKTOP_SIZE = struct.pack(">BxHHBx", 251, 800, 600, 2) + bytes(32)
QEMU_KEY = struct.pack(">BBHII", 255, 0, 1, 0x61, 30)
QEMU_AUDIO_ON = struct.pack(">BBH", 255, 1, 0)
QEMU_AUDIO_FORMAT = struct.pack(">BBHBBI", 255, 1, 2, 0, 2, 44100)
DROPPED = [
    KEY,
    POINTER,
    TEXT,
    EXTENDED_TEXT,
    XVP,
    DESKTOP_SIZE,
    QEMU_KEY,
    QEMU_AUDIO_ON,
    QEMU_AUDIO_FORMAT,
]


def filtered(*messages: bytes, hello: bytes = HELLO) -> Filtered:
    return SpectatorFilter().read(hello + b"".join(messages))


def encodings(*numbers: bytes) -> bytes:
    return struct.pack(">BxH", 2, len(numbers)) + b"".join(numbers)


def reason(result: Filtered) -> str:
    assert result.closing is not None
    assert (result.closing.code, result.closing.cause) == (POLICY_VIOLATION, "read-only")
    return result.closing.reason


@pytest.mark.parametrize("message", PASSED, ids=lambda each: str(each[0]))
def test_screen_messages_pass(message: bytes) -> None:
    assert filtered(message, UPDATE_REQUEST) == Filtered(HELLO_PASSED + message + UPDATE_REQUEST)


@pytest.mark.parametrize("message", DROPPED, ids=lambda each: each[:2].hex())
def test_input_clipboard_and_resize_messages_are_dropped(message: bytes) -> None:
    assert filtered(message, UPDATE_REQUEST) == Filtered(HELLO_PASSED + UPDATE_REQUEST)


def test_clipboard_extension_is_added_to_encodings() -> None:
    expected = encodings(RAW, HEXTILE, EXTENDED_CLIPBOARD)
    assert filtered(encodings(RAW, HEXTILE)) == Filtered(HELLO_PASSED + expected)


def test_pointer_length_follows_the_mouse_extension() -> None:
    knows = encodings(EXTENDED_MOUSE_BUTTONS)
    forgets = encodings(RAW)
    passed = filtered(knows, EXTENDED_POINTER, UPDATE_REQUEST, forgets, POINTER, UPDATE_REQUEST)
    assert passed == filtered(knows, UPDATE_REQUEST, forgets, UPDATE_REQUEST)
    simple = struct.pack(">BBHH", 5, 1, 10, 20)
    assert filtered(knows, simple, UPDATE_REQUEST) == filtered(knows, UPDATE_REQUEST)


def test_exclusive_access_becomes_shared() -> None:
    assert filtered(hello=b"RFB 003.008\n\x01\x00") == Filtered(HELLO_PASSED)


@pytest.mark.parametrize(
    ("hello", "word"),
    [
        (b"RFB 003.003\n", "version 3.7 or 3.8"),
        (b"GET / HTTP/1", "version 3.7 or 3.8"),
        (b"RFB 003.008\n\x02", "security type None"),
    ],
)
def test_unsupported_handshake_closes_the_viewer(hello: bytes, word: str) -> None:
    result = filtered(hello=hello)
    assert word in reason(result)
    assert result.passed == hello[:12] * (hello[12:] != b"")


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (b"\x4d\0\0", "message 77 is unknown"),
        (b"\xff\x07\0\0", "message 255 of kind 7 is unknown"),
        (encodings(*[RAW] * (MOST_ENCODINGS + 1)), "message 2 is too long"),
        (struct.pack(">B3xIB", 248, 0, 65), "message 248 is too long"),
    ],
)
def test_unknown_message_closes_the_viewer(message: bytes, word: str) -> None:
    reader = SpectatorFilter()
    result = reader.read(HELLO + UPDATE_REQUEST + message + UPDATE_REQUEST)
    assert result.passed == HELLO_PASSED + UPDATE_REQUEST
    assert word in reason(result)
    assert reader.read(UPDATE_REQUEST) == Filtered(b"", result.closing)
    assert len(reader._held) == 0


def test_messages_of_the_greatest_length_pass() -> None:
    most = encodings(*[RAW] * MOST_ENCODINGS)
    fence = struct.pack(">B3xIB", 248, 0, MOST_FENCE_BYTES) + bytes(MOST_FENCE_BYTES)
    expected = encodings(*[RAW] * MOST_ENCODINGS, EXTENDED_CLIPBOARD)
    assert filtered(most, fence) == Filtered(HELLO_PASSED + expected + fence)


def test_clipboard_text_is_dropped_without_buffering() -> None:
    reader = SpectatorFilter()
    reader.read(HELLO + struct.pack(">B3xI", 6, 1 << 24))
    for _ in range(16):
        assert reader.read(bytes(1 << 20)) == Filtered(b"")
        assert len(reader._held) == 0
    assert reader.read(UPDATE_REQUEST) == Filtered(UPDATE_REQUEST)


def test_most_negative_length_is_read_as_a_length() -> None:
    reader = SpectatorFilter()
    reader.read(HELLO + struct.pack(">B3xi", 6, -(1 << 31)))
    assert reader.read(UPDATE_REQUEST) == Filtered(b"")


MESSAGES = st.lists(
    st.one_of(
        st.sampled_from([*PASSED, *DROPPED]),
        st.builds(
            lambda size: encodings(*[RAW] * size), st.integers(0, 3) | st.just(MOST_ENCODINGS)
        ),
        st.builds(lambda text: struct.pack(">B3xI", 6, len(text)) + text, st.binary(max_size=300)),
        st.binary(min_size=1, max_size=12),
    ),
    max_size=12,
)


@given(MESSAGES, st.lists(st.integers(1, 60), max_size=60))
def test_result_is_independent_of_chunks(messages: list[bytes], cuts: list[int]) -> None:
    stream = HELLO + b"".join(messages)
    at_once = SpectatorFilter().read(stream)
    reader, passed, at = SpectatorFilter(), b"", 0
    for cut in [*cuts, len(stream)]:
        part = reader.read(stream[at : at + cut])
        passed, at = passed + part.passed, at + cut
    assert Filtered(passed, part.closing) == at_once
    assert len(reader._held) < 5 * 1024


@given(st.binary(max_size=400))
def test_any_input_gives_only_complete_allowed_messages(
    noise: bytes,
) -> None:
    passed = SpectatorFilter().read(HELLO + noise).passed[len(HELLO_PASSED) :]
    while passed:
        size = {0: 20, 3: 10, 150: 10}.get(passed[0])
        if size is None:
            assert passed[0] in (2, 248)
            size = 9 + passed[8] if passed[0] == 248 else 4 + 4 * int.from_bytes(passed[2:4], "big")
        assert len(passed) >= size
        passed = passed[size:]
