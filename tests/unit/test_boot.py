"""Following a guest's boot: its messages, their meaning, and when following ends."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from polydev.errors import BootError, MachineBusy, VmError
from polydev.image import boot as boot_module
from polydev.image.boot import Boot, GuestCheck, wait_until_ready
from polydev.image.diagnosis import (
    UNITS,
    GuestState,
    GuestUnit,
    Job,
    explain,
    parse_guest_state,
    unwell,
)
from polydev.vm.boot_stages import Stage
from polydev.vm.config import Ports, VmConfig
from polydev.vm.cpu_wait_time import CpuSample, CpuWait, ThreadTimes
from polydev.vm.qemu_command_line import kernel_command_line, qemu_argv
from polydev.vm.qemu_process import Machine

pytestmark = pytest.mark.unit

NETWORKD, AGENT, VNC, DESKTOP, NOVNC, BROWSER = UNITS
SOUND = GuestState(
    system="running",
    jobs=(),
    units=tuple(GuestUnit(name) for name in UNITS),
    failed=(),
    addresses=("172.16.0.2/30",),
    root_free_kib=1052544,
)
LINKS = json.dumps(
    [{"ifname": "eth0", "addr_info": [{"local": "172.16.0.2", "prefixlen": 30, "label": "eth0"}]}]
)


def with_unit(guest: GuestState, unit: GuestUnit) -> GuestState:
    units = tuple(unit if each.name == unit.name else each for each in guest.units)
    return replace(guest, units=units)


def shown(name: str, **values: str | int) -> str:
    """A unit as `systemctl show` prints it."""
    properties = {
        "MainPID": 104,
        "Result": "success",
        "NRestarts": 0,
        "ExecMainCode": 0,
        "ExecMainStatus": 0,
        "Id": name,
        "LoadState": "loaded",
        "ActiveState": "active",
        "SubState": "running",
        "UnitFileState": "enabled",
        **values,
    }
    return "\n".join(f"{key}={value}" for key, value in properties.items())


def answers(
    *units: str,
    system: str = "running",
    jobs: str = "",
    failed: str = "",
    links: str = LINKS,
    free: str = "  Avail\n1052544",
    said: str = "",
) -> str:
    parts = [system, jobs, "\n\n".join(units), failed, links, free, said]
    return "\n=====next=====\n".join(parts)


class TestParseGuestState:
    def test_healthy_guest_is_parsed(self) -> None:
        assert parse_guest_state(answers(*map(shown, UNITS))) == SOUND

    def test_jobs_and_failed_units_are_parsed(self) -> None:
        guest = parse_guest_state(
            answers(
                system="starting",
                jobs="1  multi-user.target       start waiting\n38 endless.service start running",
                failed="filler.service loaded failed failed Takes all the space there is",
            )
        )
        assert guest.jobs == (
            Job("multi-user.target", "start", "waiting"),
            Job("endless.service", "start", "running"),
        )
        assert guest.failed == ("filler.service",)

    @pytest.mark.parametrize(
        ("code", "status", "lost"),
        [
            (1, 127, "its process exited with status 127"),
            (2, 9, "its process was ended by signal 9"),
            (3, 5, "its process was ended by signal 5"),
        ],
    )
    def test_unit_with_a_lost_process_gave_up(self, code: int, status: int, lost: str) -> None:
        browser = shown(
            BROWSER,
            ActiveState="activating",
            SubState="start-post",
            MainPID=0,
            ExecMainCode=code,
            ExecMainStatus=status,
        )
        unit = parse_guest_state(answers(browser)).units[0]
        assert unit.lost_process == lost
        assert unit.gave_up

    def test_last_log_line_belongs_to_its_unit(self) -> None:
        said = (
            f'{AGENT} File "<string>", line 1\n{AGENT} RuntimeError: the agent has a bug\n'
            f"{VNC} (EE) Cannot open log file\n{VNC} (EE)\n{VNC}  \n"
        )
        agent, vnc, novnc = parse_guest_state(
            answers(shown(AGENT), shown(VNC), shown(NOVNC), said=said)
        ).units
        assert (agent.said, vnc.said, novnc.said) == (
            "RuntimeError: the agent has a bug",
            "(EE) Cannot open log file",
            "",
        )

    @pytest.mark.parametrize("links", ["", "[]", "[{}]", 'Device "eth0" does not exist.'])
    def test_missing_addresses_are_parsed(self, links: str) -> None:
        assert parse_guest_state(answers(links=links)).addresses == ()

    @pytest.mark.parametrize(
        ("free", "kib"), [("  Avail\n0", 0), ("", None), ("df: cannot read table", None)]
    )
    def test_free_space_is_parsed(self, free: str, kib: int | None) -> None:
        assert parse_guest_state(answers(free=free)).root_free_kib == kib

    def test_incomplete_guest_state_is_refused(self) -> None:
        with pytest.raises(VmError, match="is incomplete"):
            parse_guest_state("starting")

    @pytest.mark.parametrize(
        "odd",
        [
            {"free": "Avail\n²"},
            {"free": "Avail\n" + "9" * 5000},
            {"links": "{}" * 2},
            {"links": '[{"addr_info": [{}]}]'},
            {"links": "[1]"},
            {"links": "[" * 100_000},
            {"failed": "a.service\n \nb.service"},
        ],
        ids=lambda odd: f"{odd}"[:30],
    )
    def test_unreadable_guest_state_is_no_crash(self, odd: dict[str, str]) -> None:
        """Verification says what it can when a broken guest answers with nonsense."""
        with contextlib.suppress(VmError):
            parse_guest_state(answers(shown(AGENT), **odd))

    def test_odd_count_of_restarts_is_refused(self) -> None:
        with pytest.raises(VmError, match="cannot be read"):
            parse_guest_state(answers(shown(AGENT, NRestarts="many")))


class TestExplain:
    def test_healthy_guest_has_no_cause(self) -> None:
        assert explain(SOUND, 200, {}) == []

    @pytest.mark.parametrize(
        ("unit", "cause"),
        [
            (
                GuestUnit(VNC, active="inactive", sub="dead", enabled="disabled"),
                "polydev-vnc.service is not enabled",
            ),
            (GuestUnit(VNC, load="masked", active="inactive"), "polydev-vnc.service is masked"),
            (
                GuestUnit(VNC, load="not-found", active="inactive"),
                "polydev-vnc.service is not-found",
            ),
            (
                GuestUnit(
                    VNC,
                    active="activating",
                    sub="auto-restart",
                    result="exit-code",
                    restarts=7,
                    said="(EE) no screens",
                ),
                "polydev-vnc.service is activating (auto-restart, exit-code, restarted 7 times): "
                "(EE) no screens",
            ),
            (
                GuestUnit(VNC, active="failed", sub="failed", result="start-limit-hit"),
                "polydev-vnc.service is failed (failed, start-limit-hit)",
            ),
            # It was started or stopped meanwhile.
            (
                GuestUnit(
                    VNC, active="failed", sub="failed", enabled="disabled", result="exit-code"
                ),
                "polydev-vnc.service is failed (failed, exit-code)",
            ),
            (
                GuestUnit(VNC, active="inactive", sub="dead"),
                "polydev-vnc.service is inactive (dead)",
            ),
        ],
    )
    def test_unhealthy_unit_is_the_cause(self, unit: GuestUnit, cause: str) -> None:
        guest = with_unit(SOUND, unit)
        assert explain(guest, 503, {}) == [cause]
        assert guest.hopeless()

    def test_full_root_filesystem_is_the_first_cause(self) -> None:
        guest = with_unit(
            replace(SOUND, system="starting", root_free_kib=0),
            GuestUnit(BROWSER, active="failed", sub="failed", result="exit-code"),
        )
        first, *others = explain(guest, None, {})
        assert first == "the root filesystem is full (0 KiB free)"
        assert others
        assert guest.hopeless()

    def test_unit_that_never_finishes_is_named_with_waiting_units(self) -> None:
        jobs = (
            Job("multi-user.target", "start", "waiting"),
            Job("endless.service", "start", "running"),
            Job(VNC, "start", "waiting"),
            Job(BROWSER, "start", "waiting"),
        )
        guest = replace(SOUND, system="starting", jobs=jobs)
        for name in (VNC, BROWSER):
            guest = with_unit(guest, GuestUnit(name, active="inactive", sub="dead"))
        assert explain(guest, 503, {}) == [
            "endless.service does not finish starting",
            "polydev-browser.service, polydev-vnc.service cannot start before that",
        ]
        assert not guest.hopeless()
        assert not guest.settled()

    def test_starting_unit_is_a_cause_only_if_nothing_failed(self) -> None:
        starting = replace(SOUND, system="starting", jobs=(Job(BROWSER, "start", "running"),))
        starting = with_unit(starting, GuestUnit(BROWSER, active="activating", sub="start-post"))
        assert explain(starting, 503, {}) == ["polydev-browser.service is activating (start-post)"]
        crashed = with_unit(starting, GuestUnit(AGENT, active="failed", sub="failed"))
        assert explain(crashed, None, {}) == ["polydev-agent.service is failed (failed)"]

    def test_restarting_unit_is_not_hopeless(self) -> None:
        again = GuestUnit(BROWSER, active="activating", sub="auto-restart", restarts=1)
        guest = with_unit(replace(SOUND, system="degraded"), again)
        assert not guest.settled()
        assert not guest.hopeless()

    @pytest.mark.parametrize(
        ("addresses", "has"),
        [
            ((), "no address"),
            (("172.16.0.6/30",), "172.16.0.6/30"),
            (("172.16.0.25/30",), "172.16.0.25/30"),
        ],
    )
    def test_wrong_network_address_is_the_cause(self, addresses: tuple[str, ...], has: str) -> None:
        guest = replace(SOUND, addresses=addresses)
        assert explain(guest, None, {}) == [f"network: eth0 has {has}, not 172.16.0.2/30"]
        assert guest.hopeless()

    def test_missing_address_is_no_cause_while_networkd_starts(self) -> None:
        guest = replace(SOUND, system="starting", addresses=())
        starting = replace(guest, jobs=(Job(NETWORKD, "start", "running"),))
        assert explain(starting, None, {}) == []
        waiting = replace(guest, jobs=(Job(NETWORKD, "start", "waiting"),))
        assert explain(waiting, None, {}) == [f"{NETWORKD} cannot start before that"]
        crashed = with_unit(guest, GuestUnit(AGENT, active="failed", sub="failed"))
        assert explain(crashed, None, {}) == ["polydev-agent.service is failed (failed)"]
        assert explain(guest, None, {}) == ["network: eth0 has no address, not 172.16.0.2/30"]
        assert not guest.hopeless()

    def test_failing_agent_alone_is_not_hopeless(self) -> None:
        assert explain(SOUND, 500, {}) == ["the agent answers 500 on /health"]
        assert explain(SOUND, None, {}) == ["the agent does not answer"]
        assert SOUND.settled()
        assert not SOUND.hopeless()

    def test_failed_component_is_shown_with_its_units_last_log_line(self) -> None:
        said = "Failed to connect to 127.0.0.1:5999"
        guest = with_unit(SOUND, GuestUnit(NOVNC, said=said))
        health = {
            "components": {
                "vnc": {"ok": True, "detail": "RFB 003.008"},
                "novnc": {"ok": False, "detail": "closed with 1011"},
            }
        }
        assert explain(guest, 503, health) == [f"novnc: closed with 1011: {said}"]

    def test_component_of_a_failed_unit_is_not_listed_twice(self) -> None:
        guest = with_unit(SOUND, GuestUnit(VNC, active="failed", sub="failed"))
        health = {"components": {"vnc": {"ok": False, "detail": "refused"}}}
        assert explain(guest, 503, health) == ["polydev-vnc.service is failed (failed)"]

    def test_novnc_is_not_a_cause_if_vnc_failed(self) -> None:
        guest = with_unit(SOUND, GuestUnit(VNC, active="failed", sub="failed"))
        health = {"components": {"novnc": {"ok": False, "detail": "closed with 1011"}}}
        assert explain(guest, 503, health) == ["polydev-vnc.service is failed (failed)"]

    def test_failed_foreign_unit_is_a_cause(self) -> None:
        guest = replace(SOUND, system="degraded", failed=("filler.service",))
        assert explain(guest, 503, {}) == ["filler.service failed"]


@pytest.mark.parametrize("health", [{}, {"components": None}, {"components": {"vnc": "bad"}}])
def test_malformed_health_answers_are_ignored(health: dict[str, object]) -> None:
    assert unwell(health) == {}


def config(*, test_console: bool) -> VmConfig:
    return VmConfig(
        vm_id="vm-1",
        folder=Path("/vm"),
        kernel=Path("/image/vmlinux"),
        initrd=Path("/image/initrd.img"),
        cmdline="root=/dev/vda rw\n",
        rootfs=Path("/image/rootfs.ext4"),
        image_digest="d" * 64,
        ports=Ports(1, 2, 3),
        test_console=test_console,
    )


def test_stage_times_are_those_of_the_first_sight() -> None:
    boot = Boot(Machine(config(test_console=False), pid=0))
    assert boot.reached("kernel")
    assert boot.reached("kernel", "init", "services")
    services_at = boot.timings["services"]
    assert not boot.reached("kernel", "init", "network", "services")
    assert boot.stage == "services"
    assert set(boot.timings) == {"kernel", "init", "network", "services"}
    assert boot.timings["services"] == services_at
    assert not boot.reached()


def test_console_exists_only_on_request() -> None:
    in_use, under_test = config(test_console=False), config(test_console=True)
    assert "systemd.debug_shell" not in kernel_command_line(in_use)
    assert qemu_argv(in_use).count("-serial") == 1
    assert "console.sock" not in " ".join(qemu_argv(in_use))
    assert "systemd.debug_shell=ttyS1" in kernel_command_line(under_test)
    assert qemu_argv(under_test).count("-serial") == 2
    assert "console.sock" in " ".join(qemu_argv(under_test))


class ServingVm(Machine):
    """A VM without a test console; its serial console shows a completed boot."""

    def __init__(self) -> None:
        super().__init__(config(test_console=False), pid=0)

    def serial(self) -> str:
        return "systemd[1]: Reached target multi-user.target - Multi-User System.\n"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (None, "the agent does not answer"),
        (404, "the agent answers 404 on /health"),
        (503, "vnc: refused"),
    ],
)
def test_cause_without_a_guest_state_uses_the_agents_answer(status: int | None, said: str) -> None:
    boot = Boot(ServingVm())
    boot.reached("kernel", "init", "services")
    if status == 503:
        boot.health = {"components": {"vnc": {"ok": False, "detail": "refused"}}}
    check = GuestCheck.__new__(GuestCheck)  # with this answer of the agent
    check.boot, check.status, check.guest_state = boot, status, None
    assert check.cause(None) == said


class DeadVm(Machine):
    """A VM whose QEMU ended with this output."""

    def __init__(self, serial: str = "", said: str = "") -> None:
        super().__init__(config(test_console=False), pid=0)
        self._serial, self._said = serial, said

    def alive(self) -> bool:
        return False

    def serial(self) -> str:
        return self._serial

    def qemu_said(self) -> str:
        return self._said


@pytest.mark.parametrize(
    ("vm", "cause"),
    [
        (DeadVm(), "the VM ended by itself"),
        (DeadVm(said="cannot set up guest memory"), "ended by itself: cannot set up guest memory"),
        (DeadVm("Kernel panic - not syncing: Fatal exception"), "kernel panic: Fatal exception"),
        (
            DeadVm("Linux version 6.1\ninitramfs: Waiting for /dev/vdz to appear...\n"),
            "cannot find its root filesystem: /dev/vdz does not appear",
        ),
    ],
)
def test_boot_fails_if_the_vm_ends(vm: Machine, cause: str) -> None:
    with pytest.raises(BootError, match=cause):
        wait_until_ready(Boot(vm), 60, lambda stage: None)


def test_boot_fails_if_the_refusal_callback_returns_a_reason() -> None:
    with pytest.raises(BootError, match=r"^rootfs\.ext4 is damaged$"):
        wait_until_ready(Boot(DeadVm()), 60, lambda stage: None, lambda: "rootfs.ext4 is damaged")


def test_stages_are_reported_during_the_boot() -> None:
    told: list[str] = []
    with pytest.raises(BootError):
        wait_until_ready(Boot(DeadVm("Linux version 6.1\nWelcome to Debian")), 60, told.append)
    assert told == ["init"]


class HangingVm(Machine):
    """A VM whose boot hangs; one second passes at each reading of its CPU times.

    In each second its thread runs and waits for these shares.
    """

    def __init__(self, ran: float, waited: float) -> None:
        super().__init__(config(test_console=False), pid=0)
        self._each = ThreadTimes(ran, waited)
        self.seconds = 0

    def alive(self) -> bool:
        return True

    def serial(self) -> str:
        return "Linux version 6.1\n"

    def cpu_sample(self) -> CpuSample:
        self.seconds += 1
        ran, waited = self._each.ran * self.seconds, self._each.waited * self.seconds
        return CpuSample(self.seconds, {1: ThreadTimes(ran, waited)}, cpus=2)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace sleeps and guest checks: nothing waits, no guest answers."""

    def silent(ports: Ports, timeout_seconds: float) -> tuple[int, dict[str, object]]:
        raise VmError("silence")

    monkeypatch.setattr(boot_module, "agent_health", silent)
    monkeypatch.setattr(boot_module, "POLL_SECONDS", 0)


