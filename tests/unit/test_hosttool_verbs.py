"""The host tool: records, lock, dead-man, listing, command line, packed file."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polydev import hosttool
from polydev.durable_files import read_json
from polydev.hosttool import (
    cli,
    deadman,
    deployment_lock,
    deployment_records,
    lock_verbs,
    restore,
    zipapp,
)
from polydev.hosttool.backup_scope import list_scope
from polydev.hosttool.deployment_lock import HeldLock
from polydev.hosttool.disk_reserve import keep_reserve
from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore import RestoreOptions
from polydev.hosttool.systemd import UnitStatus, states_of_show
from polydev.hosttool.units import has_files_among, is_outdated, template_of, wanted_config
from polydev.hosttool.verb import Call
from polydev.hosttool.zipapp import SHARED, SHEBANG, zipapp_bytes
from tests.unit.hosttool_host import FIRST, NEW, SECOND, Host, deploy, put, unit_text

WHO = {"id": FIRST, "owner": "ada@desk", "purpose": "deploy"}


class TestRecords:
    def test_records_keep_unknown_fields_and_are_newest_first(self, paths: Paths) -> None:
        first = {"id": FIRST, "status": "succeeded", "mood": {"good": True}, "number": 1}
        second = {"id": SECOND, "status": "running", "number": 2}
        for record in (first, second):
            assert deployment_records.write(paths, record) == record
        assert deployment_records.records(paths) == [second, first]
        assert deployment_records.show(paths, FIRST) == first

    @pytest.mark.parametrize(
        ("record", "code"),
        [
            ({"status": "running"}, "bad-id"),
            ({"id": "../x", "status": "running"}, "bad-id"),
            ({"id": FIRST}, "bad-record"),
            ({"id": FIRST, "status": "fine"}, "bad-record"),
        ],
    )
    def test_invalid_records_are_refused(
        self, paths: Paths, record: dict[str, str], code: str
    ) -> None:
        with pytest.raises(HostError) as refusal:
            deployment_records.write(paths, record)
        assert refusal.value.code == code
        assert deployment_records.records(paths) == []

    def test_damaged_record_is_unreadable(self, paths: Paths) -> None:
        put(paths.records / f"{FIRST}.json", '{"status": "succ')
        put(paths.records / f"{SECOND}.json", json.dumps({"id": FIRST, "status": "succeeded"}))
        assert {record["status"] for record in deployment_records.records(paths)} == {"unreadable"}

    def test_missing_record_is_refused(self, paths: Paths) -> None:
        with pytest.raises(HostError) as refusal:
            deployment_records.show(paths, FIRST)
        assert refusal.value.code == "record-missing"

    def test_record_is_written_to_a_full_disk_with_the_reserve(
        self, paths: Paths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep_reserve(paths)
        original = os.fsync

        def fsync(descriptor: int) -> None:
            if paths.reserve.exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            original(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        deployment_records.write(paths, {"id": FIRST, "status": "failed"})
        assert deployment_records.show(paths, FIRST)["status"] == "failed"


class TestLock:
    def test_held_lock_is_refused_with_its_holder(self, paths: Paths) -> None:
        held = HeldLock(paths, 60, WHO)
        assert held.stale is None
        with pytest.raises(HostError) as refusal:
            HeldLock(paths, 60, {**WHO, "id": SECOND})
        assert refusal.value.code == "lock-held"
        assert "ada@desk" in refusal.value.message
        assert held.document["expires"] in refusal.value.message
        assert refusal.value.hint is not None
        assert "./inv unlock" in refusal.value.hint
        # A hint during a database move must not suggest a deployment that loses its rows.
        assert "./inv deploy" not in refusal.value.hint
        assert deployment_lock.show(paths) == {"lock": held.document, "held": True}
        held.let_go(is_done=True)
        assert deployment_lock.show(paths) == {"lock": None, "held": False}

    def test_lock_of_a_dead_holder_is_stale(self, paths: Paths) -> None:
        dead = HeldLock(paths, 60, WHO)
        dead.let_go(is_done=False)
        assert deployment_lock.show(paths) == {"lock": dead.document, "held": False}
        heir = HeldLock(paths, 60, {**WHO, "id": SECOND})
        assert heir.stale == dead.document
        heir.let_go(is_done=True)

    def test_renewal_moves_the_expiry(self, paths: Paths) -> None:
        held = HeldLock(paths, 60, WHO)
        before = held.document["expires"]
        held.renew()
        assert datetime.fromisoformat(held.document["expires"]) > datetime.fromisoformat(before)
        assert read_json(paths.lock) == held.document
        held.let_go(is_done=True)

    def test_unreadable_lock_is_taken_over_and_shown(self, paths: Paths) -> None:
        put(paths.lock, "{")
        held = HeldLock(paths, 60, WHO)
        assert held.stale is not None
        assert "unreadable" in held.stale["purpose"]
        held.let_go(is_done=True)

    def test_break_lock_removes_a_stale_lock(self, paths: Paths) -> None:
        dead = HeldLock(paths, 60, WHO)
        dead.let_go(is_done=False)
        assert deployment_lock.break_lock(paths) == {"broken": dead.document, "wasHeld": False}
        assert deployment_lock.break_lock(paths) == {"broken": None, "wasHeld": False}

    def test_reused_pid_is_not_the_holder(self) -> None:
        own = {"pid": os.getpid(), "pidStart": deployment_lock.started_ticks(os.getpid())}
        assert deployment_lock.is_alive(own)
        assert not deployment_lock.is_alive({**own, "pidStart": 1})
        assert not deployment_lock.is_alive({})

    def test_break_lock_spares_a_process_with_a_reused_pid(self, paths: Paths) -> None:
        stranger = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        try:
            deployment_lock._end({"pid": stranger.pid, "pidStart": 1})
            with pytest.raises(subprocess.TimeoutExpired):
                stranger.wait(0.1)
        finally:
            stranger.communicate()
        assert stranger.returncode == 0

    def test_renewal_extends_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read_end, write_end = os.pipe()
        clock = iter([0.0, 9.0, 9.0, 15.0])  # taken, asked, renewed, asked after the first deadline

        class Held:
            def renew(self) -> None:
                os.write(write_end, b"release\n")

        monkeypatch.setattr("polydev.hosttool.lock_verbs.time.monotonic", lambda: next(clock))
        os.write(write_end, b"renew\n")
        try:
            end = lock_verbs._listen(Held(), read_end, 10)  # type: ignore[arg-type]
        finally:
            os.close(read_end)
            os.close(write_end)
        assert end is lock_verbs._End.RELEASED


class TestDeadman:
    def test_timer_runs_a_reach_restore(self, host: Host) -> None:
        host.backup()
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert host.systemd.timers == {
            deadman.TIMER: [
                *("90", str(host.paths.tool), "restore", "--id", FIRST),
                *("--reach", "--because", "deadman"),
            ]
        }
        status = deadman.status(host.paths, host.systemd)
        assert (status["armed"], status["fired"], status["timer"]) == (True, False, True)

    def test_damaged_backup_arms_no_timer(self, host: Host) -> None:
        kept = host.backup()
        next((kept.folder / "files").iterdir()).write_bytes(b"flipped")
        with pytest.raises(HostError) as refusal:
            deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert refusal.value.code == "backup-damaged"
        assert host.systemd.timers == {}

    def test_arming_again_restarts_the_timer(self, host: Host) -> None:
        host.backup()
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        deadman.arm(host.paths, host.systemd, FIRST, 30)
        assert host.systemd.timers[deadman.TIMER][0] == "30"
        assert f"stop {deadman.TIMER}" in host.systemd.log

    def test_confirmed_timer_restores_nothing(self, host: Host) -> None:
        host.backup()
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert not deadman.confirm(host.paths, host.systemd)["armed"]
        deadman.confirm(host.paths, host.systemd)
        assert host.systemd.timers == {}
        deploy(host, "2", NEW, "b" * 64)
        before = host.seen()
        done = restore.restore_for_deadman(
            host.paths, host.systemd, FIRST, RestoreOptions(reach=True)
        )
        assert "skipped" in done
        assert host.seen() == before

    def test_timer_of_an_earlier_change_does_nothing_any_more(self, host: Host) -> None:
        """Its backup would take back more than the change that waits for a confirmation."""
        host.backup()
        deploy(host, "2", NEW, "b" * 64)
        host.backup(SECOND)
        deadman.arm(host.paths, host.systemd, SECOND, 90)
        before = host.seen()
        done = restore.restore_for_deadman(
            host.paths, host.systemd, FIRST, RestoreOptions(reach=True)
        )
        assert "skipped" in done
        assert host.seen() == before
        status = deadman.status(host.paths, host.systemd)
        assert (status["armed"], status["fired"], status["backup"]) == (True, False, SECOND)

    def test_confirmation_after_the_restore_is_refused(self, host: Host) -> None:
        host.backup()
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        put(host.root / "etc/polydev/firewall.nft", "nobody comes in")
        restore.restore_for_deadman(host.paths, host.systemd, FIRST, RestoreOptions(reach=True))
        state = deadman.status(host.paths, host.systemd)
        assert (state["fired"], state["backup"], state["outcome"]["changes"]) == (True, FIRST, 1)
        with pytest.raises(HostError, match=FIRST) as refusal:
            deadman.confirm(host.paths, host.systemd)
        assert refusal.value.code == "deadman-fired"
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        assert deadman.confirm(host.paths, host.systemd)["fired"] is False

    def test_failed_dead_man_restore_is_recorded(self, host: Host) -> None:
        kept = host.backup()
        deadman.arm(host.paths, host.systemd, FIRST, 90)
        (kept.folder / "backup.json").unlink()
        with pytest.raises(HostError):
            restore.restore_for_deadman(host.paths, host.systemd, FIRST, RestoreOptions(reach=True))
        state = deadman.status(host.paths, host.systemd)
        assert (state["fired"], state["outcome"]["error"]) == (True, "backup-damaged")

    def test_confirm_without_a_timer_is_refused(self, host: Host) -> None:
        with pytest.raises(HostError) as refusal:
            deadman.confirm(host.paths, host.systemd)
        assert refusal.value.code == "deadman-not-armed"
        assert not deadman.status(host.paths, host.systemd)["timer"]


class TestUnits:
    def test_show_output_is_parsed_in_the_requested_order(self) -> None:
        text = (
            "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\n\n"
            "LoadState=not-found\nActiveState=inactive\nUnitFileState=\n"
        )
        assert states_of_show(text, ["b.service", "a.service"]) == {
            "b.service": UnitStatus(True, "active", "enabled"),
            "a.service": UnitStatus(False, "inactive", ""),
        }

    def test_template_of_returns_the_template_name(self) -> None:
        assert template_of("microvm-slot@2.service") == "microvm-slot@.service"
        assert template_of("master-controller-next@20250101_0-a.b.service") == (
            "master-controller-next@.service"
        )
        assert template_of("a.service") is None

    def test_last_drop_in_decides_the_wanted_config(self, paths: Paths) -> None:
        put(paths.units / "a@.service", unit_text("template"))
        assert wanted_config(paths, "a@1.service") == "template"
        put(paths.units / "a@.service.d" / "x.conf", unit_text("beside"))
        assert wanted_config(paths, "a@1.service") == "beside"
        put(paths.units / "a@1.service.d" / "x.conf", "[Unit]\n")
        assert wanted_config(paths, "a@1.service") == "beside"
        assert wanted_config(paths, "b.service") is None

    def test_has_files_among_finds_units_and_drop_ins(self, paths: Paths) -> None:
        def has(place: str) -> bool:
            return has_files_among(paths, "ssh.service", [paths.units / place])

        assert has("ssh.service")
        assert has("ssh.service.d/x.conf")
        assert has("ssh.service.d")
        assert not has("ssh.socket")

    def test_unit_with_another_stamp_is_outdated(self, paths: Paths) -> None:
        put(paths.units / "a.service", unit_text("2"))
        put(paths.units / "a.socket", unit_text("2"))
        assert is_outdated(paths, "a.service", [])
        assert not is_outdated(paths, "a.socket", []), "a socket need not write a stamp"
        assert is_outdated(paths, "a.socket", [paths.units / "a.socket"])
        put(paths.stamps / "a.service", "2\n")
        assert not is_outdated(paths, "a.service", [paths.units / "a.service"])
        # Without a hash in its files, only changed files make the unit outdated.
        put(paths.units / "b.service", "[Unit]\n")
        put(paths.stamps / "b.service", "2\n")
        assert not is_outdated(paths, "b.service", [])
        assert is_outdated(paths, "b.service", [paths.units / "b.service"])


def test_listing_shows_links_and_database_content_hash(host: Host) -> None:
    listed = {Path(str(each["path"])): each for each in list_scope(host.scope)}
    assert list(listed) == sorted(listed)
    assert listed[host.controller.current]["target"]
    assert listed[host.store / "golden-rootfs.ext4"]["target"]
    config = listed[host.paths.controller_config / "config.yaml"]
    assert config["mode"] == "0640"
    assert len(str(config["sha256"])) == 64
    assert listed[host.paths.controller_config / "secrets"]["kind"] == "folder"
    before = listed[host.controller.database]["sha256"]
    host.execute("VACUUM")
    assert list_scope(host.scope) == list(listed.values())
    host.execute("DELETE FROM notes")
    assert before not in [each.get("sha256") for each in list_scope(host.scope)]


class TestCommandLine:
    def call(
        self, capsys: pytest.CaptureFixture[str], *words: str | Path
    ) -> tuple[int, dict[str, object]]:
        status = cli.main([str(word) for word in words])
        return status, json.loads(capsys.readouterr().out)

    def test_result_is_one_json_document(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert self.call(capsys, "--root", tmp_path, "lock", "show") == (
            0,
            {"lock": None, "held": False},
        )

    def test_refusal_is_one_json_document(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        status, document = self.call(capsys, "--root", tmp_path, "restore", "--id", FIRST)
        assert status == 1
        assert document.keys() == {"error", "message", "hint"}
        assert document["error"] == "backup-missing"

    @pytest.mark.parametrize(
        "words", [[], ["nonsense"], ["lock"], ["lock", "nonsense"], ["restore"], ["restore", "-x"]]
    )
    def test_unknown_arguments_are_a_usage_error(
        self, capsys: pytest.CaptureFixture[str], words: list[str]
    ) -> None:
        status, document = self.call(capsys, *words)
        assert (status, document["error"]) == (1, "usage")

    def test_malformed_stdin_is_a_bad_input_error(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for text in ("", "[]", "{"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            status, document = self.call(capsys, "--root", tmp_path, "record", "write")
            assert (status, document["error"]) == (1, "bad-input")

    def test_unexpected_exception_is_an_internal_error(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        put(tmp_path / "opt/polydev-ai/deadman.json", "[]")
        status, document = self.call(capsys, "--root", tmp_path, "deadman", "confirm")
        assert (status, document["error"]) == (1, "internal")
        assert "deadman.json holds no JSON object" in str(document["message"])

    def test_full_disk_is_a_no_space_error(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(_: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        status, document = self.call(capsys, "--root", tmp_path, "lock", "break")
        assert (status, document["error"]) == (1, "no-space")

    def test_every_verb_has_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        for verb in cli.verbs_of(None):
            with pytest.raises(SystemExit) as end:
                cli.main([*verb.words.split(), "--help"])
            assert end.value.code == 0
            assert verb.help.split()[0] in capsys.readouterr().out


def test_no_function_imports_polydev_modules() -> None:
    """A restore may replace the running tool's file by another version."""
    later = []
    for path in Path(hosttool.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                imports = [each for each in ast.walk(node) if "Import" in type(each).__name__]
                later += [f"{path.stem}: {ast.unparse(each)}" for each in imports]
    assert [each for each in later if "polydev" in each or "importlib" in each] == []


def test_verbs_of_a_noun_are_in_one_module() -> None:
    nouns = [noun for of_module in cli.NOUNS.values() for noun in of_module]
    assert sorted(nouns) == sorted({verb.words.split()[0] for verb in cli.verbs_of(None)})
    for noun in nouns:
        assert noun in {verb.words.split()[0] for verb in cli.verbs_of(noun)}


def test_packed_file_is_reproducible(tmp_path: Path) -> None:
    source = Path(hosttool.__file__).parent
    packed = zipapp_bytes(source)
    assert packed.startswith(SHEBANG)
    put(tmp_path / "hosttool" / "__pycache__" / "x.pyc", "no")
    for path in sorted(source.glob("*.py"), reverse=True):
        put(tmp_path / "hosttool" / path.name, path.read_text(), 0o600)
    for name in SHARED:
        put(tmp_path / name, (source.parent / name).read_text(), 0o600)
    assert zipapp_bytes(tmp_path / "hosttool") == packed
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        listed = archive.namelist()
    assert listed == sorted(listed)
    assert {"__main__.py", "polydev/__init__.py", "polydev/hosttool/cli.py"} <= set(listed)
    assert all(name.endswith(".py") for name in listed)


class TestEndingTheLockHolder:
    """The signals that the holder of the lock gets, in order; a stopped one must go on to end."""

    def ended_by(
        self, monkeypatch: pytest.MonkeyPatch, *, ends: bool, is_there: bool = True
    ) -> list[int]:
        sent: list[int] = []
        monkeypatch.setattr(deployment_lock, "is_alive", lambda _: is_there)
        monkeypatch.setattr(deployment_lock, "_ended", lambda *_: ends)
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda _, number: sent.append(number))
        before = len(list(Path("/proc/self/fd").iterdir()))
        deployment_lock._end({"pid": os.getpid()})
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        return sent

    def test_holder_that_ends_is_not_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ended_by(monkeypatch, ends=True) == [signal.SIGTERM, signal.SIGCONT]

    def test_holder_that_does_not_end_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sent = self.ended_by(monkeypatch, ends=False)
        assert sent == [signal.SIGTERM, signal.SIGCONT, signal.SIGKILL, signal.SIGCONT]

    def test_other_process_gets_no_signal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.ended_by(monkeypatch, ends=False, is_there=False) == []

    def test_missing_process_is_ignored(self) -> None:
        deployment_lock._end({"pid": 2**22 + 1})


