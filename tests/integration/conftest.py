"""What tests with real processes share: a check that they leave nothing behind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polydev.run import run


def leftovers(folder: Path) -> list[str]:
    """Processes, mounts and loop devices that name something below `folder`."""
    mark = str(folder)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:  # ended just now
            continue
        if mark in line:
            found.append(f"process {path.parent.name}: {line[:200]}")
    mounts = Path("/proc/mounts").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if mark in line]
    loops = run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"]).stdout
    found += [f"loop device {line}" for line in loops.splitlines() if mark in line]
    return found


@pytest.fixture
def nothing_left(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Temporary files get a folder of their own; the test fails if anything stays of it.

    What other tests keep running on purpose does not count, nor do other people's VMs.
    """
    everything = tmp_path_factory.getbasetemp()
    before = set(leftovers(everything))
    own = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    yield
    left = [each for each in leftovers(everything) if each not in before]
    left += [f"file {path}" for path in own.iterdir()]
    assert not left, "left over:\n" + "\n".join(left)