@pytest.mark.usefixtures("at_once")
class TestDeadline:
    @pytest.mark.parametrize(
        ("ran", "waited", "seconds"),
        [
            pytest.param(0, 0, 60, id="asleep"),
            pytest.param(1, 0, 60, id="burning CPU"),
            pytest.param(0.6, 0.4, 100, id="burning most of a CPU"),
            pytest.param(0.05, 0.05, 63, id="asleep on a busy machine"),
        ],
    )
    def test_hanging_guest_fails_after_its_undisturbed_time(
        self, ran: float, waited: float, seconds: int
    ) -> None:
        vm = HangingVm(ran, waited)
        with pytest.raises(BootError, match="not ready within 60 s, stage reached: kernel"):
            wait_until_ready(Boot(vm), 60, lambda stage: None)
        assert vm.seconds == pytest.approx(seconds, abs=10)  # the checks take time, too

    def test_busy_machine_raises_machine_busy_at_the_longest_time(self) -> None:
        vm = HangingVm(0.1, 0.9)
        with pytest.raises(MachineBusy) as error:
            wait_until_ready(Boot(vm), 60, lambda stage: None)
        assert vm.seconds == pytest.approx(240, abs=10)
        assert error.value.message.startswith("the machine is too busy: the VM waited 2")
        assert "stage reached: kernel" in error.value.message
        assert "quiet" in (error.value.hint or "")

    def test_busy_machine_is_reported_with_growing_pauses(self) -> None:
        told: list[CpuWait] = []
        with pytest.raises(MachineBusy):
            wait_until_ready(Boot(HangingVm(0.1, 0.9)), 60, lambda stage: None, on_busy=told.append)
        waited = [wait.waited_seconds for wait in told]
        assert waited[0] >= 10
        assert all(later >= 2 * before for before, later in pairwise(waited))
        assert len(waited) == 5
        told.clear()
        with pytest.raises(BootError):
            wait_until_ready(Boot(HangingVm(1, 0.1)), 60, lambda stage: None, on_busy=told.append)
        assert told == []


