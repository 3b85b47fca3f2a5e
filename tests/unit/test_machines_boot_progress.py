"""Boot progress, read from a console that arrives in pieces, and its deadlines."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from polydev.controller.entities import Vm, now
from polydev.controller.machines.boot_progress import (
    KEPT_CHARACTERS,
    ConsoleParser,
    new_stages,
    next_stage,
    overdue,
)
from polydev.controller.machines.leader_lock import LeaderLock, leader_lock_file
from polydev.controller.machines.vm_logs import (
    CHUNK_BYTES,
    LAST_BYTES,
    MAX_BACKLOG_BYTES,
    LogReader,
    last_line,
)
from polydev.controller.settings import BootDeadlines, ControllerSettings
from polydev.vm.boot_stages import Stage
from polydev.vm.cpu_wait_time import CpuWait
from tests.fake_vms import MARKS, PANIC

AT = now()
VM = Vm("1", 2, "192.168.100.2", "starting", "none", AT, "4f1d", AT, started_at=AT)
BOOT = "".join(MARKS.values()).encode()


@pytest.mark.parametrize("size", [1, 7, 100, 9999])
def test_stages_are_parsed_from_chunks_of_any_size(size: int) -> None:
    follower = ConsoleParser()
    for start in range(0, len(BOOT), size):
        follower.feed(BOOT[start : start + size])
    assert follower.seen == {"kernel", "init", "network", "services", "ready"}
    assert follower.boot_error is None


def test_seen_stages_stay_after_their_text_is_dropped() -> None:
    follower = ConsoleParser()
    follower.feed(BOOT + b"[FAILED] Failed to start filler.service - Takes all.\n")
    follower.feed(b"x" * KEPT_CHARACTERS + b"\n")
    assert "services" in follower.seen
    assert follower.failed_units == ["filler.service"]
    assert len(follower.tail) <= 15 * 401


def test_endless_console_output_uses_bounded_memory() -> None:
    follower = ConsoleParser()
    follower.feed(BOOT)
    tracemalloc.start()
    try:
        for _ in range(200):
            follower.feed(b"x" * KEPT_CHARACTERS + b"\n")
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 10 * KEPT_CHARACTERS


def test_kernel_panic_is_parsed_across_chunks() -> None:
    follower = ConsoleParser()
    follower.feed(PANIC[:30].encode())
    assert follower.boot_error is None
    follower.feed(PANIC[30:].encode())
    assert follower.boot_error == "kernel panic: Attempted to kill init!"


def test_number_of_failed_units_is_limited() -> None:
    follower = ConsoleParser()
    for number in range(99):
        follower.feed(f"[FAILED] Failed to start a{number}.service - It.\n".encode())
    assert len(follower.failed_units) == 20


def test_new_stages_are_returned_once_and_in_order() -> None:
    vm = replace(VM, stage="network", timings={"kernel": 1.0, "network": 2.0})
    assert new_stages(vm, {"services", "init", "network", "none"}) == ["init", "services"]
    # Only the agent reports that a VM is ready.
    assert new_stages(vm, {"ready", "kernel"}) == []


def test_next_stage_of_a_boot() -> None:
    assert next_stage("none") == "kernel"
    assert next_stage("services") == "ready"
    assert next_stage("ready") == "ready"


@pytest.mark.parametrize(
    ("stage", "seconds", "words"),
    [
        ("none", 60, "stage kernel was not reached within 60 s; the last stage was none"),
        ("init", 120, "stage network was not reached within 120 s; the last stage was init"),
        ("services", 300, "stage ready was not reached within 300 s; the last stage was services"),
    ],
)
def test_overdue_stage_is_reported(stage: Stage, seconds: float, words: str) -> None:
    vm = replace(VM, stage=stage)
    deadlines = BootDeadlines()
    assert overdue(vm, deadlines, AT + timedelta(seconds=seconds - 0.1)) is None
    assert overdue(vm, deadlines, AT + timedelta(seconds=seconds)) == words


def test_deadlines_start_at_the_boot_or_the_last_stage() -> None:
    later = AT + timedelta(seconds=100)
    assert overdue(replace(VM, started_at=later), BootDeadlines(), later) is None
    vm = replace(VM, stage="kernel", stage_at=later, started_at=AT)
    assert overdue(vm, BootDeadlines(), later + timedelta(seconds=119)) is None
    assert overdue(replace(VM, started_at=None), BootDeadlines(), later) is None


@pytest.mark.parametrize(
    ("seconds", "wait", "words"),
    [
        (99, CpuWait(10, 4), None),
        (100, CpuWait(10, 4), "stage init was not reached within 60 s"),
        (239, CpuWait(10, 9), None),
        (240, CpuWait(10, 9), "the machine is too busy: the VM waited 216 s of 240 s for a CPU; "),
    ],
)
def test_cpu_wait_extends_the_deadline(seconds: float, wait: CpuWait, words: str | None) -> None:
    vm = replace(VM, stage="kernel", stage_at=AT)
    late = overdue(vm, BootDeadlines(init=60), AT + timedelta(seconds=seconds), wait)
    if words is None:
        assert late is None
    else:
        assert (late or "").startswith(words)
        assert "stage init was not reached within 60 s; the last stage was kernel" in (late or "")
        assert "for a CPU" in (late or "")


def test_log_reader_returns_new_text(tmp_path: Path) -> None:
    file = tmp_path / "serial.log"
    reader = LogReader(file)
    assert reader.read() == b""
    file.write_bytes(b"one")
    assert reader.read() == b"one"
    assert reader.read() == b""
    with file.open("ab") as log:
        log.write(b"two")
    assert reader.read() == b"two"
    file.write_bytes(b"new")
    assert reader.read() == b"new"


def test_log_reader_skips_the_middle_of_a_long_log(tmp_path: Path) -> None:
    file = tmp_path / "serial.log"
    file.write_bytes(b"begin" + b"x" * 3 * MAX_BACKLOG_BYTES + b"end")
    reader = LogReader(file)
    first = reader.read()
    assert first.startswith(b"begin")
    assert len(first) == CHUNK_BYTES
    rest = reader.read_to_end()
    assert rest.endswith(b"end")
    assert len(rest) == LAST_BYTES


def test_log_reader_does_not_follow_links(tmp_path: Path) -> None:
    secret, link = tmp_path / "secret", tmp_path / "serial.log"
    secret.write_text("a secret")
    link.symlink_to(secret)
    assert LogReader(link).read() == b""
    assert last_line(link) == ""
    assert last_line(tmp_path) == ""


def test_last_line_skips_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "qemu.log"
    file.write_bytes(b"first\nqemu: no disk\n\n\x1b[0m\n")
    assert last_line(file) == "qemu: no disk"
    file.write_bytes(b"")
    assert last_line(file) == ""


def test_leader_lock_is_exclusive(tmp_path: Path) -> None:
    first, second = LeaderLock(tmp_path / "lead.lock"), LeaderLock(tmp_path / "lead.lock")
    assert first.take()
    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_leader_lock_file_is_beside_a_sqlite_database(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ControllerSettings(database_url="sqlite+aiosqlite:////var/lib/x/controller.sqlite3")
    server = ControllerSettings(
        database_url="postgresql+psycopg://host/db", vm_root=Path("/var/lib/vms")
    )
    assert leader_lock_file(file) == Path("/var/lib/x/lead.lock")
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert leader_lock_file(server) == Path("/var/lib/vms/lead.lock")
    # systemd sets this; on a host the VMs' folder belongs to root.
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/service:/var/lib/other")
    assert leader_lock_file(server) == Path("/var/lib/service/lead.lock")
    assert leader_lock_file(file) == Path("/var/lib/x/lead.lock")
