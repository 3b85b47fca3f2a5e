"""The identity that a host gives a VM, on both sides of the port between them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.agent import identity as agent_identity
from polydev.agent.identity import Guest, answer, end_processes, words_of
from polydev.errors import VmError
from polydev.processes import spawn
from polydev.vm.identity import (
    Identity,
    Receipt,
    clock_line,
    guest_time_from,
    identity_line,
    new_identity,
    receipt_from,
)
from polydev.vm.template import give_identity

IDENTITY = new_identity("0d9c6e1a-VM", "s-9")


class PlainGuest(Guest):
    """A guest that applies an identity to files below a folder only."""

    def take(self, words: Mapping[str, str], received_at: float) -> dict[str, str]:
        names = ("vm", "session", "hostname", "machine_id", "boot_id", "secret", "time")
        return {name: words[name] for name in names} | {"random": words["entropy"][:32]}

    def set_clock(self, words: Mapping[str, str], received_at: float) -> dict[str, str]:
        return {"time": words["time"]}


def receipt(**changes: str | None) -> bytes:
    """Return the guest's receipt for IDENTITY with these changes; None omits a key."""
    line = answer(PlainGuest(), identity_line(IDENTITY, 1234.5).decode(), 0.0)
    words: dict[str, str | None] = {**words_of(line), **changes}
    shown = [f"{name}={value}" for name, value in words.items() if value is not None]
    return " ".join(["identity", *shown]).encode() + b"\n"


def test_guest_receives_the_identity_of_the_host() -> None:
    found = receipt_from(receipt(), IDENTITY)
    assert (found.vm_id, found.session_id) == (IDENTITY.vm_id, "s-9")
    assert (found.hostname, found.machine_id) == (IDENTITY.hostname, IDENTITY.machine_id)
    assert found.guest_time == 1234.5
    assert len(bytes.fromhex(found.random)) == 16
    assert IDENTITY.secret not in repr(found)


def test_identity_without_a_session() -> None:
    nobodys = replace(IDENTITY, session_id=None)
    line = answer(PlainGuest(), identity_line(nobodys, 1.0).decode(), 0.0)
    assert receipt_from(line.encode(), nobodys).session_id is None


@pytest.mark.parametrize("name", ["vm", "session", "hostname", "machine_id", "boot_id", "secret"])
@pytest.mark.parametrize("value", ["other", None])
def test_a_receipt_of_another_identity_is_refused(name: str, value: str | None) -> None:
    with pytest.raises(VmError, match=f"differs from its identity: {name}"):
        receipt_from(receipt(**{name: value}), IDENTITY)


@pytest.mark.parametrize(
    "words", [{"time": None}, {"time": "noon"}, {"random": None}, {"random": "xy"}]
)
def test_incomplete_receipt_is_refused(words: Mapping[str, str | None]) -> None:
    with pytest.raises(VmError, match="receipt is not complete"):
        receipt_from(receipt(**words), IDENTITY)


@pytest.mark.parametrize("line", [b"\n", b"", b"refused OSError: \x1b[2J\xff\n", b"clock time=1\n"])
def test_malformed_receipt_is_refused_with_a_printable_message(line: bytes) -> None:
    with pytest.raises(VmError, match="the guest refused the") as caught:
        receipt_from(line, IDENTITY)
    assert caught.value.message.isprintable()


def test_late_answers_to_an_earlier_controller_are_skipped(
    tmp_path: Path,
) -> None:
    earlier = new_identity(IDENTITY.vm_id, "s-9")
    late = [answer(PlainGuest(), identity_line(earlier, 1.0).decode(), 0.0), "clock time=1.0\n"]

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("".join(late).encode())
        while line := await reader.readline():
            writer.write(answer(PlainGuest(), line.decode(), 0.0).encode())
        writer.close()

    async def story() -> Receipt:
        place = tmp_path / "identity.sock"
        async with await asyncio.start_unix_server(guest, place):
            return await give_identity(place, IDENTITY)

    assert asyncio.run(story()).boot_id == IDENTITY.boot_id


def test_new_identities_differ() -> None:
    first, second = new_identity("one", "s"), new_identity("two", "s")
    for name in ("hostname", "machine_id", "boot_id", "secret"):
        assert getattr(first, name) != getattr(second, name)
    assert new_identity("one", "s").boot_id != first.boot_id
    assert new_identity("one", "s").secret != first.secret