def test_lock_hold_prints_at_once_that_it_has_the_lock(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line must be flushed at once; the next holder must see a lock that was not released."""
    said: list[str] = []

    class Stdout(io.StringIO):
        def flush(self) -> None:
            said.append(self.getvalue())

    ends = {lock_verbs._End.RELEASED: None, lock_verbs._End.GONE: WHO, lock_verbs._End.EXPIRED: WHO}
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    stdin = SimpleNamespace(fileno=lambda: 0)
    monkeypatch.setattr(sys, "stdin", stdin)
    for end, left in ends.items():
        said.clear()
        monkeypatch.setattr(sys, "stdout", Stdout())
        monkeypatch.setattr(lock_verbs, "_listen", lambda *_, end=end: end)
        if end is lock_verbs._End.EXPIRED:
            with pytest.raises(HostError, match="nobody renewed it for 60 s") as told:
                lock_verbs.hold_lock(paths, 60, WHO, again=False)
            assert told.value.code == "lock-expired"
        else:
            assert lock_verbs.hold_lock(paths, 60, WHO, again=False) is None
        assert json.loads(said[0])["lock"]["owner"] == "ada@desk"
        shown: Any = deployment_lock.show(paths)
        assert shown["held"] is False
        assert (shown["lock"] and shown["lock"]["owner"]) == (left and left["owner"])


def test_lock_hold_resets_ignored_signals(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(signal, "signal", lambda *words: told.append(words))
    monkeypatch.setattr(lock_verbs, "HeldLock", lambda *_, **__: sys.exit(0))
    with pytest.raises(SystemExit):
        lock_verbs.hold_lock(paths, 60, WHO, again=False)
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)
    assert told == [(number, signal.SIG_DFL) for number in numbers]


def test_the_packed_file_can_be_run(tmp_path: Path) -> None:
    zipapp.main([str(tmp_path / "tool")])
    assert (tmp_path / "tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "tool").read_bytes() == zipapp_bytes(Path(hosttool.__file__).parent)


def test_backup_verify_detects_damage(host: Host) -> None:
    kept = host.backup()
    words = ["backup", "verify", "--id", FIRST]
    call = Call(cli.parser(words).parse_args(words), host.paths, host.systemd)
    assert call.arguments.verb.run(call)["whole"] is True
    next((kept.folder / "files").iterdir()).write_bytes(b"flipped")
    with pytest.raises(HostError) as told:
        call.arguments.verb.run(call)
    assert told.value.code == "backup-damaged"


def test_records_ignore_missing_folder_and_other_files(paths: Paths) -> None:
    assert deployment_records.records(paths) == []
    put(paths.records / "notes.json", "{}")
    put(paths.records / f"{FIRST}.txt", "{}")
    assert deployment_records.records(paths) == []
