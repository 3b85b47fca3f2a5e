"""Processes of the host: parsing of /proc, their owners, and the largest ones."""

from __future__ import annotations

import asyncio
import json
import os
from math import inf
from pathlib import Path

import pytest

from polydev.controller.host import host_state, processes
from polydev.controller.host.blocking_call import NoAnswer
from polydev.controller.host.processes import (
    Processes,
    ProcessTable,
    ProcessTimes,
    belonging,
    cpu_percents,
    process_times,
    read_processes,
    unit_of,
    user_name,
)
from tests.api import ApiHost, Served, api_host

OWN_PID = os.getpid()


def stat(pid: int, name: str, ticks: int = 0, started: int = 100, pages: int = 1) -> str:
    fields = ["S", *["0"] * 10, str(ticks), "0", *["0"] * 6, str(started), "0", str(pages), "0"]
    return f"{pid} ({name}) {' '.join(fields)}\n"


def times(pid: int, ticks: int, started: int = 100) -> ProcessTimes:
    return ProcessTimes(pid, "x", ticks, started, 0)


def measured(at: float, *found: ProcessTimes) -> ProcessTable:
    return ProcessTable(at, {each.key: each for each in found})


class TestReading:
    @pytest.mark.parametrize("name", ["qemu-system-x86", "a b) S 1", "<script>", "(sd-pam)"])
    def test_process_name_may_contain_any_character(self, name: str) -> None:
        assert process_times(stat(7, name, 30, 500, 2), 4096) == ProcessTimes(
            7, name, 30, 500, 8192
        )

    def test_unprintable_characters_in_names_are_replaced(self) -> None:
        assert (
            process_times(stat(7, "a\x1b[31m\n"), 1).name
            == "a\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}"
        )

    @pytest.mark.parametrize("text", ["", "7", "7 (x) S 1"])
    def test_malformed_stat_is_refused(self, text: str) -> None:
        with pytest.raises((ValueError, IndexError)):
            process_times(text, 1)

    def test_own_process_is_read(self) -> None:
        found = [each for each in read_processes().processes.values() if each.pid == OWN_PID]
        assert len(found) == 1
        assert found[0].memory_bytes > 1 << 20
        assert found[0].cpu_ticks > 0

    def test_hidden_processes_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / str(OWN_PID)).mkdir()
        with pytest.raises(FileNotFoundError):
            read_processes(tmp_path)

    def test_ended_process_is_skipped(self, tmp_path: Path) -> None:
        for pid in (1, 2):
            (tmp_path / str(pid)).mkdir()
        (tmp_path / "1/stat").write_text(stat(1, "init"))
        assert [pid for pid, _ in read_processes(tmp_path).processes] == [1]


class TestCpu:
    def test_cpu_percent_is_relative_to_all_cores(self) -> None:
        before, after = measured(0, times(1, 100)), measured(10, times(1, 600))
        assert cpu_percents(before, after, 100, 4) == {(1, 100): 12.5}

    def test_cpu_percent_of_a_new_process(self) -> None:
        assert cpu_percents(measured(0), measured(10, times(5, 500)), 100, 1) == {(5, 100): 50.0}

    def test_reused_pid_is_another_process(self) -> None:
        before = measured(0, times(5, 900, started=1))
        after = measured(10, times(5, 100, started=950))
        assert cpu_percents(before, after, 100, 1) == {(5, 950): 10.0}


@pytest.mark.parametrize(
    ("cgroup", "unit", "kind", "slot"),
    [
        ("0::/system.slice/system-microvm.slice/microvm@3.service\n", "microvm@3.service", "vm", 3),
        (
            "0::/system.slice/master-controller.service\n",
            "master-controller.service",
            "controller",
            None,
        ),
        (
            "0::/system.slice/master-controller-next@7.service",
            "master-controller-next@7.service",
            "controller",
            None,
        ),
        ("0::/user.slice/user-0.slice/session-1.scope\n", "session-1.scope", "other", None),
        (
            "4:memory:/x.service\n1:name=systemd:/system.slice/ssh.service\n0::/\n",
            "ssh.service",
            "other",
            None,
        ),
        ("0::/system.slice/evil-microvm@3.service\n", "evil-microvm@3.service", "other", None),
        ("0::/\n", None, "other", None),
        ("nonsense", None, "other", None),
    ],
)
def test_process_belongs_to_vm_controller_or_other(
    cgroup: str, unit: str | None, kind: str, slot: int | None
) -> None:
    assert unit_of(cgroup) == unit
    assert belonging(unit, 7, OWN_PID) == (kind, slot)


def test_own_process_belongs_to_the_controller() -> None:
    assert belonging(None, OWN_PID, OWN_PID) == ("controller", None)