@pytest.mark.parametrize(
    ("status", "stage", "gives_account"),
    [
        (200, "services", False),
        (503, "services", True),
        (None, "services", True),
        (None, "init", True),
        (None, "kernel", False),
        (None, "none", False),
        (503, "kernel", False),
    ],
)
def test_guest_state_is_read_only_after_init(
    status: int | None, stage: Stage, gives_account: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def read_guest_state(_: object, timeout_seconds: float) -> GuestState:
        asked.append(timeout_seconds)
        return SOUND

    monkeypatch.setattr(boot_module, "read_guest_state", read_guest_state)
    monkeypatch.setattr(GuestCheck, "_ask_agent", lambda *_: status)
    boot = Boot(HangingVm(0, 0))
    boot.stage = stage
    check = GuestCheck(boot, 60)
    assert check.guest_state == (SOUND if gives_account else None)
    assert len(asked) == gives_account


@pytest.mark.parametrize(
    ("waited", "status", "is_settled"),
    [(0.9, None, False), (0.9, 503, True), (0.0, None, True), (0.0, 503, True)],
)
def test_silent_guest_without_cpu_time_is_not_settled(
    waited: float, status: int | None, is_settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_module, "read_guest_state", lambda *_: SOUND)
    monkeypatch.setattr(GuestCheck, "_ask_agent", lambda *_: status)
    boot = Boot(HangingVm(0.1, waited))
    boot.stage = "services"
    assert GuestCheck(boot, 60).is_settled is is_settled
