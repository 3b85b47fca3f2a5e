"""The order of steps that make, start, save, reset and end a lab, and the locks they hold.

Functions that start and end containers are fakes; tests/integration/test_lab.py has real ones.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polydev.errors import ConfigError, LabError
from polydev.lab import lifecycle
from polydev.lab.addresses import link_of
from polydev.lab.lab_record import Lab, read_lab
from polydev.progress import Steps
from polydev.settings import Settings

NAME = "one"
STARTED = ["lock machine", "kill", "start", "unlock machine", "login"]
MADE = ["lock machine", "files", *STARTED[1:]]


class Machine:
    """A record of actions on labs; `runs` tells whether the lab runs."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(store=folder / "s", cache=folder / "cache", state=folder)
        self.folder = folder / "labs" / NAME
        self.root = folder / "root"
        self.root.mkdir()
        self.log: list[str] = []
        self.runs = False
        self.lets_in = True
        self.link_is_of: str | None = None

    def lab(self) -> Lab:
        """Make a lab that is powered off."""
        made = Lab(
            name=NAME,
            folder=self.folder,
            root=self.root,
            address="198.51.100.2",
            gateway="198.51.100.1",
        )
        made.upper.mkdir(parents=True)
        (made.upper / "written").touch()
        made.write()
        return made

    @contextmanager
    def locked(self, file: Path) -> Iterator[None]:
        name = "machine" if file == lifecycle.MACHINE_LOCK else "lab"
        assert name == "machine" or file == self.folder.with_name(f"{NAME}.lock")
        self.log.append(f"lock {name}")
        try:
            yield
        finally:
            self.log.append(f"unlock {name}")

    def start(self, lab: Lab) -> Lab:
        self.log.append("start")
        self.runs = True
        return lab

    def end(self, how: str) -> None:
        self.log.append(how)
        self.runs = False

    def wait_login(self, _: Lab) -> None:
        self.log.append("login")
        if not self.lets_in:
            raise LabError("nobody is let in")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(lifecycle, "_locked", made.locked)
    monkeypatch.setattr(lifecycle, "start", made.start)
    monkeypatch.setattr(lifecycle, "kill", lambda _: made.end("kill"))
    monkeypatch.setattr(lifecycle, "power_off", lambda *_: made.end("power off"))
    monkeypatch.setattr(lifecycle, "_wait_login", made.wait_login)
    monkeypatch.setattr(lifecycle, "write_lab_files", lambda _: made.log.append("files"))
    monkeypatch.setattr(lifecycle, "lay_folder", lambda lab, path: lab.upper / path)
    monkeypatch.setattr(lifecycle, "_check_programs", lambda: None)
    monkeypatch.setattr(lifecycle, "ready_root", lambda *_: made.root)
    monkeypatch.setattr(lifecycle, "networks_in_use", list)
    monkeypatch.setattr(lifecycle, "link_owner", lambda _: made.link_is_of)
    monkeypatch.setattr(Lab, "running", lambda _: made.runs)
    return made


def up(machine: Machine) -> object:
    return lifecycle.up(NAME, machine.settings, Steps())


# Name, action, whether a lab exists and runs, and the steps while its lock is held.
COURSES: list[tuple[str, Callable[[Machine], object], bool, bool, list[str]]] = [
    ("up of none", up, False, False, MADE),
    ("up of one powered off", up, True, False, STARTED),
    ("up of one that runs", up, True, True, ["login"]),
    (
        "restart",
        lambda machine: lifecycle.restart(NAME, machine.settings),
        True,
        True,
        ["power off", *STARTED],
    ),
    (
        "restart of one powered off",
        lambda machine: lifecycle.restart(NAME, machine.settings),
        True,
        False,
        STARTED,
    ),
    (
        "save",
        lambda machine: lifecycle.save(NAME, machine.settings),
        True,
        True,
        ["power off", *STARTED],
    ),
    (
        "down",
        lambda machine: lifecycle.down(NAME, machine.settings),
        True,
        True,
        ["lock machine", "kill", "unlock machine"],
    ),
    ("down of none", lambda machine: lifecycle.down(NAME, machine.settings), False, False, []),
]


@pytest.mark.parametrize(
    ("do", "is_made", "runs", "course"),
    [row[1:] for row in COURSES],
    ids=[row[0] for row in COURSES],
)
def test_steps_of_each_verb_run_in_order(
    do: Callable[[Machine], object], is_made: bool, runs: bool, course: list[str], machine: Machine
) -> None:
    if is_made:
        machine.lab()
    machine.runs = runs
    do(machine)
    assert machine.log == ["lock lab", *course, "unlock lab"]


