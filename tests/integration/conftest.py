"""Shared fixtures: an ssh to this machine, and a check that tests leave nothing behind."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polydev.processes import run
from polydev.progress import Steps
from polydev.settings import Settings
from tests.oidc.provider import Provider, oidc_packages, provider

# The command is the last word; with `-O exit` there is none.
SSH = """#!/bin/sh
if [ -e "$0.cut" ]; then echo 'connection refused' >&2; exit 255; fi
for word in "$@"; do [ "$word" != -O ] || exit 0; command=$word; done
exec sh -c "$command"
"""
END_PATIENCE_SECONDS = 60
SUDO = '#!/bin/sh\n[ "$1" = -n ] || exit 1\nshift\nexec "$@"\n'


@pytest.fixture
def play(tmp_path: Path, packed_assets: Path) -> Callable[..., None]:
    """Play a scenario on a site of its own, with a real screen and Chromium."""
    from tests.web import player  # dear to import, and for tests of pages only

    return player(tmp_path, packed_assets)


@pytest.fixture(scope="module")
def oidc_provider(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Provider]:
    """A certified OpenID provider on this machine."""
    packages = oidc_packages(settings.cache, Steps())
    with provider(packages, tmp_path_factory.mktemp("oidc")) as found:
        yield found


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
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of programs before the machine's own: an ssh to this machine, and its sudo."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"ssh": SSH, "sudo": SUDO}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def nothing_left(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Give temporary files a folder of their own; fail the test if anything of it is left.

    Processes of other tests and other people's VMs do not count. Killed processes take a moment
    to disappear.
    """
    everything = tmp_path_factory.getbasetemp()
    before = set(leftovers(everything))
    own = tmp_path_factory.mktemp("t")
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    yield
    deadline = time.monotonic() + END_PATIENCE_SECONDS
    while left := [
        *(each for each in leftovers(everything) if each not in before),
        *(f"file {path}" for path in own.iterdir()),
    ]:
        assert time.monotonic() < deadline, "left over:\n" + "\n".join(left)
        time.sleep(0.1)
