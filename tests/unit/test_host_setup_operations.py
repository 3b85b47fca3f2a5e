"""Operations on a fake host: their commands, and none if the host is as declared."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from stat import filemode
from typing import Any, ClassVar

import pytest

from polydev.errors import ConfigError, DeployError
from polydev.host_setup import controller, database, deadman, images
from polydev.host_setup.accounts import mend_permissions
from polydev.host_setup.database import DatabaseChange
from polydev.host_setup.facts import (
    Firewall,
    Folders,
    JsonFile,
    PythonVersion,
    StaleUnits,
    SysctlValue,
    UnitFact,
    UnitState,
    UnitStates,
)
from polydev.host_setup.host_files_and_units import ACCESS_STAMP, STORE
from polydev.host_setup.host_report import HostReport
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_operations import (
    create_tmpfiles_folders,
    file,
    folder,
    load_firewall,
    opaque_file,
    remove_other_files,
    sysctl_value,
    text_file,
)
from polydev.host_setup.units import reload_units, remove_overrides, stop_other_units, unit
from polydev.processes import run
from polydev.ssh import SshTarget
from tests.unit.fake_host import HERE, FakeHost, fake_host, placed_input

TARGET = SshTarget("browsers", "browsers.example")
SITE = HostData()
A, B, C = "a" * 64, "b" * 64, "c" * 64

Faked = Callable[..., FakeHost]


@pytest.fixture
def faked() -> Iterator[Faked]:
    with ExitStack() as stack:
        yield lambda answers=None: stack.enter_context(fake_host(answers or {}))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The differences shown so far."""
    caplog.set_level(logging.INFO, logger="pyinfra")
    return lambda: [record.getMessage().strip() for record in caplog.records]


def shown(*, active: str = "active", enabled: str = "enabled", config: str = "now") -> str:
    return f"ActiveState={active}\nUnitFileState={enabled}\nLoadState=loaded\nConfig={config}"


class TestFacts:
    @pytest.mark.parametrize(
        ("active", "is_active"),
        [
            ("active", True),
            ("reloading", True),
            ("activating", False),
            ("failed", False),
            ("inactive", False),
        ],
    )
    def test_unit_fact_active(self, active: str, is_active: bool) -> None:
        assert UnitFact().process(shown(active=active).splitlines()).active is is_active

    @pytest.mark.parametrize(
        ("enabled", "is_enabled"),
        [("enabled", True), ("static", True), ("disabled", False), ("masked", False), ("", False)],
    )
    def test_unit_fact_enabled(self, enabled: str, is_enabled: bool) -> None:
        assert UnitFact().process(shown(enabled=enabled).splitlines()).enabled is is_enabled

    def test_unknown_unit_gives_the_default_state(self) -> None:
        lines = ["ActiveState=inactive", "UnitFileState=", "LoadState=not-found", "Config="]
        assert UnitFact().process(lines) == UnitState() == UnitFact.default()

    def test_stamp_may_contain_equal_signs(self) -> None:
        assert UnitFact().process(["Config=a=b"]).config == "a=b"

    def test_unit_fact_command_reads_unit_and_stamp(self) -> None:
        asked = UnitFact().command("microvm-slot@2.service")
        assert asked.startswith("systemctl show microvm-slot@2.service ")
        assert "/run/polydev/config/microvm-slot@2.service" in asked

    def test_unit_fact_command_checks_sums_and_times_of_files(self) -> None:
        asked = UnitFact().command("x.service", files=(("/etc/it's", A),))
        assert f"""echo '{A}  /etc/it'"'"'s' | sha256sum --check --status""" in asked
        assert """test '/etc/it'"'"'s' -nt /run/polydev/config/x.service""" in asked

    @pytest.mark.parametrize(
        ("line", "touched"),
        [("NeedDaemonReload=yes", True), ("NeedDaemonReload=no", False), ("Touched=yes", True)],
    )
    def test_unit_with_changed_files_is_touched(self, line: str, touched: bool) -> None:
        assert UnitFact().process([*shown().splitlines(), line]).touched is touched

    def test_unit_states_are_parsed(self) -> None:
        lines = [
            "b@3.service loaded active exited Slot 3",
            "",
            "a@2.service loaded failed failed x",
        ]
        assert UnitStates().process(lines) == {"a@2.service": "failed", "b@3.service": "active"}

    def test_unit_states_include_failed_and_changing_units(self) -> None:
        command = UnitStates().command("x@*.service")
        assert "--state=active,activating,deactivating,failed" in command
        assert command.endswith("'x@*.service'")

    @pytest.mark.parametrize(
        ("lines", "stale"),
        [
            ([], False),
            (["NeedDaemonReload=no", "", "NeedDaemonReload=no"], False),
            (["NeedDaemonReload=no", "", "NeedDaemonReload=yes"], True),
            (["Touched=yes"], True),
        ],
    )
    def test_stale_units_are_found(self, lines: list[str], stale: bool) -> None:
        assert StaleUnits().process(lines) is stale

    def test_stale_units_command_checks_the_unit_file(self) -> None:
        asked = StaleUnits().command("x@*.service", (("/etc/x", A),))
        assert asked.startswith("systemctl show -p NeedDaemonReload 'x@*.service'; ")
        assert f"echo '{A}  /etc/x' | sha256sum --check" in asked

    def test_folders_are_parsed_with_mode_and_owner(self) -> None:
        lines = ["directory:/a:2750:u:g", "regular file:/b:644:root:root"]
        assert Folders().process(lines) == {"/a": ("2750", "u", "g")}

    @pytest.mark.parametrize("lines", [[], ["no json"], ["[1]"], ["null"]])
    def test_json_file_that_is_not_an_object_is_empty(self, lines: list[str]) -> None:
        assert JsonFile().process(lines) == {}

    def test_json_file_of_several_lines_is_parsed(self) -> None:
        assert JsonFile().process(["{", '"id": 1', "}"]) == {"id": 1}

    def test_sysctl_blanks_are_normalized(self) -> None:
        assert SysctlValue().process(["4096\t16384  4194304 "]) == "4096 16384 4194304"

    def test_python_version_is_parsed(self) -> None:
        assert PythonVersion().process(["3.11"]) == "3.11"

    def test_firewall_text_is_quoted_for_the_shell(self) -> None:
        command = Firewall().command("inet", "polydev", "a 'quoted' %s\n$(x)")
        assert """printf %s 'a '"'"'quoted'"'"' %s\n$(x)'""" in command
        assert "unshare -n" in command


