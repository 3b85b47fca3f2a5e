"""The doctor's rules about the operator's machine."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from polydev.client.doctor_findings import (
    GIB,
    DiskSpace,
    DoctorFinding,
    Room,
    has_problem,
    qemu_finding,
    space_finding,
    version_of,
)
from polydev.client.operator_machine_checks import (
    MachineFacts,
    kvm_finding,
    leftovers_findings,
    machine_findings,
    packages_finding,
    python_finding,
    rights_finding,
    wanted_packages,
)
from polydev.processes import Orphan
from polydev.vm.temp_folders import abandoned_temp_folders, temp_folder

SOUND = MachineFacts(
    packages={"git": "1:2.39", "rsync": "3.2"},
    python=(3, 11, 2),
    is_root=True,
    qemu="QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)",
    kvm_device=True,
    accelerator="kvm",
    store=DiskSpace(100 * GIB, 50 * GIB),
    cache=DiskSpace(100 * GIB, 50 * GIB),
)
ROOM = Room(least=2 * GIB, enough=8 * GIB)


def test_healthy_machine_has_no_findings() -> None:
    found = machine_findings(SOUND)
    assert {(finding.state, finding.todo) for finding in found} == {("ok", None)}
    assert not has_problem(found)
    names = ["packages", "Python", "rights", "QEMU", "KVM", "room for images", "room for builds"]
    assert [finding.name for finding in found] == names


def test_every_finding_that_is_not_ok_has_a_todo() -> None:
    ill = MachineFacts(
        packages={"git": None},
        python=(3, 9, 2),
        is_root=False,
        qemu=None,
        kvm_device=False,
        accelerator=None,
        store=None,
        cache=DiskSpace(GIB, 1),
    )
    found = machine_findings(ill)
    assert all(finding.state != "ok" and finding.todo for finding in found)
    assert has_problem(found)


def test_missing_packages_are_named_with_the_install_command() -> None:
    finding = packages_finding({"git": "1:2.39", "rsync": None, "kmod": None})
    assert (finding.state, finding.found) == ("problem", "missing: rsync, kmod")
    assert "apt-get install --no-install-recommends rsync kmod" in str(finding.todo)


def test_machine_without_dpkg_is_a_problem() -> None:
    assert packages_finding(None).state == "problem"


def test_package_list_is_read_without_comments() -> None:
    text = "# what\n\ncpio      # packs\ngit\n"
    assert wanted_packages(text) == ["cpio", "git"]


@pytest.mark.parametrize(("version", "state"), [((3, 9, 9), "problem"), ((3, 10, 0), "ok")])
def test_python_must_be_new_enough(version: tuple[int, int, int], state: str) -> None:
    assert python_finding(version).state == state


def test_not_being_root_is_a_warning() -> None:
    assert rights_finding(is_root=False).state == "warning"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", "ok"),
        ("QEMU emulator version 6.2.0", "ok"),
        ("QEMU emulator version 5.2.0", "warning"),
        ("cannot execute", "problem"),
        (None, "problem"),
    ],
)
def test_qemu_must_be_installed_and_new_enough(said: str | None, state: str) -> None:
    assert qemu_finding("here", said, "install it").state == state


def test_version_of_finds_the_first_version() -> None:
    assert version_of("QEMU emulator version 7.2.22 (Debian 1:7.2)") == (7, 2, 22)
    assert version_of("no digits. here") is None


@pytest.mark.parametrize(
    ("device", "accelerator", "words"),
    [
        (False, "tcg", "/dev/kvm is missing or not accessible"),
        (True, "tcg", "no VM boots under it"),
        (True, None, "not tried yet"),
    ],
)
def test_kvm_is_ok_only_if_a_vm_booted_with_it(
    device: bool, accelerator: str | None, words: str
) -> None:
    facts = replace(SOUND, kvm_device=device, accelerator=accelerator)  # type: ignore[arg-type]
    finding = kvm_finding(facts)
    assert finding.state == "warning"
    assert words in finding.found


@pytest.mark.parametrize(("free", "state"), [(9, "ok"), (7, "warning"), (1, "problem")])
def test_low_disk_space_is_a_warning_then_a_problem(free: int, state: str) -> None:
    finding = space_finding("here", "room", DiskSpace(100 * GIB, free * GIB), ROOM, "make room")
    assert finding.state == state
    assert finding.found.startswith(f"{free}.0 GiB of 100.0 GiB free")


def test_unreadable_disk_is_a_warning() -> None:
    assert space_finding("here", "room", None, ROOM, "make room").state == "warning"


def test_finding_as_dict_has_all_fields() -> None:
    finding = DoctorFinding("here", "what", "ok", "found")
    assert finding.as_dict() == {
        "where": "here",
        "name": "what",
        "state": "ok",
        "found": "found",
        "todo": None,
    }


def test_leftovers_are_named_with_commands_to_remove_them(tmp_path: Path) -> None:
    (finding,) = leftovers_findings([Orphan(7, ("qemu", "-m", "1"))], [tmp_path])
    assert finding.state == "warning"
    assert finding.found == (
        f"left by work that was killed: process 7 (qemu -m 1), folder {tmp_path}"
    )
    assert finding.todo == "kill -KILL 7, then ./inv golden.prune"
    assert leftovers_findings([], [tmp_path])[0].todo == "./inv golden.prune"
    assert leftovers_findings([], []) == []


def test_temp_folder_of_an_ended_process_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temp_folder() as held:
        left = tmp_path / f"{held.name}-left"
        left.mkdir()
        (left / "disk.qcow2").touch()
        (tmp_path / f"{held.name}-link").symlink_to(left)
        assert abandoned_temp_folders() == [left]
        assert abandoned_temp_folders(remove=True) == [left]
        assert held.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [f"{held.name}-link"]