@pytest.mark.parametrize("verb", [lifecycle.restart, lifecycle.save, lifecycle.reset])
def test_verbs_without_a_lab_are_refused(
    verb: Callable[[str, Settings], object], machine: Machine
) -> None:
    with pytest.raises(LabError, match="there is no lab one"):
        verb(NAME, machine.settings)


def test_reset_returns_to_the_saved_files(machine: Machine) -> None:
    lab = machine.lab()
    with pytest.raises(LabError, match="no files of lab one were saved"):
        lifecycle.reset(NAME, machine.settings)
    assert lab.lower == [lab.root]
    lifecycle.save(NAME, machine.settings)
    assert (lab.saved / "written").exists()
    assert lab.lower == [lab.saved, lab.root]
    assert not (lab.upper / "written").exists()
    with pytest.raises(LabError, match="saved before"):
        lifecycle.save(NAME, machine.settings)
    (lab.upper / "later").touch()
    machine.log.clear()
    lifecycle.reset(NAME, machine.settings)
    assert machine.log == ["lock lab", "power off", *STARTED, "unlock lab"]
    assert not (lab.upper / "later").exists()
    assert (lab.saved / "written").exists()


def test_down_removes_the_lab(machine: Machine) -> None:
    machine.lab()
    assert lifecycle.down(NAME, machine.settings) is True
    assert not machine.folder.exists()
    assert lifecycle.down(NAME, machine.settings) is False


def test_new_lab_that_refuses_login_is_removed(machine: Machine) -> None:
    machine.lets_in = False
    with pytest.raises(LabError, match="nobody is let in"):
        up(machine)
    assert machine.log[-5:] == ["kill", "lock machine", "kill", "unlock machine", "unlock lab"]
    assert not machine.folder.exists()


def test_existing_lab_that_refuses_login_keeps_its_files(machine: Machine) -> None:
    lab, machine.lets_in = machine.lab(), False
    with pytest.raises(LabError, match="nobody is let in"):
        up(machine)
    assert machine.log[-2:] == ["kill", "unlock lab"]
    assert (lab.upper / "written").exists()


def test_network_link_of_another_lab_is_not_taken(machine: Machine) -> None:
    machine.lab()
    machine.link_is_of = "/elsewhere/one"
    with pytest.raises(LabError, match="another lab one runs on this machine: /elsewhere/one"):
        up(machine)
    assert "kill" not in machine.log
    assert lifecycle.down(NAME, machine.settings) is True
    assert "kill" not in machine.log


@pytest.mark.parametrize("owner", [None, "", "own"])
def test_own_network_link_is_reused(owner: str | None, machine: Machine) -> None:
    machine.lab()
    machine.link_is_of = str(machine.folder) if owner == "own" else owner
    up(machine)
    assert "start" in machine.log


def test_addresses_used_by_other_networks_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = machine.lab()
    monkeypatch.setattr(lifecycle, "networks_in_use", lambda: [link_of(lab.address)])
    with pytest.raises(LabError, match="other networks use the addresses"):
        up(machine)
    assert "start" not in machine.log


def test_missing_root_is_reported(machine: Machine) -> None:
    machine.lab()
    machine.root.rmdir()
    with pytest.raises(LabError, match="is missing"):
        up(machine)
    assert "start" not in machine.log


def test_new_lab_gets_unused_addresses(machine: Machine) -> None:
    up(machine)
    made = read_lab(machine.folder)
    assert made is not None
    (machine.folder.parent / "two").mkdir()
    other = machine.folder.parent / "two"
    second = lifecycle._make(other, machine.settings, "bookworm", machine.root)
    assert link_of(second.address) != link_of(made.address)


def test_find_returns_running_labs_only(machine: Machine) -> None:
    assert lifecycle.find(NAME, machine.settings) is None
    lab = machine.lab()
    assert lifecycle.find(NAME, machine.settings) is None
    machine.runs = True
    assert lifecycle.find(NAME, machine.settings) == lab


def test_lock_is_held_during_the_work(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with file.open("w") as another:
        with lifecycle._locked(file), pytest.raises(BlockingIOError):
            fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(another, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "nsenter" else name)
    with pytest.raises(ConfigError, match=r"labs need are missing: nsenter$"):
        lifecycle._check_programs()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    lifecycle._check_programs()


@pytest.mark.parametrize(
    "program", ["systemd-nspawn", "slirp4netns", "mmdebstrap", "ssh", "nsenter", "unshare"]
)
def test_each_program_is_required(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else name)
    with pytest.raises(ConfigError, match=f"labs need are missing: {program}"):
        lifecycle._check_programs()