TIME_OF_START = "s=$(date +%s.%6N); "


def verbs(commands: list[str]) -> list[str]:
    """Return the commands without their error handling and time stamps."""
    return [command.partition(" || ")[0].replace(TIME_OF_START, "") for command in commands]


ALL_STATES = [
    (active, enabled, config)
    for active, enabled, config in itertools.product(
        ("active", "failed"), ("enabled", "disabled"), ("now", "then", "")
    )
]


class TestUnit:
    @pytest.mark.parametrize(("active", "enabled", "config"), ALL_STATES)
    def test_unit_runs_only_the_missing_steps(
        self, faked: Faked, active: str, enabled: str, config: str
    ) -> None:
        host = faked({"systemctl show": shown(active=active, enabled=enabled, config=config)})
        wanted = []
        if enabled != "enabled":
            wanted.append("systemctl enable x.service")
        if active != "active":
            wanted.append("systemctl restart x.service")
        elif config != "now":
            wanted.append("systemctl reload-or-restart x.service")
        found = host.commands(unit, unit="x.service", config="now")
        assert verbs(found) == (["systemctl daemon-reload", *wanted] if wanted else [])

    @pytest.mark.parametrize(
        ("drop_in", "own", "restarts"),
        [
            ("/etc/systemd/system/x.service.d/y.conf", "/etc/systemd/system/x.service", True),
            ("/run/systemd/system/x-.service.d/y.conf", "/etc/systemd/system/x.service", True),
            ("/usr/lib/systemd/system/service.d/y.conf", "/etc/systemd/system/x.service", False),
            ("/etc/systemd/system/x.service.d/y.conf", "/etc/systemd/system/x.service.d/p", False),
        ],
    )
    def test_foreign_drop_in_of_our_unit_restarts_it(
        self, faked: Faked, drop_in: str, own: str, restarts: bool
    ) -> None:
        marker = "Own=yes" if "echo Own=yes" in UnitFact().command("x.service", ((own, A),)) else ""
        host = faked({"systemctl show": f"{shown()}\nDropInPaths={drop_in}\n{marker}"})
        found = host.commands(unit, unit="x.service", config="now", files=((own, A),))
        assert bool(found) is restarts

    @pytest.mark.parametrize("sign", ["NeedDaemonReload=yes", "Touched=yes"])
    def test_unit_with_changed_files_is_reloaded(
        self, faked: Faked, told: Callable[[], list[str]], sign: str
    ) -> None:
        host = faked({"systemctl show": f"{shown()}\n{sign}"})
        found = host.commands(unit, unit="x.service", config="now", files=(("/x", A),))
        assert verbs(found) == ["systemctl daemon-reload", "systemctl reload-or-restart x.service"]
        assert any(line.endswith("configuration now, files changed") for line in told())

    def test_failed_start_prints_the_journal(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(active="failed")})
        restart = host.commands(unit, unit="x.service", config="now")[-1]
        assert re.search(r"\|\| \{ .*journalctl .*>&2; exit 1; \}$", restart)

    def test_changed_target_file_needs_daemon_reload_only(self, faked: Faked) -> None:
        host = faked({"systemctl show": f"{shown()}\nNeedDaemonReload=yes"})
        found = host.commands(unit, unit="x.target", config="now", stamped=False)
        assert found == ["systemctl daemon-reload"]

    def test_unit_without_stamp_ignores_the_configuration(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(config="")})
        assert host.commands(unit, unit="x.target", config="now", stamped=False) == []

    @pytest.mark.parametrize(("active", "config"), [("active", "then"), ("failed", "now")])
    def test_stop_first_unit_is_stopped_before_the_restart(
        self, faked: Faked, active: str, config: str
    ) -> None:
        host = faked({"systemctl show": shown(active=active, config=config)})
        found = host.commands(unit, unit="x.socket", config="now", stop_first="x.service")
        assert verbs(found)[1] == "systemctl stop x.service"
        assert verbs(found)[2].endswith("x.socket")

    def test_enabling_a_unit_does_not_stop_another(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(enabled="disabled")})
        found = host.commands(unit, unit="x.socket", config="now", stop_first="x.service")
        assert found == ["systemctl daemon-reload", "systemctl enable x.socket"]

    def test_inactive_target_is_started_not_restarted(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(active="inactive")})
        found = host.commands(unit, unit="x.target", config="now", stamped=False)
        assert verbs(found)[-1] == "systemctl start x.target"

    def test_unit_is_reloaded_if_its_work_was_changed_by_hand(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"systemctl show": shown()})
        found = host.commands(unit, unit="x.service", config="now", differences=["- a", "+ b"])
        assert verbs(found) == ["systemctl daemon-reload", "systemctl reload-or-restart x.service"]
        assert [line for line in dict.fromkeys(told()) if line[0] in "+-"] == ["- a", "+ b"]

    @pytest.mark.parametrize("config", ["now", "then"])
    def test_slot_of_a_running_vm_is_mended_in_place(
        self, faked: Faked, told: Callable[[], list[str]], config: str
    ) -> None:
        vms = "vm@2.service loaded active running x"
        host = faked({"systemctl show": shown(config=config), "list-units": vms})
        values = {"differences": ["- a"], "mend": "mend it", "needed_by": "vm@2.service"}
        assert host.commands(unit, unit="slot@2", config="now", **values) == ["mend it"]
        assert [line for line in dict.fromkeys(told()) if line[0] in "+-"] == ["- a"]

    def test_slot_is_mended_in_place_if_a_vm_started_after_the_plan(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(), "list-units": ""})
        values = {"differences": ["- a"], "mend": "mend it", "needed_by": "vm@2.service"}
        again = host.commands(unit, unit="slot@2", config="now", **values)[-1]
        assert again.startswith("case $(systemctl show -P ActiveState vm@2.service) in inactive|")
        assert again.endswith(";; *) mend it;; esac")

    @pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
    def test_unit_needed_by_a_running_vm_is_not_restarted(self, faked: Faked, state: str) -> None:
        vms = f"vm@2.service loaded {state} running x"
        host = faked({"systemctl show": shown(config="then"), "list-units": vms})
        assert host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service") == []

    @pytest.mark.parametrize("vms", ["", "vm@3.service loaded active running x"])
    def test_unit_needed_by_a_vm_is_restarted_only_if_vm_is_still_inactive(
        self, faked: Faked, vms: str
    ) -> None:
        host = faked({"systemctl show": shown(config="then"), "list-units": vms})
        found = host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service")
        state = "case $(systemctl show -P ActiveState vm@2.service) in inactive|failed)"
        assert verbs(found)[-1] == f"{state} systemctl reload-or-restart slot@2"
        assert found[-1].endswith(";; esac")

    def test_inactive_unit_is_restarted_even_if_its_vm_runs(self, faked: Faked) -> None:
        vms = "vm@2.service loaded active running x"
        host = faked({"systemctl show": shown(active="failed"), "list-units": vms})
        found = host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service")
        assert verbs(found)[-1] == "systemctl restart slot@2"

    def test_unit_difference_is_shown(self, faked: Faked, told: Callable[[], list[str]]) -> None:
        faked({"systemctl show": shown(active="failed", enabled="disabled", config="")})
        unit(name="it", unit="x.service", config="now")
        assert told()[-2:] == [
            "- x.service: not active, not enabled, configuration unknown",
            "+ x.service: active, enabled, configuration now",
        ]


