"""The guest shell of verifications, with a socket of the test in place of the guest."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.errors import VmError
from polydev.image import guest_shell
from polydev.image.guest_shell import READY, GuestShell, ShellResult

Ends = tuple[GuestShell, socket.socket]


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "console"))
        listener.listen()
        with GuestShell(tmp_path / "console", 60) as console:
            guest, _ = listener.accept()
            with guest:
                yield console, guest


def line_of(status: int, stdout: bytes, stderr: bytes) -> bytes:
    both = [base64.b64encode(each).decode() for each in (stdout, stderr)]
    return json.dumps([status, *both]).encode() + b"\n"


def test_result_has_status_and_output_of_the_command(ends: Ends) -> None:
    console, guest = ends
    guest.sendall(line_of(3, b"out\xff\n", b"err"))
    answer = console.run("false")
    assert answer == ShellResult(3, b"out\xff\n", b"err")
    assert answer.text == "out\ufffd\n"
    assert guest.recv(100) == b'"false"\n'


def test_consecutive_commands_get_their_own_results(ends: Ends) -> None:
    console, guest = ends
    # The first one after an answer to a knock; a terminal ends its lines otherwise.
    guest.sendall(READY + line_of(0, b"1", b""))
    guest.sendall(line_of(0, b"2", b"").replace(b"\n", b"\r\n"))
    assert [console.run("x").stdout, console.run("y").stdout] == [b"1", b"2"]


@pytest.mark.parametrize(
    "answer",
    [
        b"[0, nonsense]",
        b"[]",
        b"[0, 1, 2]",
        b'[null, "", ""]',
        b'["x", "", ""]',
        b"[" + b'{"a":' * 100_000 + b"]",
    ],
)
def test_malformed_answer_is_reported(ends: Ends, answer: bytes) -> None:
    console, guest = ends
    sending = threading.Thread(target=guest.sendall, args=(answer + b"\n",))
    sending.start()
    with pytest.raises(VmError, match="cannot read the console's answer to 'x'"):
        console.run("x")
    sending.join()


def test_ended_guest_is_reported_at_once(ends: Ends) -> None:
    console, guest = ends
    guest.shutdown(socket.SHUT_WR)
    with pytest.raises(VmError, match="closed: the VM ended"):
        console.run("x")


def test_closed_console_is_reported(ends: Ends) -> None:
    console, guest = ends
    guest.close()
    with pytest.raises(VmError, match="the test console was closed"):
        console.run("x")


def test_silent_console_times_out(ends: Ends) -> None:
    console, _ = ends
    with pytest.raises(VmError, match=r"did not answer within 0\.02 s"):
        console.run("x", 0.02)


def test_opening_a_shell_is_retried_until_it_answers(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    console, guest = ends
    knocks: list[bytes] = []
    send = console._send

    def knock(data: bytes) -> None:
        knocks.append(data)
        is_answered = len(knocks) == 3
        monkeypatch.setattr(guest_shell, "KNOCK_SECONDS", 60 if is_answered else 0.02)
        if is_answered:
            guest.sendall(b"login: " + READY)
        send(data)

    monkeypatch.setattr(console, "_send", knock)
    console.open_shell(60)
    assert len(knocks) == 3
    assert knocks[0].startswith(b"stty raw -echo; exec python3 -I -S -c ")
    with pytest.raises(VmError, match="did not answer"):
        console.open_shell(0)
    assert len(knocks) == 4


def test_missing_console_is_reported(tmp_path: Path) -> None:
    with pytest.raises(
        VmError, match=f"cannot connect to the test console at {tmp_path}/none"
    ) as told:
        GuestShell(tmp_path / "none")
    assert told.value.hint
