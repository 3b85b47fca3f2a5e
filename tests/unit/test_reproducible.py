"""Removal of differences between two builds from a layer's tree."""

from __future__ import annotations

import os
from pathlib import Path

from polydev.image.reproducible import clamp_times, scrub
from tests.unit.test_file_listing import EPOCH, fill


def test_scrub_removes_traces_of_time_and_machine(tmp_path: Path) -> None:
    kept = ["etc/passwd", "var/lib/dpkg/status", "var/log/journal/keep", "usr/lib/tmp/keep"]
    gone = ["etc/passwd-", "run/lock/a", "tmp/.hidden", "var/lib/apt/lists/a", "var/log/dpkg.log"]
    gone += ["var/log/wtmp", "var/lib/dpkg/status-old", "var/lib/systemd/random-seed"]
    fill(tmp_path, *kept, *gone)
    (tmp_path / "tmp/link").symlink_to("/etc")
    scrub(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_clamp_times_limits_times_to_the_epoch(tmp_path: Path) -> None:
    fill(tmp_path, "new", "old", "folder/new")
    (tmp_path / "link").symlink_to("gone")
    os.utime(tmp_path / "old", (5, 5))
    clamp_times(tmp_path, EPOCH)
    times = {path.name: os.lstat(path).st_mtime for path in [tmp_path, *tmp_path.rglob("*")]}
    assert times.pop("old") == 5
    assert set(times.values()) == {EPOCH}
