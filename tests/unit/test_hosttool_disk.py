"""The host tool syncs files before it names them, and syncs the names soon after.

The kill tests end processes; these tests simulate a power cut.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polydev import durable_files
from polydev.hosttool import backup, deadman, deployment_records
from polydev.hosttool.database_dump import make_dump
from polydev.hosttool.deployment_counter import next_number
from polydev.hosttool.golden_link import make_golden
from polydev.hosttool.release_handover import Handover
from polydev.hosttool.run_controller_command import ControllerProgram
from polydev.hosttool.systemd import UnitTimeouts
from tests.diskwork import watched_disk
from tests.unit.hosttool_host import FIRST, NEW, OLD, SECOND, Host, deploy, put


def test_sync_closes_its_descriptor(tmp_path: Path) -> None:
    durable_files.sync(tmp_path)
    opened = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert tmp_path not in opened


def changed(host: Host) -> None:
    """Make a backup, then change everything as another deployment does."""
    host.backup()
    deploy(host, "2", NEW, "b" * 64)


def lost(host: Host) -> None:
    """Make a backup, then delete everything in its scope."""
    host.backup()
    etc = host.root / "etc" / "polydev"
    durable_files.remove(etc)
    host.controller.database.unlink()


def grown(host: Host) -> None:
    """Make a backup without a database, then add the database."""
    host.controller.database.unlink()
    host.backup()
    host.execute("CREATE TABLE notes (text)")


def touched(host: Host) -> None:
    """Make a backup, then change the modes in its scope."""
    host.backup()
    for path in (host.root / "etc" / "polydev" / "dns.conf", host.controller.database):
        path.chmod(0o666)


def released(host: Host) -> None:
    host.release(NEW)


def kept_twice(host: Host) -> None:
    host.backup()
    host.backup(SECOND)


def another_image(host: Host) -> None:
    deploy(host, "2", NEW, "b" * 64)
    put(host.store / "images" / ("a" * 64) / "record.json", "{}")


def nothing(host: Host) -> None:
    """Change nothing."""


def hand_over(host: Host) -> object:
    return Handover(host.systemd, host.controller.root, UnitTimeouts()).to(NEW)


def write_record(host: Host) -> object:
    return deployment_records.write(host.paths, {"id": FIRST, "status": "running"})


def arm(host: Host) -> object:
    return deadman.arm(host.paths, host.systemd, FIRST, 90)


class DumpingProgram(ControllerProgram):
    """A release whose `database backup` writes a file, as the controller's user may."""

    def own(self, path: Path) -> None:
        """Skip the change of the owner."""

    def ask(
        self, *words: str, code: str = "", database_url: str | None = None
    ) -> dict[str, object]:
        assert words[:2] == ("database", "backup")
        Path(words[2]).write_text("a dump")
        return {"revision": "0003"}


def test_dump_is_synced_to_disk(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup itself syncs only files that it writes."""
    folder = host.root / "backup"
    folder.mkdir()
    host.paths.home.mkdir(parents=True)
    with watched_disk(monkeypatch) as work:
        dump = make_dump(DumpingProgram(host.paths, host.controller.release(OLD)), folder)
    assert dump.stored.read_text() == "a dump"
    assert work.has_synced(dump.stored)


Prepare = Callable[[Host], None]
Verb = Callable[[Host], object]
VERBS: dict[str, tuple[Prepare, Verb]] = {
    "backup": (nothing, lambda host: host.backup()),
    "restore": (changed, lambda host: host.restore()),
    "restore of what was lost": (lost, lambda host: host.restore()),
    "restore of no database": (grown, lambda host: host.restore()),
    "restore of modes": (touched, lambda host: host.restore()),
    "restore for the dead man": (changed, lambda host: host.restore(reach=True)),
    "backup prune": (kept_twice, lambda host: backup.prune(host.paths, keep=1)),
    "handover": (released, hand_over),
    "record": (nothing, write_record),
    "number": (nothing, lambda host: next_number(host.paths)),
    "dead man": (changed, arm),
    "golden": (another_image, lambda host: make_golden("a" * 64, host.store)),
}


@pytest.mark.parametrize("name", VERBS)
def test_verbs_sync_files_in_a_safe_order(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prepare, verb = VERBS[name]
    prepare(host)
    # The freed disk reserve may reappear.
    with watched_disk(monkeypatch, frozenset({"reserve"})) as work:
        verb(host)
    assert work.synced
    assert work.faults() == []