def test_identity_names_have_valid_formats() -> None:
    assert re.fullmatch(r"[0-9a-f]{32}", IDENTITY.machine_id)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,62}", IDENTITY.hostname)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", IDENTITY.boot_id)


def test_each_identity_line_has_new_entropy() -> None:
    lines = [identity_line(IDENTITY, 1.0).decode() for _ in range(2)]
    first, second = (words_of(line)["entropy"] for line in lines)
    assert first != second
    assert len(bytes.fromhex(first)) == 64


def test_clock_line_sets_the_clock() -> None:
    line = answer(PlainGuest(), clock_line(99.25).decode(), 0.0)
    assert guest_time_from(line.encode()) == 99.25
    with pytest.raises(VmError, match="did not set its clock"):
        guest_time_from(b"clock soon\n")


@pytest.mark.parametrize("line", ["", "reboot now=1", "identity", "identity entropy=xyz", "clock"])
def test_guest_refuses_malformed_lines(line: str) -> None:
    said = answer(Guest("/nowhere/"), line, 0.0)
    assert said.startswith("refused ")
    assert said.count("\n") == 1


SERVICE = """
import sys
from polydev.agent.identity import serve
from tests.unit.test_identity import PlainGuest
serve(int(sys.argv[1]), PlainGuest())
"""


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """The host's end of a port that the guest's service serves."""
    host, guest = socket.socketpair()
    argv = [sys.executable, "-c", SERVICE, str(guest.fileno())]
    process = spawn(argv, cwd=Path(__file__).parents[2], pass_fds=[guest.fileno()])
    host.settimeout(60)
    try:
        yield host
    finally:
        process.kill()
        process.wait()


def test_lines_are_read_in_any_chunks(port: socket.socket) -> None:
    line = identity_line(IDENTITY, 7.0)
    port.sendall(line[:20])
    port.sendall(line[20:] + clock_line(8.0))
    with port.makefile("rb") as answers:
        assert receipt_from(answers.readline(), IDENTITY).guest_time == 7.0
        assert guest_time_from(answers.readline()) == 8.0


def test_endless_line_is_discarded(port: socket.socket) -> None:
    for _ in range(64):
        port.sendall(b"x" * 4096)
    port.sendall(b"\n" + clock_line(8.0))
    with port.makefile("rb") as answers:
        assert answers.readline().startswith(b"refused ")
        assert guest_time_from(answers.readline()) == 8.0


@pytest.mark.parametrize("has_group", [True, False])
def test_only_processes_with_the_given_mark_are_ended(tmp_path: Path, has_group: bool) -> None:
    mark = f"mark-{tmp_path.name}-{os.getpid()}"
    marked, other, elsewhere = (spawn(["sleep", "60"]) for _ in range(3))
    group = tmp_path / "cgroup.procs"
    try:
        proc = tmp_path / "proc"
        line = f"chromium\0{'-' * 5000}\0--type={mark}\0"
        for process, text in ((marked, line), (other, "chromium\0"), (elsewhere, line)):
            (proc / str(process.pid)).mkdir(parents=True)
            (proc / str(process.pid) / "cmdline").write_text(text)
        (proc / "self").mkdir()
        (proc / "999999999").mkdir()
        if has_group:
            group.write_text(f"{other.pid}\n{marked.pid}\n999999999\n999999998\n")
        end_processes(str(proc), str(group), mark)
        assert marked.wait(60) == -9
        assert other.poll() is None
        assert elsewhere.poll() is None if has_group else elsewhere.wait(60) == -9
    finally:
        for process in (marked, other, elsewhere):
            process.kill()
            process.wait()


def test_identity_repr_has_no_secret() -> None:
    assert isinstance(IDENTITY, Identity)
    assert IDENTITY.secret not in repr(IDENTITY)


def test_service_requests_sigio_before_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a connection between the read and the request would be missed."""
    calls: list[object] = []

    def read(*_: object) -> bytes:
        calls.append("read")
        raise KeyboardInterrupt

    monkeypatch.setattr(agent_identity, "pthread_sigmask", lambda *words: calls.append(words))
    monkeypatch.setattr(agent_identity, "fcntl", lambda *words: calls.append(words))
    monkeypatch.setattr(os, "read", read)
    with pytest.raises(KeyboardInterrupt):
        agent_identity.serve(7, PlainGuest())
    assert calls == [
        (signal.SIG_BLOCK, [signal.SIGIO]),
        (7, fcntl.F_SETOWN, os.getpid()),
        (7, fcntl.F_SETFL, os.O_ASYNC),
        "read",
    ]
