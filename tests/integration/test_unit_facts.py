"""The commands of the unit facts, run by the shells of different hosts.

The dash of Debian 13 and bash say that a file is newer than one that is not there; the dash of
Debian 12 says that it is not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from polydev.host_setup import facts
from polydev.host_setup.facts import UnitFact
from polydev.processes import run


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(facts, "STAMPS", str(tmp_path))
    path = tmp_path / "x.target"
    path.write_text("[Unit]\n")
    return path


def touched(shell: str, unit: str, file: Path) -> bool:
    sums = ((str(file), hashlib.sha256(file.read_bytes()).hexdigest()),)
    # Whether systemd runs on this machine does not matter here.
    said = run([shell, "-c", UnitFact().command(unit, files=sums)], check=False).stdout
    return UnitFact().process(said.splitlines()).touched


@pytest.mark.parametrize("shell", ["sh", "bash"])
class TestUnit:
    def test_unit_without_stamp_is_not_touched(self, shell: str, file: Path) -> None:
        assert not touched(shell, "polydev-none.target", file)

    @pytest.mark.parametrize(("stamped_later", "is_touched"), [(10, False), (-10, True)])
    def test_unit_with_file_newer_than_stamp_is_touched(
        self, shell: str, file: Path, stamped_later: int, is_touched: bool
    ) -> None:
        stamp = file.with_name("polydev-none.service")
        stamp.touch()
        made = file.stat().st_mtime + stamped_later
        os.utime(stamp, (made, made))
        assert touched(shell, stamp.name, file) is is_touched