class TestSurplusUnits:
    LISTED = "\n".join(f"slot@{number}.service loaded active exited x" for number in range(2, 6))
    VALUES: ClassVar[dict[str, Any]] = {"template": "slot@.service", "needed_by": "vm@.service"}

    def run(self, faked: Faked, wanted: list[int], vms: str = "") -> list[str]:
        host = faked({"'slot@*.service'": self.LISTED, "'vm@*.service'": vms})
        names = [f"slot@{number}.service" for number in wanted]
        return host.commands(stop_other_units, wanted=names, **self.VALUES)

    def test_surplus_units_stop_if_their_vm_is_inactive(self, faked: Faked) -> None:
        assert self.run(faked, [2, 3]) == [
            f"case $(systemctl show -P ActiveState vm@{number}.service) in inactive|failed) "
            f"systemctl stop slot@{number}.service;; esac"
            for number in (4, 5)
        ]

    def test_surplus_unit_of_a_running_vm_stays(self, faked: Faked) -> None:
        (command,) = self.run(faked, [2, 3], "vm@4.service loaded active running x")
        assert "systemctl stop slot@5.service" in command

    def test_surplus_unit_of_a_failed_vm_stops(self, faked: Faked) -> None:
        assert len(self.run(faked, [2, 3], "vm@4.service loaded failed failed x")) == 2

    def test_plan_lists_all_surplus_units(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        # Only the first command is asked for.
        self.run(faked, [])
        lines = dict.fromkeys(line for line in told() if line.startswith("- slot@"))
        assert list(lines) == [f"- slot@{number}.service: active" for number in range(2, 6)]

    @pytest.mark.parametrize("wanted", [[2, 3, 4, 5], [2, 3, 4, 5, 6]])
    def test_no_surplus_units_no_commands(self, faked: Faked, wanted: list[int]) -> None:
        assert self.run(faked, wanted) == []


class TestRemoveOverrides:
    def test_overrides_are_removed_before_daemon_reload(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        paths = ["/etc/systemd/system/x.service.d/a b.conf", "/run/systemd/system/x@3.service"]
        found = faked({}).commands(remove_overrides, paths=paths)
        assert found == [
            f"rm '{paths[0]}' {paths[1]}",
            "rmdir --ignore-fail-on-non-empty /etc/systemd/system/x.service.d",
            "systemctl daemon-reload",
        ]
        assert told()[:2] == [f"- {path}" for path in paths]
        assert faked({}).commands(remove_overrides, paths=[]) == []


class TestMendPermissions:
    def test_writable_paths_are_listed_and_mended_by_the_host_tool(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        writable = ["/run/polydev: mode 777 of 0:0", "/etc/ssh/x: mode 644 of 4242:0"]
        found = faked({}).commands(mend_permissions, writable=writable)
        assert found == [f"{TOOL} permissions mend"]
        assert told()[:2] == [f"- {each}" for each in writable]
        assert faked({}).commands(mend_permissions, writable=[]) == []


class TestRereadUnits:
    def run(self, faked: Faked, said: str) -> list[str]:
        host = faked({"NeedDaemonReload": said})
        return host.commands(reload_units, pattern="x@*.service", files=(("/etc/x", A),))

    def test_unchanged_unit_files_are_not_reread(self, faked: Faked) -> None:
        assert self.run(faked, "NeedDaemonReload=no") == []

    @pytest.mark.parametrize("said", ["NeedDaemonReload=yes", "Touched=yes"])
    def test_changed_unit_file_is_reread_without_a_restart(self, faked: Faked, said: str) -> None:
        assert self.run(faked, said) == ["systemctl daemon-reload"]


class TestFolders:
    FOLDERS: ClassVar[dict[str, Any]] = {
        "/a": ("755", "root", "root"),
        "/b": ("2750", "u", "g"),
    }

    def run(self, faked: Faked, *lines: str) -> list[str]:
        host = faked({"stat": "\n".join(lines)})
        return host.commands(create_tmpfiles_folders, file="/etc/t.conf", folders=self.FOLDERS)

    def test_correct_folders_need_no_command(self, faked: Faked) -> None:
        assert self.run(faked, "directory:/a:755:root:root", "directory:/b:2750:u:g") == []

    def test_one_command_mends_all_folders(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        assert self.run(faked, "directory:/b:750:u:g") == ["systemd-tmpfiles --create /etc/t.conf"]
        assert told()[-4:] == [
            "- /a: not there",
            "+ /a: mode 755, root:root",
            "- /b: mode 750, u:g",
            "+ /b: mode 2750, u:g",
        ]


class TestRemoveOtherFiles:
    def test_unwanted_files_are_removed(self, faked: Faked) -> None:
        there = {"ls -1A": ["kept", "a stranger's", "old"]}
        assert faked(there).commands(
            remove_other_files, folder="/etc/x", wanted=["kept", "new"]
        ) == [
            """rm '/etc/x/a stranger'"'"'s'""",
            "rm /etc/x/old",
        ]

    def test_wanted_files_and_missing_folder_need_no_command(self, faked: Faked) -> None:
        for there in (["kept"], []):
            host = faked({"ls -1A": there})
            assert host.commands(remove_other_files, folder="/etc/x", wanted=["kept"]) == []


class TestKernelValue:
    def test_different_kernel_value_is_set(self, faked: Faked) -> None:
        host = faked({"sysctl -n": ["0"]})
        found = host.commands(sysctl_value, key="net.ipv4.ip_forward", value="1")
        assert found == ["sysctl -q -w net.ipv4.ip_forward=1"]

    def test_same_kernel_value_needs_no_command(self, faked: Faked) -> None:
        host = faked({"sysctl -n": ["1"]})
        assert host.commands(sysctl_value, key="net.ipv4.ip_forward", value="1") == []


class TestLiveFirewall:
    VALUES: ClassVar[dict[str, Any]] = {
        "family": "inet",
        "table": "polydev",
        "text": "x",
        "path": "/etc/f.nft",
    }

    def test_firewall_difference_loads_the_file(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"unshare": ["--- live", "+++ wanted", "-drop", "+accept"]})
        assert host.commands(load_firewall, **self.VALUES) == ["nft -f /etc/f.nft"]
        assert told()[3:5] == ["-drop", "+accept"]

    def test_firewall_without_difference_needs_no_command(self, faked: Faked) -> None:
        assert faked().commands(load_firewall, **self.VALUES) == []


class TestFile:
    DATA = b"\x00\xffprogram"
    SUM = hashlib.sha256(DATA).hexdigest()

    WANTED: ClassVar[dict[str, str]] = {"mode": "755", "user": "root", "group": "root"}

    def run(self, host: FakeHost) -> list[str]:
        return host.commands(file, path="/bin/x", data=self.DATA, **self.WANTED)

    def there(self, faked: Faked, *, digest: str = SUM, rights: str = "755 root root") -> list[str]:
        return self.run(faked({"sha256sum": [rights, f"{digest}  -"]}))

    def test_unchanged_file_needs_no_command(self, faked: Faked) -> None:
        assert self.there(faked) == []

    def test_changed_file_is_replaced(self, faked: Faked) -> None:
        assert self.there(faked, digest=A) == ["place /bin/x"]

    @pytest.mark.parametrize("rights", ["644 root root", "755 ada root", "755 root ada"])
    def test_mode_and_owner_alone_are_mended_in_place(self, faked: Faked, rights: str) -> None:
        found = self.there(faked, rights=rights)
        assert found == ["chown root:root /bin/x && chmod 755 /bin/x"]

    def test_missing_file_is_sent(self, faked: Faked) -> None:
        assert self.run(faked()) == ["place /bin/x"]

    def test_secret_file_content_is_never_shown(
        self, faked: Faked, told: Callable[[], list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        host = faked()
        opaque_file("/etc/x", b"correct horse", mode="600")
        (operation,) = host.state.ops[host.host].values()
        (command,) = operation.command_generator()
        encoded = placed_input(command)
        shown = f"{command!r} {command} {vars(operation)} {vars(host.state)} {told()}"
        assert "- /etc/x: not there" in told()
        assert "+ /etc/x: mode 600, root:root" in told()
        for secret in ("correct horse", encoded):
            assert secret not in shown + str(capsys.readouterr())

    def test_text_file_differences_are_shown_by_line(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        there = ["same", "old"]
        host = faked({"sha256sum": ["666 root root", f"{A}  -"], "cat /etc/x": there})
        text_file("/etc/x", "same\nnew\n")
        assert told()[1:] == [
            "same",
            "- old",
            "+ new",
            "- /etc/x: other content, mode 666, root:root",
            "+ /etc/x: mode 644, root:root",
        ]
        assert host.planned == {"/etc/x": ["place /etc/x"]}


class TestFolder:
    REST = "atime=1 mtime=1 ctime=1 size=4 '/x'"

    def stat(self, mode: str = "drwxr-xr-x", user: str = "root") -> dict[str, object]:
        return {"stat": [f"user={user} group=root mode={mode} {self.REST}"]}

    def run(self, host: FakeHost) -> list[str]:
        return host.commands(folder, path="/x", mode="755", user="root", group="root")

    def test_correct_folder_needs_no_command(self, faked: Faked) -> None:
        assert self.run(faked(self.stat())) == []

    def test_missing_folder_is_made(self, faked: Faked) -> None:
        assert self.run(faked()) == ["mkdir -p /x", "chmod 00755 /x && chown root:root /x"]

    @pytest.mark.parametrize(("mode", "user"), [("drwxrwxrwx", "root"), ("drwxr-xr-x", "ada")])
    def test_folder_mode_and_owner_are_mended_and_shown(
        self, faked: Faked, told: Callable[[], list[str]], mode: str, user: str
    ) -> None:
        assert self.run(faked(self.stat(mode, user))) == ["chmod 00755 /x && chown root:root /x"]
        assert "+ /x: mode 755, root:root" in told()

    def test_folder_set_id_bits_are_removed(self, faked: Faked, tmp_path: Path) -> None:
        place = tmp_path / "x"
        place.mkdir()
        place.chmod(0o2755)
        user, group, mode = place.owner(), place.group(), filemode(place.stat().st_mode)
        there = {"stat": [f"user={user} group={group} mode={mode} {self.REST}"]}
        wanted = {"path": str(place), "mode": "755", "user": user, "group": group}
        (command,) = faked(there).commands(folder, **wanted)
        run(["sh", "-c", command])
        assert place.stat().st_mode & 0o7777 == 0o755


class TestGoldenImage:
    def run(self, faked: Faked, there: object, digest: str = C) -> list[str]:
        words = {"site": SITE, "target": TARGET, "digest": digest}
        return faked().commands(images.golden_image, **words, there=there)

    def test_golden_image_needs_no_command(self, faked: Faked) -> None:
        assert self.run(faked, {"images": [A, C], "golden": C}) == []

    def test_existing_image_is_only_promoted(self, faked: Faked) -> None:
        found = self.run(faked, {"images": [A, C], "golden": A})
        assert found == [f"/opt/polydev-ai/bin/polydev-host image golden --digest {C}"]

    @pytest.mark.parametrize(
        "there", [{}, {"images": [], "golden": None}, {"images": [A, B], "golden": A}]
    )
    def test_missing_image_is_sent_added_and_promoted(self, faked: Faked, there: object) -> None:
        assert self.run(faked, there) == [
            f"mkdir -p {STORE}/incoming/{C}",
            HERE,
            f"/opt/polydev-ai/bin/polydev-host image add --digest {C}",
            f"/opt/polydev-ai/bin/polydev-host image golden --digest {C}",
        ]

    @pytest.mark.parametrize(
        ("there", "basis"),
        [
            ({}, None),
            ({"images": [A, B], "golden": A}, A),
            ({"images": [A, B], "golden": None}, B),  # the newest
            ({"images": [A, B], "golden": "d" * 64}, B),  # the golden one is gone
        ],
    )
    def test_image_is_sent_with_the_golden_or_newest_as_basis(
        self, faked: Faked, monkeypatch: pytest.MonkeyPatch, there: object, basis: str | None
    ) -> None:
        sent: list[object] = []
        monkeypatch.setattr(images, "send_image", lambda *words: sent.append(words))
        host = faked()
        images.golden_image(name="it", site=SITE, target=TARGET, digest=C, there=there)
        (operation,) = host.state.ops[host.host].values()
        list(operation.command_generator())[1].function()
        assert sent == [(SITE, TARGET, C, basis)]

    def test_plan_shows_new_image_and_golden_change(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        faked()
        there = {"images": [A], "golden": A}
        images.golden_image(name="it", site=SITE, target=TARGET, digest=C, there=there)
        assert told()[-3:] == [f"+ image {C}", f"- golden image {A}", f"+ golden image {C}"]


ID = "20250131_120000-abcd1234"
TOOL = "/opt/polydev-ai/bin/polydev-host"


class TestRelease:
    def run(self, faked: Faked, now: object) -> list[str]:
        host = faked({"current/release.json": [json.dumps(now)]})
        words = {"digest": A, "release": ID, "commit": "abcd1234", "damage": []}
        return host.commands(controller.release, site=SITE, target=TARGET, **words)

    def test_same_release_needs_no_command(self, faked: Faked) -> None:
        assert self.run(faked, {"id": "20250101_000000-ffff", "digest": A}) == []

    @pytest.mark.parametrize("now", [{}, {"id": "20250101_000000-ffff", "digest": B}])
    def test_different_release_is_sent_and_created(self, faked: Faked, now: object) -> None:
        assert self.run(faked, now) == [
            f"mkdir -p /opt/master-controller/incoming/{ID}",
            HERE,
            f"{TOOL} release create --id {ID} --digest {A} --commit abcd1234",
        ]


class TestMigration:
    OLD = "20250101_000000-ffff"
    WORDS = "PostgreSQL, data at db.example as me"

    def run(
        self, faked: Faked, digest: str, was: str, differences: list[str], config: str = "now"
    ) -> list[str]:
        known = json.dumps({"id": self.OLD, "digest": digest})
        host = faked({"release.json": [known], "systemctl show": shown()})
        return host.commands(
            controller.migration,
            digest=A,
            release=ID,
            config=config,
            database=DatabaseChange(was, self.WORDS, tuple(differences)),
            damage=[],
        )

    def test_unchanged_release_and_configuration_do_not_migrate(self, faked: Faked) -> None:
        assert self.run(faked, A, self.WORDS, []) == []

    def test_a_new_release_migrates(self, faked: Faked) -> None:
        assert self.run(faked, B, self.WORDS, []) == [f"{TOOL} release migrate --id {ID}"]

    def test_changed_database_is_migrated_by_the_same_release(self, faked: Faked) -> None:
        found = self.run(faked, A, "SQLite", [], config="then")
        assert found == [f"{TOOL} release migrate --id {self.OLD}"]

    def test_schema_changed_by_hand_is_shown_and_migrated(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        found = self.run(faked, A, self.WORDS, ["- anon may SELECT on users"])
        assert found == [f"{TOOL} release migrate --id {self.OLD}"]
        assert "- anon may SELECT on users" in told()


class TestHandover:
    OLD = "20250101_000000-ffff"

    def run(self, faked: Faked, digest: str, state: str) -> list[str]:
        known = json.dumps({"id": self.OLD, "digest": digest})
        host = faked({"release.json": [known], "systemctl show": state})
        return host.commands(controller.handover, digest=A, release=ID, config="now", damage=[])

    def test_unchanged_controller_needs_no_handover(self, faked: Faked) -> None:
        assert self.run(faked, A, shown()) == []

    def test_new_release_is_handed_over(self, faked: Faked) -> None:
        found = self.run(faked, B, shown())
        assert found == ["systemctl daemon-reload", f"{TOOL} handover --release {ID}"]

    @pytest.mark.parametrize(
        "state", [shown(config="then"), shown(active="failed"), f"{shown()}\nTouched=yes"]
    )
    def test_a_new_configuration_hands_over_to_the_same_release(
        self, faked: Faked, state: str
    ) -> None:
        found = self.run(faked, A, state)
        assert found == ["systemctl daemon-reload", f"{TOOL} handover --release {self.OLD}"]

    def test_disabled_controller_is_enabled(self, faked: Faked) -> None:
        found = self.run(faked, A, shown(enabled="disabled"))
        assert found[1] == "systemctl enable master-controller.service"

    def test_release_id_from_the_host_is_shell_quoted(self, faked: Faked) -> None:
        known = json.dumps({"id": "x; reboot", "digest": A})
        host = faked({"release.json": [known], "systemctl show": shown(config="then")})
        words = {"digest": A, "release": ID, "config": "now", "damage": []}
        change = DatabaseChange("SQLite", "PostgreSQL, x")
        found = [
            *host.commands(controller.handover, **words),
            *host.commands(controller.handover, **words, move="--backup 1"),
            *host.commands(controller.migration, **words, database=change),
        ]
        assert sum("x; reboot" in shlex.split(line) for line in found) == 3

    def test_first_release_is_handed_over(self, faked: Faked) -> None:
        host = faked()
        found = host.commands(controller.handover, digest=A, release=ID, config="now", damage=[])
        assert found[-1] == f"{TOOL} handover --release {ID}"


class TestMove:
    """Moving the database from SQLite to PostgreSQL, with or without its rows."""

    URL = "postgresql+psycopg://me:horse@db.example/data"
    USABLE: ClassVar[dict[str, Any]] = {"checked": True, "occupied": []}

    def require(
        self,
        faked: Faked,
        url: str | None = URL,
        was: str = "SQLite",
        how: str = "copy",
        **found: Any,
    ) -> None:
        faked()
        site = HostData.model_validate({"move_database": how})
        database.require_movable(site, url, was, {**self.USABLE, **found})

    def refusal(self, faked: Faked, **values: Any) -> str:
        """Return the message of a refused move."""
        with pytest.raises((ConfigError, DeployError)) as refused:
            self.require(faked, **values)
        assert refused.value.hint
        assert "horse" not in refused.value.message
        return str(refused.value.message)

    def test_new_database_is_tried_on_the_host(self, faked: Faked) -> None:
        faked({"database check": json.dumps(self.USABLE).splitlines()})
        assert database.require_usable(self.URL) == self.USABLE

    @pytest.mark.parametrize("end", ["", "\n"])
    def test_database_in_use_is_not_tried(self, faked: Faked, end: str) -> None:
        digest = hashlib.sha256(f"{self.URL}{end}".encode()).hexdigest()
        known = f"600 root root\n{digest}  -".splitlines()
        faked({"stat -c": known, "database check": ['{"error": "database-unusable"}']})
        assert database.require_usable(self.URL) == {}

    def test_unusable_database_is_refused_with_the_hosts_reason(self, faked: Faked) -> None:
        said = {"error": "database-unusable", "message": "no route", "hint": "open the port"}
        faked({"database check": [json.dumps(said)]})
        with pytest.raises(
            DeployError, match=r"cannot use the database of secrets.database-url: no route$"
        ) as told:
            database.require_usable(self.URL)
        assert told.value.hint == "open the port"

    def test_move_to_an_empty_database_is_accepted(self, faked: Faked) -> None:
        self.require(faked)

    def test_move_without_the_database_url_secret_is_refused(self, faked: Faked) -> None:
        assert "secrets.database-url is missing" in self.refusal(faked, url=None)

    def test_move_from_postgresql_is_refused(self, faked: Faked) -> None:
        assert "uses PostgreSQL, x already" in self.refusal(faked, was="PostgreSQL, x")

    def test_move_without_a_controller_is_refused(self, faked: Faked) -> None:
        assert "no controller is deployed there" in self.refusal(faked, checked=False)

    def test_move_to_a_database_with_rows_needs_replace(self, faked: Faked) -> None:
        said = self.refusal(faked, occupied=["users", "slots"])
        assert "data at db.example as me has rows in users, slots already" in said
        self.require(faked, how="replace", occupied=["users"])

    def test_move_runs_database_move_with_the_controller_stopped(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        known = json.dumps({"id": "20250101_000000-ffff", "digest": A})
        host = faked({"release.json": [known], "systemctl show": shown(config="then")})
        values = {"digest": A, "release": ID, "config": "now", "move": f"--backup {ID}"}
        found = host.commands(controller.handover, **values, damage=[])
        assert found == [f"{TOOL} database move --release 20250101_000000-ffff --backup {ID}"]
        assert any("is stopped while its database is copied" in line for line in told())

    def test_changed_database_without_a_move_warns(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        faked({"release.json": [json.dumps({"id": ID})]})
        database.warn_of_another("SQLite", "PostgreSQL, x")
        warning = told()[-1]
        assert "from SQLite to PostgreSQL, x. Nothing is copied" in warning
        assert "./inv database.move --to postgresql takes them along" in warning

    def test_database_operation_name_says_what_happens_to_the_rows(self) -> None:
        assert DatabaseChange("SQLite", "SQLite").operation == "database"
        other = DatabaseChange("SQLite", "PostgreSQL, x")
        assert other.operation.startswith("database: PostgreSQL, x instead of SQLite, ")
        moved = replace(other, is_move=True)
        assert "nothing" in other.operation
        assert "nothing" not in moved.operation
        assert other.differences(ID)[:2] == ["- database: SQLite", "+ database: PostgreSQL, x"]
        (same,) = DatabaseChange("SQLite", "SQLite").differences(ID)
        assert same == f"  database: SQLite, at the schema of release {ID}"

    def test_plan_shows_that_rows_are_deleted(self) -> None:
        for replaces in (False, True):
            change = DatabaseChange("SQLite", "PostgreSQL, x", is_move=True, replaces=replaces)
            shown = "\n".join(change.differences(ID))
            assert ("without a backup" in shown) == replaces
            assert change.move_words(ID).endswith("--replace") == replaces

    def test_first_deployment_does_not_warn_of_another_database(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        faked()
        database.warn_of_another("SQLite", "PostgreSQL, x")
        assert not any("database changes" in line for line in told())


class TestListening:
    def test_unknown_listening_state_is_accepted(self, faked: Faked) -> None:
        faked()
        controller.require_free_address(SITE, {})

    def test_listen_address_missing_on_the_host_is_refused(self, faked: Faked) -> None:
        faked()
        with pytest.raises(
            DeployError, match=r"controller_listen 10\.9\.9\.9:4000: the host has no"
        ):
            controller.require_free_address(
                HostData(controller_listen="10.9.9.9:4000"), {"hasAddress": False, "others": []}
            )

    def test_bridge_address_may_be_missing_before_the_deployment(self, faked: Faked) -> None:
        faked()
        site = HostData(controller_listen=f"{SITE.gateway}:4000")
        controller.require_free_address(site, {"hasAddress": False, "others": []})

    def test_port_in_use_is_refused_with_the_program_name(self, faked: Faked) -> None:
        other = {
            "address": "0.0.0.0",
            "port": 80,
            "pid": 7,
            "name": "nginx",
            "unit": "nginx.service",
        }
        faked()
        site = HostData(controller_listen="0.0.0.0:80")
        with pytest.raises(DeployError, match=r"nginx \(pid 7, nginx\.service\)") as refused:
            controller.require_free_address(site, {"hasAddress": True, "others": [other]})
        assert refused.value.hint

    def test_lost_socket_is_shown_and_restarted(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        found = faked().commands(controller.mend_socket, lost=True)
        assert found == [
            "systemctl stop master-controller.socket",
            "systemctl start master-controller.socket master-controller.service",
        ]
        assert "- master-controller.socket: active, but without its socket" in told()

    def test_listening_socket_needs_no_command(self, faked: Faked) -> None:
        assert faked().commands(controller.mend_socket, lost=False) == []


class TestDeadman:
    VALUES: ClassVar[dict[str, Any]] = {
        "reach": "h",
        "firewall": "x",
        "bridge": [],
        "sshd": [],
        "scope": '{"paths": ["it\'s"]}',
        "seconds": 90,
        "deployment_id": ID,
    }

    def arm(self, faked: Faked, confirmed: str | None, difference: list[str]) -> list[str]:
        stamp = json.dumps({"confirmed": confirmed}) if confirmed else ""
        host = faked({"reach.json": [stamp], "unshare": difference})
        return host.commands(deadman.arm, **self.VALUES)

    def test_unchanged_access_arms_no_timer(self, faked: Faked) -> None:
        assert self.arm(faked, "h", []) == []

    @pytest.mark.parametrize(("confirmed", "difference"), [(None, []), ("g", []), ("h", ["-x"])])
    def test_changed_access_makes_a_backup_then_arms_the_timer(
        self, faked: Faked, confirmed: str | None, difference: list[str]
    ) -> None:
        backup, timer = self.arm(faked, confirmed, difference)
        assert backup.startswith(f"test -e /opt/polydev-ai/backups/{ID}/backup.json || printf %s ")
        assert """'{"paths": ["it'"'"'s"]}'""" in backup
        assert timer == f"{TOOL} deadman arm --seconds 90 --backup {ID}"

    def test_bridge_changed_by_hand_arms_the_timer(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"reach.json": ['{"confirmed": "h"}'], "unshare": []})
        values = {**self.VALUES, "bridge": ["- br-vm state: down"]}
        assert len(host.commands(deadman.arm, **values)) == 2
        assert "- access to the host: the bridge was changed by hand" in told()

    def test_sshd_settings_changed_by_hand_arm_the_timer(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"reach.json": ['{"confirmed": "h"}'], "unshare": []})
        values = {**self.VALUES, "sshd": ["- sshd: passwordauthentication yes"]}
        assert len(host.commands(deadman.arm, **values)) == 2
        assert "- access to the host: the SSH daemon was changed by hand" in told()

    def confirm(self, faked: Faked, active: str) -> list[str]:
        host = faked({"systemctl show": shown(active=active)})
        return host.commands(deadman.confirm, reach="h", target=TARGET, seconds=90)

    def test_active_timer_is_confirmed_then_recorded(self, faked: Faked) -> None:
        assert self.confirm(faked, "active") == [
            HERE,
            f"""printf %s '{{"confirmed": "h"}}' >{ACCESS_STAMP}""",
        ]

    def test_inactive_timer_needs_no_confirmation(self, faked: Faked) -> None:
        assert self.confirm(faked, "inactive") == []


class TestSecrets:
    def test_missing_secret_file_is_refused_with_its_key(
        self, faked: Faked, tmp_path: Path
    ) -> None:
        faked()
        site = HostData(secrets={"jwt-secret": tmp_path / "none"}, deployment_id=ID)
        with pytest.raises(ConfigError, match=r"secrets\.jwt-secret: .*No such file"):
            controller.controller(site, TARGET, ID, HostReport())
