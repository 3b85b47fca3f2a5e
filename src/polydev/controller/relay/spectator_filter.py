"""A filter for what a read-only viewer sends to a VM: RFB's client messages, without a socket.

The filter passes whole messages only, and only those that a picture needs. It drops keys, pointer,
clipboard and changes of the screen's size. An unknown message ends the connection, since its length
is unknown too. A VM sends all text that is copied in it, so the filter tells it that this viewer
takes none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from polydev.controller.relay.close_reasons import POLICY_VIOLATION, CloseReason

VERSIONS = (
    b"RFB 003.007\n",
    b"RFB 003.008\n",
)  # before, the VM chooses the security
SECURITY_NONE = b"\x01"
SHARED = b"\x01"  # any other value disconnects all other viewers

SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT = 0, 2, 3, 4, 5, 6
CONTINUOUS_UPDATES, FENCE, XVP, SET_DESKTOP_SIZE, QEMU = 150, 248, 250, 251, 255
PASSED = {SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, CONTINUOUS_UPDATES, FENCE}

SIZES = {SET_PIXEL_FORMAT: 20, UPDATE_REQUEST: 10, KEY: 8, CONTINUOUS_UPDATES: 10, XVP: 4}
# Of each other message, the number of bytes that tell its size.
HEADS = {SET_ENCODINGS: 4, POINTER: 2, CUT_TEXT: 8, FENCE: 9, SET_DESKTOP_SIZE: 7, QEMU: 4}
QEMU_KEY, QEMU_AUDIO, QEMU_AUDIO_FORMAT = 0, 1, 2

MOST_ENCODINGS = 1024
MOST_FENCE_BYTES = 64
EXTENDED_CLIPBOARD = b"\xc0\xa1\xe5\xce"
EXTENDED_MOUSE_BUTTONS = (-316).to_bytes(4, "big", signed=True)
# With the extension, a pointer event with this bit has one more byte.
EXTENDED_POINTER_BIT = 0x80
CLIPBOARD_CAPABILITIES, CLIPBOARD_NOTIFY, CLIPBOARD_TEXT = 1 << 24, 1 << 27, 1
NO_TEXT = struct.pack(
    ">B3xiII", CUT_TEXT, -8, CLIPBOARD_CAPABILITIES | CLIPBOARD_NOTIFY | CLIPBOARD_TEXT, 0
)
"""The VM may announce a new text, but may send 0 bytes of it unasked."""


@dataclass(frozen=True)
class Filtered:
    """`passed` goes to the VM; `closing` says why the viewer must be closed."""

    passed: bytes
    closing: CloseReason | None = None


class Forbidden(Exception):
    """The viewer sent something that the filter does not allow."""


class SpectatorFilter:
    """Reads what one viewer sends, in pieces of any size, and keeps less than 5 KiB of it."""

    def __init__(self) -> None:
        self._held = b""
        self._to_drop = 0
        self._handshake = list(HANDSHAKE)
        self._has_extended_pointer = False
        self._closing: CloseReason | None = None

    def read(self, data: bytes) -> Filtered:
        """Return what the VM may get of `data`; nothing after a closing."""
        if self._closing is not None:
            return Filtered(b"", self._closing)
        passed: list[bytes] = []
        stream = memoryview(self._held + data)
        try:
            while (size := self._next_size(stream)) is not None:
                passed.append(self._take(bytes(stream[:size])))
                stream = stream[size:]
        except Forbidden as error:
            reason = f"a read-only viewer can only look: {error}"
            self._closing = CloseReason(POLICY_VIOLATION, reason, "read-only")
        self._held = b"" if self._closing else bytes(stream)
        return Filtered(b"".join(passed), self._closing)

    def _next_size(self, stream: memoryview) -> int | None:
        """Return how many bytes to take next; None until more come. Raises Forbidden."""
        if self._to_drop:
            return min(self._to_drop, len(stream)) or None
        if self._handshake:
            size = self._handshake[0].size
            return size if len(stream) >= size else None
        whole = message_size(stream, has_extended_pointer=self._has_extended_pointer)
        if whole is None or len(stream) >= whole:
            return whole
        if stream[0] in PASSED:
            return None
        self._to_drop = whole  # dropped in parts: it may be larger than what is kept
        return len(stream)

    def _take(self, taken: bytes) -> bytes:
        """Return what the VM gets of it. Raises Forbidden."""
        if self._to_drop:
            self._to_drop -= len(taken)
            return b""
        if self._handshake:
            return self._handshake.pop(0).pass_on(taken)
        if taken[0] == SET_ENCODINGS:
            encodings = [taken[at : at + 4] for at in range(4, len(taken), 4)]
            self._has_extended_pointer = EXTENDED_MOUSE_BUTTONS in encodings
            return set_encodings(*encodings)
        return taken if taken[0] in PASSED else b""


@dataclass(frozen=True)
class HandshakeStep:
    """One of three messages of a viewer's handshake: its size, and what the VM gets instead."""

    size: int
    pass_on: Callable[[bytes], bytes]