def test_user_name_of_an_id() -> None:
    assert user_name(0) == "root"
    assert user_name(65534) is None, "it stands for all who are not in a user namespace"
    assert user_name(4_000_000_000) == "4000000000"


class TestProcesses:
    def test_processes_are_sorted_by_cpu_or_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(processes, "SHORTEST_SPAN_SECONDS", 0.0)
        for pid, pages in ((1, 10), (2, 30), (3, 20)):
            (tmp_path / str(pid)).mkdir()
            (tmp_path / str(pid) / "stat").write_text(stat(pid, f"p{pid}", pages=pages))

        async def ask() -> list[list[int]]:
            asked = Processes(tmp_path)
            by_memory = await asked.most("memory", 2)
            (tmp_path / "3/stat").write_text(stat(3, "p3", ticks=50, pages=20))
            by_cpu = await asked.most("cpu", 3)
            return [[each.pid for each in found] for found in (by_memory, by_cpu)]

        assert asyncio.run(ask()) == [[2, 3], [3, 2, 1]]

    def test_hidden_processes_raise_no_answer(self, tmp_path: Path) -> None:
        with pytest.raises(NoAnswer):
            asyncio.run(Processes(tmp_path).most("cpu", 1))


class TestEndpoint:
    @pytest.fixture
    def host(self, migrated: Path, tmp_path: Path) -> ApiHost:
        return api_host(migrated, tmp_path, slots=(2, 3))

    def test_answer_has_no_command_lines(self, host: ApiHost) -> None:
        async def scenario(asked: Served) -> None:
            for by in ("cpu", "memory"):
                answer = await asked.ask(
                    "GET", f"/api/admin/processes?by={by}&limit=100", "operator"
                )
                told = answer.json()["processes"]
                own = [each for each in told if each["pid"] == OWN_PID]
                assert own[0]["belongsTo"] == "controller"
                assert set(own[0]) == {
                    "pid",
                    "name",
                    "user",
                    "cpuPercent",
                    "memoryBytes",
                    "belongsTo",
                    "unit",
                    "slot",
                    "vmId",
                }
                assert all(len(each["name"]) <= 64 for each in told)

        host.run(scenario)

    def test_process_of_a_vm_has_its_slot_and_id(self, host: ApiHost, tmp_path: Path) -> None:
        async def scenario(asked: Served) -> None:
            session = await asked.start()
            vm = await asked.services.vms.get(session["vmId"])
            for pid, unit in ((1, "init.scope"), (9, f"microvm@{vm.slot}.service")):
                (tmp_path / str(pid)).mkdir()
                (tmp_path / str(pid) / "stat").write_text(stat(pid, "<script>"))
                (tmp_path / str(pid) / "cgroup").write_text(f"0::/{unit}\n")
            object.__setattr__(asked.services, "processes", Processes(tmp_path))
            told = (await asked.ask("GET", "/api/admin/processes", "operator")).json()
            found = {each["pid"]: each for each in told["processes"]}
            assert found[9]["belongsTo"] == "vm"
            assert (found[9]["slot"], found[9]["vmId"]) == (vm.slot, vm.id)
            assert found[1]["vmId"] is None

        host.run(scenario)

    def test_hidden_processes_are_explained_in_the_answer(
        self, host: ApiHost, tmp_path: Path
    ) -> None:
        async def scenario(asked: Served) -> None:
            object.__setattr__(asked.services, "processes", Processes(tmp_path / "none"))
            told = (await asked.ask("GET", "/api/admin/processes", "operator")).json()
            assert told["processes"] == []
            assert "hidepid" in told["unavailable"]

        host.run(scenario)

    @pytest.mark.parametrize("query", ["by=name", "limit=0", "limit=101"])
    def test_invalid_query_is_422(self, host: ApiHost, query: str) -> None:
        async def scenario(asked: Served) -> None:
            answer = await asked.ask("GET", f"/api/admin/processes?{query}", "operator")
            assert answer.status_code == 422

        host.run(scenario)


def test_overview_shows_a_failed_deployment(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_state, "FRESH_SECONDS", inf)  # however slowly the test goes on

    async def scenario(asked: Served) -> None:
        await asked.services.alerts.raise_("deploy_failed", "7", "critical", "it broke", None)
        told = (await asked.ask("GET", "/api/admin/overview", "operator")).json()
        assert told["status"] == "critical"
        found = {each["part"]: each for each in told["findings"]}
        assert found["deploy_failed"]["detail"] == "it broke"
        assert all(each["hint"] for each in told["findings"])
        again = (await asked.ask("GET", "/api/admin/overview", "operator")).json()
        assert json.dumps(again) == json.dumps(told), "who asks at the same time gets the same"

    api_host(migrated, tmp_path, slots=(2, 3)).run(scenario)
