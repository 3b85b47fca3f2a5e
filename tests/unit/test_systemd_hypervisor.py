"""VMs as systemd units: the hypervisor's calls to systemd, and the files that it keeps."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from polydev.controller.machines.hypervisor import Launch, SlotState
from polydev.controller.machines.systemd_bus import (
    SystemdBus,
    UnitActivity,
    end_in_words,
    unit_path,
)
from polydev.controller.machines.systemd_hypervisor import SystemdHypervisor
from polydev.controller.settings import ControllerSettings, VmSettings
from polydev.errors import FilesLeft, VmError
from polydev.vm.launch_file import read_launch_file

DIGEST = "d" * 64
UNIT = "microvm@2.service"


class Units(SystemdBus):
    """A systemd whose jobs succeed; `ends` holds the results of the next jobs."""

    def __init__(self) -> None:
        self.states: dict[str, UnitActivity] = {}
        self.asked: list[str] = []
        self.ends: list[tuple[str, UnitActivity]] = []

    async def start(self, unit: str) -> str:
        return self._ended("start", unit, UnitActivity("active", 7))

    async def stop(self, unit: str) -> str:
        return self._ended("stop", unit, UnitActivity("inactive", detail="exit-code 0"))

    async def reset_failed(self, unit: str) -> None:
        self.asked.append(f"reset {unit}")
        self.states.pop(unit)

    async def state(self, unit: str) -> UnitActivity:
        return self.states.get(unit, UnitActivity("inactive"))

    async def units(self, pattern: str) -> list[str]:
        assert pattern == "microvm@*.service"
        return [unit for unit, state in self.states.items() if state.active != "inactive"]

    def _ended(self, verb: str, unit: str, state: UnitActivity) -> str:
        self.asked.append(f"{verb} {unit}")
        result, self.states[unit] = self.ends.pop(0) if self.ends else ("done", state)
        return result


class Site:
    """A host with slots 2 and 3."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for slot in (2, 3):
            (root / str(slot)).mkdir()
        self.units = Units()
        settings = ControllerSettings(
            vm_root=root, image_store=Path("/store"), vm=VmSettings(cpus=3)
        )
        self.hypervisor = SystemdHypervisor(settings, self.units)

    def start(self, vm_id: str = "one", slot: int = 2) -> None:
        asyncio.run(self.hypervisor.start(Launch(vm_id, slot, DIGEST, "mine")))

    def stop(self) -> None:
        asyncio.run(self.hypervisor.stop(2))

    def poll(self) -> SlotState:
        return asyncio.run(self.hypervisor.poll(2))

    def discard(self, vm_id: str = "one", *, keep_logs: bool = False) -> None:
        asyncio.run(self.hypervisor.discard(2, vm_id, keep_logs=keep_logs))

    def left(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


class TestStart:
    def test_start_writes_the_launch_file_in_the_current_folder(self, site: Site) -> None:
        site.start()
        assert site.units.asked == [f"start {UNIT}"]
        current = site.root / "2" / "current"
        launch_file = read_launch_file(current / "launch.json")
        assert str(current.readlink()) == launch_file.vm_id == "one"
        assert (launch_file.image, launch_file.image_digest) == (f"/store/images/{DIGEST}", DIGEST)
        assert (launch_file.session_id, launch_file.cpus, launch_file.memory_mib) == (
            "mine",
            3,
            2048,
        )

    def test_start_completes_an_interrupted_start(self, site: Site) -> None:
        site.start()
        (site.root / "2" / "current").rename(site.root / "2" / ".current")
        site.units.states.pop(UNIT, None)
        site.start()
        assert site.left() == ["2", "2/current", "2/one", "2/one/launch.json", "3"]

    def test_vm_folder_is_accessible_to_its_user_only(self, site: Site) -> None:
        site.start()
        folder = site.root / "2" / "one"
        assert folder.stat().st_mode & 0o777 == 0o770
        assert (folder / "launch.json").stat().st_mode & 0o777 == 0o644

    def test_running_vm_is_not_started_again(self, site: Site) -> None:
        site.start()
        (site.root / "2" / "one" / "launch.json").unlink()
        site.start()
        assert site.units.asked == [f"start {UNIT}"]
        assert "2/one/launch.json" not in site.left()

    def test_starting_vm_is_awaited(self, site: Site) -> None:
        site.start()
        site.units.states[UNIT] = UnitActivity("activating")
        site.start()
        assert site.units.asked == [f"start {UNIT}"] * 2

    @pytest.mark.parametrize("active", ["active", "activating", "deactivating"])
    def test_slot_of_another_vm_is_refused(self, site: Site, active: str) -> None:
        site.start()
        site.units.states[UNIT] = UnitActivity(active)
        with pytest.raises(VmError, match="slot 2 runs another VM, one"):
            site.start("two")
        assert site.left() == ["2", "2/current", "2/one", "2/one/launch.json", "3"]

    def test_slot_of_an_ended_vm_is_reused(self, site: Site) -> None:
        site.start()
        site.stop()
        site.start("two")
        assert site.poll() == SlotState(2, "active", "two", 7)

    def test_failed_start_shows_unit_result_and_qemu_log(self, site: Site) -> None:
        site.units.ends = [("failed", UnitActivity("failed", detail="exit-code 1"))]
        folder = site.root / "2" / "one"
        folder.mkdir()
        (folder / "qemu.log").write_text("".join(f"line {n}\n" for n in range(9000)))
        with pytest.raises(VmError) as failure:
            site.start()
        last = "\n".join(f"line {n}" for n in range(8995, 9000))
        assert failure.value.message == f"{UNIT} did not start: exit-code 1: {last}"

    def test_failed_start_without_a_log(self, site: Site) -> None:
        site.units.ends = [("timeout", UnitActivity("failed"))]
        with pytest.raises(VmError, match=r"did not start: timeout$"):
            site.start()

    def test_start_without_the_slot_network_is_refused(self, site: Site) -> None:
        site.units.ends = [("dependency", UnitActivity("inactive"))]
        with pytest.raises(VmError, match="the network of its slot is missing") as failure:
            site.start()
        assert failure.value.hint == "journalctl -u microvm-slot@2.service"

    def test_start_in_an_unknown_slot_is_refused(self, site: Site) -> None:
        with pytest.raises(VmError, match="/9/one: No such file or directory"):
            site.start(slot=9)
        assert site.units.asked == []


class TestStop:
    def test_stop_ends_a_running_vm(self, site: Site) -> None:
        site.start()
        site.stop()
        assert site.poll() == SlotState(2, "inactive", "one", detail="exit-code 0")

    def test_stop_of_an_inactive_vm_does_nothing(self, site: Site) -> None:
        site.stop()
        assert site.units.asked == []

    @pytest.mark.parametrize("ran", [True, False])
    def test_stop_resets_a_failed_unit(self, site: Site, ran: bool) -> None:
        site.units.states[UNIT] = UnitActivity("active" if ran else "failed")
        site.units.ends = [("done", UnitActivity("failed", detail="timeout"))]
        site.stop()
        assert site.units.asked == [f"stop {UNIT}"] * ran + [f"reset {UNIT}"]

    def test_unit_that_does_not_stop_is_reported(self, site: Site) -> None:
        site.start()
        site.units.ends = [("canceled", UnitActivity("active", 7))]
        with pytest.raises(VmError, match=f"{UNIT} did not stop: it is active"):
            site.stop()


class TestPoll:
    @pytest.mark.parametrize(
        ("active", "activity"), [("reloading", "active"), ("failed", "failed")]
    )
    def test_unit_states_are_mapped(self, site: Site, active: str, activity: str) -> None:
        site.units.states[UNIT] = UnitActivity(active, detail="signal 9")
        assert site.poll() == SlotState(2, activity, None, detail="signal 9")  # type: ignore[arg-type]

    def test_slots_have_a_unit_or_a_vm(self, site: Site) -> None:
        site.start()
        site.stop()
        site.units.states["microvm@9.service"] = UnitActivity("failed", detail="oom-kill")
        assert asyncio.run(site.hypervisor.slots()) == {
            2: SlotState(2, "inactive", "one", detail="exit-code 0"),
            9: SlotState(9, "failed", None, detail="oom-kill"),
        }

    def test_folders_lists_vm_folders_only(self, site: Site) -> None:
        site.start()
        (site.root / "3" / "stray").touch()
        (site.root / "lost+found").mkdir()
        assert asyncio.run(site.hypervisor.folders()) == {(2, "one")}

    def test_host_without_slots_has_no_folders(self, tmp_path: Path) -> None:
        settings = ControllerSettings(vm_root=tmp_path / "none")
        hypervisor = SystemdHypervisor(settings, Units())
        assert asyncio.run(hypervisor.folders()) == set()
        assert asyncio.run(hypervisor.slots()) == {}

    def test_console_and_qemu_log_paths(self, site: Site) -> None:
        assert site.hypervisor.console(2, "one") == site.root / "2" / "one" / "serial.log"
        assert site.hypervisor.qemu_log(2, "one") == site.root / "2" / "one" / "qemu.log"


class TestDiscard:
    @pytest.fixture
    def ended(self, site: Site) -> Site:
        site.start()
        for name in ("disk.qcow2", "qmp.sock", "serial.log", "qemu.log"):
            (site.root / "2" / "one" / name).touch()
        site.stop()
        return site

    def test_discard_removes_all_files(self, ended: Site) -> None:
        ended.discard()
        ended.discard()
        assert ended.left() == ["2", "3"]

    def test_discard_can_keep_logs(self, ended: Site) -> None:
        ended.discard(keep_logs=True)
        ended.discard(keep_logs=True)
        assert ended.left() == ["2", "2/one", "2/one/qemu.log", "2/one/serial.log", "3"]
        ended.discard()
        assert ended.left() == ["2", "3"]

    def test_discard_keeps_the_link_of_the_current_vm(self, ended: Site) -> None:
        ended.start("two")
        ended.discard()
        assert ended.left() == ["2", "2/current", "2/two", "2/two/launch.json", "3"]

    def test_discard_of_a_running_vm_is_refused(self, site: Site) -> None:
        site.start()
        with pytest.raises(VmError, match="VM one still runs"):
            site.discard()
        assert "2/current" in site.left()

    def test_files_that_cannot_be_removed_are_reported(
        self, ended: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unlink = os.unlink

        def refuse_files_of_vms(name: str, *, dir_fd: int | None = None) -> None:
            if dir_fd is not None:
                raise PermissionError(1, "Operation not permitted", name)
            unlink(name)

        monkeypatch.setattr("os.unlink", refuse_files_of_vms)
        with pytest.raises(FilesLeft, match=r"of VM one could not be removed: .*not permitted"):
            ended.discard()

    def test_kept_logs_are_inaccessible_to_the_next_vm(self, ended: Site) -> None:
        ended.discard(keep_logs=True)
        assert (ended.root / "2" / "one").stat().st_mode & 0o777 == 0o700

    def test_only_regular_log_files_are_kept(self, ended: Site) -> None:
        log = ended.root / "2" / "one" / "serial.log"
        log.unlink()
        log.symlink_to("/etc/passwd")
        ended.discard(keep_logs=True)
        assert ended.left() == ["2", "2/one", "2/one/qemu.log", "3"]


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (("signal", 2, 9), "signal 9"),
        (("exit-code", 1, 1), "exit-code 1"),
        (("core-dump", 3, 6), "core-dump 6"),
        (("oom-kill", 2, 9), "oom-kill"),
        (("timeout", 2, 9), "timeout"),
        (("success", 1, 0), "exit-code 0"),
        (("success", 2, 15), ""),
        (("success", 0, 0), ""),
    ],
)
def test_end_of_a_unit_in_words(end: tuple[str, int, int], words: str) -> None:
    assert end_in_words(*end) == words


def test_unit_path_on_d_bus() -> None:
    assert unit_path(UNIT) == "/org/freedesktop/systemd1/unit/microvm_402_2eservice"


def test_missing_d_bus_is_reported(tmp_path: Path) -> None:
    async def ask() -> None:
        await SystemdBus(f"unix:path={tmp_path}/none").state(UNIT)

    with pytest.raises(VmError, match=r"systemd does not answer over D-Bus: .*No such file"):
        asyncio.run(ask())