def _version(sent: bytes) -> bytes:
    if sent not in VERSIONS:
        raise Forbidden("it must speak version 3.7 or 3.8 of RFB")
    return sent


def _security(sent: bytes) -> bytes:
    if sent != SECURITY_NONE:
        raise Forbidden("it must choose the security type None")
    return sent


def _client_init(_sent: bytes) -> bytes:
    return SHARED + set_encodings() + NO_TEXT


def set_encodings(*encodings: bytes) -> bytes:
    """Return the message, with the encoding that makes the VM obey `NO_TEXT`."""
    all_of_them = (*encodings, EXTENDED_CLIPBOARD)
    return struct.pack(">BxH", SET_ENCODINGS, len(all_of_them)) + b"".join(all_of_them)


HANDSHAKE = (
    HandshakeStep(len(VERSIONS[0]), _version),
    HandshakeStep(1, _security),
    HandshakeStep(1, _client_init),
)


def message_size(head: memoryview, *, has_extended_pointer: bool) -> int | None:
    """Return the size in bytes of the message that begins with `head`; None if `head` is too short.

    Raises Forbidden for a message that is unknown, or larger than any viewer needs.
    """
    if not head:
        return None
    kind = head[0]
    if kind in SIZES:
        return SIZES[kind]
    if kind not in HEADS:
        raise Forbidden(f"message {kind} is unknown")
    if len(head) < HEADS[kind]:
        return None
    if kind == POINTER:
        return 7 if has_extended_pointer and head[1] & EXTENDED_POINTER_BIT else 6
    if kind == CUT_TEXT:  # extended clipboard: the negative of its length
        return 8 + abs(_number(head[4:8], signed=True))
    if kind == SET_DESKTOP_SIZE:
        return 8 + 16 * head[6]
    return _qemu_size(head) if kind == QEMU else _passed_size(kind, head)


def _passed_size(kind: int, head: memoryview) -> int:
    """Return the size of a message that is passed on, and so kept until it is complete."""
    count = head[8] if kind == FENCE else _number(head[2:4])
    most = MOST_FENCE_BYTES if kind == FENCE else MOST_ENCODINGS
    if count > most:
        raise Forbidden(f"message {kind} is too long")
    return 9 + count if kind == FENCE else 4 + 4 * count


def _qemu_size(head: memoryview) -> int:
    if head[1] == QEMU_KEY:
        return 12
    if head[1] == QEMU_AUDIO:
        return 10 if _number(head[2:4]) == QEMU_AUDIO_FORMAT else 4
    raise Forbidden(f"message {QEMU} of kind {head[1]} is unknown")


def _number(data: memoryview, *, signed: bool = False) -> int:
    return int.from_bytes(data, "big", signed=signed)
