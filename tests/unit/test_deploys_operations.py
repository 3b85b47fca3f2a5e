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

from polydev.deploys import controller, database, deadman, images
from polydev.deploys.accounts import mend_permissions
from polydev.deploys.database import DatabaseChange
from polydev.deploys.facts import (
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
from polydev.deploys.host_data import HostData
from polydev.deploys.host_files_and_units import ACCESS_STAMP, STORE
from polydev.deploys.host_report import HostReport
from polydev.deploys.operations import (
    create_tmpfiles_folders,
    file,
    folder,
    load_firewall,
    opaque_file,
    remove_other_files,
    sysctl_value,
    text_file,
)
from polydev.deploys.units import reload_units, remove_overrides, stop_other_units, unit
from polydev.errors import ConfigError, DeployError
from polydev.run import run
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
    def test_a_unit_is_active(self, active: str, is_active: bool) -> None:
        assert UnitFact().process(shown(active=active).splitlines()).active is is_active

    @pytest.mark.parametrize(
        ("enabled", "is_enabled"),
        [("enabled", True), ("static", True), ("disabled", False), ("masked", False), ("", False)],
    )
    def test_a_unit_is_enabled(self, enabled: str, is_enabled: bool) -> None:
        assert UnitFact().process(shown(enabled=enabled).splitlines()).enabled is is_enabled

    def test_a_unit_that_systemd_does_not_know(self) -> None:
        lines = ["ActiveState=inactive", "UnitFileState=", "LoadState=not-found", "Config="]
        assert UnitFact().process(lines) == UnitState() == UnitFact.default()

    def test_a_stamp_with_equal_signs_is_whole(self) -> None:
        assert UnitFact().process(["Config=a=b"]).config == "a=b"

    def test_a_units_question_names_it_and_its_stamp(self) -> None:
        asked = UnitFact().command("microvm-slot@2.service")
        assert asked.startswith("systemctl show microvm-slot@2.service ")
        assert "/run/polydev/config/microvm-slot@2.service" in asked

    def test_a_units_files_are_checked_by_their_sums_and_by_when_it_started(self) -> None:
        asked = UnitFact().command("x.service", files=(("/etc/it's", A),))
        assert f"""echo '{A}  /etc/it'"'"'s' | sha256sum --check --status""" in asked
        assert """test '/etc/it'"'"'s' -nt /run/polydev/config/x.service""" in asked

    @pytest.mark.parametrize(
        ("line", "touched"),
        [("NeedDaemonReload=yes", True), ("NeedDaemonReload=no", False), ("Touched=yes", True)],
    )
    def test_a_unit_whose_files_were_changed(self, line: str, touched: bool) -> None:
        assert UnitFact().process([*shown().splitlines(), line]).touched is touched

    def test_units_and_what_they_do(self) -> None:
        lines = [
            "b@3.service loaded active exited Slot 3",
            "",
            "a@2.service loaded failed failed x",
        ]
        assert UnitStates().process(lines) == {"a@2.service": "failed", "b@3.service": "active"}

    def test_units_that_failed_come_or_go_count_as_there(self) -> None:
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
    def test_units_that_are_known_by_an_older_file(self, lines: list[str], stale: bool) -> None:
        assert StaleUnits().process(lines) is stale

    def test_the_file_of_stale_units_is_checked_too(self) -> None:
        asked = StaleUnits().command("x@*.service", (("/etc/x", A),))
        assert asked.startswith("systemctl show -p NeedDaemonReload 'x@*.service'; ")
        assert f"echo '{A}  /etc/x' | sha256sum --check" in asked

    def test_folders_with_mode_and_owner(self) -> None:
        lines = ["directory:/a:2750:u:g", "regular file:/b:644:root:root"]
        assert Folders().process(lines) == {"/a": ("2750", "u", "g")}

    @pytest.mark.parametrize("lines", [[], ["no json"], ["[1]"], ["null"]])
    def test_what_is_no_object_is_an_empty_one(self, lines: list[str]) -> None:
        assert JsonFile().process(lines) == {}

    def test_an_object_over_several_lines(self) -> None:
        assert JsonFile().process(["{", '"id": 1', "}"]) == {"id": 1}

    def test_a_sysctl_of_several_numbers(self) -> None:
        assert SysctlValue().process(["4096\t16384  4194304 "]) == "4096 16384 4194304"

    def test_pythons_version(self) -> None:
        assert PythonVersion().process(["3.11"]) == "3.11"

    def test_the_firewalls_text_arrives_as_it_is(self) -> None:
        command = Firewall().command("inet", "polydev", "a 'quoted' %s\n$(x)")
        assert """printf %s 'a '"'"'quoted'"'"' %s\n$(x)'""" in command
        assert "unshare -n" in command


TIME_OF_START = "s=$(date +%s.%6N); "


def verbs(commands: list[str]) -> list[str]:
    """Commands without what they do when they fail, and without the time that this needs."""
    return [command.partition(" || ")[0].replace(TIME_OF_START, "") for command in commands]


ALL_STATES = [
    (active, enabled, config)
    for active, enabled, config in itertools.product(
        ("active", "failed"), ("enabled", "disabled"), ("now", "then", "")
    )
]


class TestUnit:
    @pytest.mark.parametrize(("active", "enabled", "config"), ALL_STATES)
    def test_it_does_what_is_missing_and_no_more(
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
    def test_drop_ins_of_others_count_too_where_the_unit_is_ours(
        self, faked: Faked, drop_in: str, own: str, restarts: bool
    ) -> None:
        marker = "Own=yes" if "echo Own=yes" in UnitFact().command("x.service", ((own, A),)) else ""
        host = faked({"systemctl show": f"{shown()}\nDropInPaths={drop_in}\n{marker}"})
        found = host.commands(unit, unit="x.service", config="now", files=((own, A),))
        assert bool(found) is restarts

    @pytest.mark.parametrize("sign", ["NeedDaemonReload=yes", "Touched=yes"])
    def test_files_that_somebody_changed_count_as_another_configuration(
        self, faked: Faked, told: Callable[[], list[str]], sign: str
    ) -> None:
        host = faked({"systemctl show": f"{shown()}\n{sign}"})
        found = host.commands(unit, unit="x.service", config="now", files=(("/x", A),))
        assert verbs(found) == ["systemctl daemon-reload", "systemctl reload-or-restart x.service"]
        assert any(line.endswith("configuration now, files changed") for line in told())

    def test_a_unit_that_does_not_start_says_why(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(active="failed")})
        restart = host.commands(unit, unit="x.service", config="now")[-1]
        assert re.search(r"\|\| \{ .*journalctl .*>&2; exit 1; \}$", restart)

    def test_a_target_is_loaded_again_where_only_its_file_changed(self, faked: Faked) -> None:
        host = faked({"systemctl show": f"{shown()}\nNeedDaemonReload=yes"})
        found = host.commands(unit, unit="x.target", config="now", stamped=False)
        assert found == ["systemctl daemon-reload"]

    def test_one_without_a_stamp_is_judged_by_the_rest(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(config="")})
        assert host.commands(unit, unit="x.target", config="now", stamped=False) == []

    @pytest.mark.parametrize(("active", "config"), [("active", "then"), ("failed", "now")])
    def test_who_must_not_run_meanwhile_stops_first(
        self, faked: Faked, active: str, config: str
    ) -> None:
        host = faked({"systemctl show": shown(active=active, config=config)})
        found = host.commands(unit, unit="x.socket", config="now", stop_first="x.service")
        assert verbs(found)[1] == "systemctl stop x.service"
        assert verbs(found)[2].endswith("x.socket")

    def test_who_only_gets_enabled_stops_nobody(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(enabled="disabled")})
        found = host.commands(unit, unit="x.socket", config="now", stop_first="x.service")
        assert found == ["systemctl daemon-reload", "systemctl enable x.socket"]

    def test_a_target_that_is_not_active_starts_and_restarts_none_of_its_parts(
        self, faked: Faked
    ) -> None:
        host = faked({"systemctl show": shown(active="inactive")})
        found = host.commands(unit, unit="x.target", config="now", stamped=False)
        assert verbs(found)[-1] == "systemctl start x.target"

    def test_work_that_was_changed_by_hand_is_done_again(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"systemctl show": shown()})
        found = host.commands(unit, unit="x.service", config="now", differences=["- a", "+ b"])
        assert verbs(found) == ["systemctl daemon-reload", "systemctl reload-or-restart x.service"]
        assert [line for line in dict.fromkeys(told()) if line[0] in "+-"] == ["- a", "+ b"]

    @pytest.mark.parametrize("config", ["now", "then"])
    def test_work_that_was_changed_under_a_running_vm_is_mended_in_place(
        self, faked: Faked, told: Callable[[], list[str]], config: str
    ) -> None:
        vms = "vm@2.service loaded active running x"
        host = faked({"systemctl show": shown(config=config), "list-units": vms})
        values = {"differences": ["- a"], "mend": "mend it", "needed_by": "vm@2.service"}
        assert host.commands(unit, unit="slot@2", config="now", **values) == ["mend it"]
        assert [line for line in dict.fromkeys(told()) if line[0] in "+-"] == ["- a"]

    def test_vm_that_has_come_since_the_plan_is_mended_around(self, faked: Faked) -> None:
        host = faked({"systemctl show": shown(), "list-units": ""})
        values = {"differences": ["- a"], "mend": "mend it", "needed_by": "vm@2.service"}
        again = host.commands(unit, unit="slot@2", config="now", **values)[-1]
        assert again.startswith("case $(systemctl show -P ActiveState vm@2.service) in inactive|")
        assert again.endswith(";; *) mend it;; esac")

    @pytest.mark.parametrize("state", ["active", "activating", "deactivating"])
    def test_what_a_running_vm_needs_stays_as_it_is(self, faked: Faked, state: str) -> None:
        vms = f"vm@2.service loaded {state} running x"
        host = faked({"systemctl show": shown(config="then"), "list-units": vms})
        assert host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service") == []

    @pytest.mark.parametrize("vms", ["", "vm@3.service loaded active running x"])
    def test_what_only_others_need_is_asked_once_more_as_it_is_done(
        self, faked: Faked, vms: str
    ) -> None:
        host = faked({"systemctl show": shown(config="then"), "list-units": vms})
        found = host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service")
        state = "case $(systemctl show -P ActiveState vm@2.service) in inactive|failed)"
        assert verbs(found)[-1] == f"{state} systemctl reload-or-restart slot@2"
        assert found[-1].endswith(";; esac")

    def test_a_vm_does_not_keep_down_what_is_not_active(self, faked: Faked) -> None:
        vms = "vm@2.service loaded active running x"
        host = faked({"systemctl show": shown(active="failed"), "list-units": vms})
        found = host.commands(unit, unit="slot@2", config="now", needed_by="vm@2.service")
        assert verbs(found)[-1] == "systemctl restart slot@2"

    def test_the_difference_is_told(self, faked: Faked, told: Callable[[], list[str]]) -> None:
        faked({"systemctl show": shown(active="failed", enabled="disabled", config="")})
        unit(name="it", unit="x.service", config="now")
        assert told()[-2:] == [
            "- x.service: not active, not enabled, configuration unknown",
            "+ x.service: active, enabled, configuration now",
        ]


class TestOnlyUnits:
    LISTED = "\n".join(f"slot@{number}.service loaded active exited x" for number in range(2, 6))
    VALUES: ClassVar[dict[str, Any]] = {"template": "slot@.service", "needed_by": "vm@.service"}

    def run(self, faked: Faked, wanted: list[int], vms: str = "") -> list[str]:
        host = faked({"'slot@*.service'": self.LISTED, "'vm@*.service'": vms})
        names = [f"slot@{number}.service" for number in wanted]
        return host.commands(stop_other_units, wanted=names, **self.VALUES)

    def test_those_beyond_the_wanted_stop_unless_a_vm_has_come(self, faked: Faked) -> None:
        assert self.run(faked, [2, 3]) == [
            f"case $(systemctl show -P ActiveState vm@{number}.service) in inactive|failed) "
            f"systemctl stop slot@{number}.service;; esac"
            for number in (4, 5)
        ]

    def test_those_whose_vm_runs_stay(self, faked: Faked) -> None:
        (command,) = self.run(faked, [2, 3], "vm@4.service loaded active running x")
        assert "systemctl stop slot@5.service" in command

    def test_a_vm_that_failed_keeps_nothing(self, faked: Faked) -> None:
        assert len(self.run(faked, [2, 3], "vm@4.service loaded failed failed x")) == 2

    def test_a_plan_names_all_of_them(self, faked: Faked, told: Callable[[], list[str]]) -> None:
        # It asks for no more than the first command.
        self.run(faked, [])
        lines = dict.fromkeys(line for line in told() if line.startswith("- slot@"))
        assert list(lines) == [f"- slot@{number}.service: active" for number in range(2, 6)]

    @pytest.mark.parametrize("wanted", [[2, 3, 4, 5], [2, 3, 4, 5, 6]])
    def test_nothing_where_none_is_too_many(self, faked: Faked, wanted: list[int]) -> None:
        assert self.run(faked, wanted) == []


class TestNoOverrides:
    def test_they_go_before_systemd_reads_its_files_again(
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


class TestOnlyRootWrites:
    def test_the_paths_are_named_and_the_host_mends_them(
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

    def test_what_is_known_as_it_is(self, faked: Faked) -> None:
        assert self.run(faked, "NeedDaemonReload=no") == []

    @pytest.mark.parametrize("said", ["NeedDaemonReload=yes", "Touched=yes"])
    def test_another_file_is_read_and_nothing_restarts(self, faked: Faked, said: str) -> None:
        assert self.run(faked, said) == ["systemctl daemon-reload"]


class TestFolders:
    FOLDERS: ClassVar[dict[str, Any]] = {
        "/a": ("755", "root", "root"),
        "/b": ("2750", "u", "g"),
    }

    def run(self, faked: Faked, *lines: str) -> list[str]:
        host = faked({"stat": "\n".join(lines)})
        return host.commands(create_tmpfiles_folders, file="/etc/t.conf", folders=self.FOLDERS)

    def test_all_are_as_they_should_be(self, faked: Faked) -> None:
        assert self.run(faked, "directory:/a:755:root:root", "directory:/b:2750:u:g") == []

    def test_one_command_mends_all(self, faked: Faked, told: Callable[[], list[str]]) -> None:
        assert self.run(faked, "directory:/b:750:u:g") == ["systemd-tmpfiles --create /etc/t.conf"]
        assert told()[-4:] == [
            "- /a: not there",
            "+ /a: mode 755, root:root",
            "- /b: mode 750, u:g",
            "+ /b: mode 2750, u:g",
        ]


class TestOnlyFiles:
    def test_files_that_nobody_wants_go(self, faked: Faked) -> None:
        there = {"ls -1A": ["kept", "a stranger's", "old"]}
        assert faked(there).commands(
            remove_other_files, folder="/etc/x", wanted=["kept", "new"]
        ) == [
            """rm '/etc/x/a stranger'"'"'s'""",
            "rm /etc/x/old",
        ]

    def test_wanted_files_and_a_folder_that_is_not_there_are_left_alone(self, faked: Faked) -> None:
        for there in (["kept"], []):
            host = faked({"ls -1A": there})
            assert host.commands(remove_other_files, folder="/etc/x", wanted=["kept"]) == []


class TestKernelValue:
    def test_another_value_is_set(self, faked: Faked) -> None:
        host = faked({"sysctl -n": ["0"]})
        found = host.commands(sysctl_value, key="net.ipv4.ip_forward", value="1")
        assert found == ["sysctl -q -w net.ipv4.ip_forward=1"]

    def test_the_same_one_is_not(self, faked: Faked) -> None:
        host = faked({"sysctl -n": ["1"]})
        assert host.commands(sysctl_value, key="net.ipv4.ip_forward", value="1") == []


class TestLiveFirewall:
    VALUES: ClassVar[dict[str, Any]] = {
        "family": "inet",
        "table": "polydev",
        "text": "x",
        "path": "/etc/f.nft",
    }

    def test_a_difference_loads_the_file(self, faked: Faked, told: Callable[[], list[str]]) -> None:
        host = faked({"unshare": ["--- live", "+++ wanted", "-drop", "+accept"]})
        assert host.commands(load_firewall, **self.VALUES) == ["nft -f /etc/f.nft"]
        assert told()[3:5] == ["-drop", "+accept"]

    def test_none_does_nothing(self, faked: Faked) -> None:
        assert faked().commands(load_firewall, **self.VALUES) == []


class TestFile:
    DATA = b"\x00\xffprogram"
    SUM = hashlib.sha256(DATA).hexdigest()

    WANTED: ClassVar[dict[str, str]] = {"mode": "755", "user": "root", "group": "root"}

    def run(self, host: FakeHost) -> list[str]:
        return host.commands(file, path="/bin/x", data=self.DATA, **self.WANTED)

    def there(self, faked: Faked, *, digest: str = SUM, rights: str = "755 root root") -> list[str]:
        return self.run(faked({"sha256sum": [rights, f"{digest}  -"]}))

    def test_the_same_one_stays(self, faked: Faked) -> None:
        assert self.there(faked) == []

    def test_another_one_is_replaced(self, faked: Faked) -> None:
        assert self.there(faked, digest=A) == ["place /bin/x"]

    @pytest.mark.parametrize("rights", ["644 root root", "755 ada root", "755 root ada"])
    def test_mode_and_owner_alone_are_mended_in_place(self, faked: Faked, rights: str) -> None:
        found = self.there(faked, rights=rights)
        assert found == ["chown root:root /bin/x && chmod 755 /bin/x"]

    def test_a_missing_one_is_sent(self, faked: Faked) -> None:
        assert self.run(faked()) == ["place /bin/x"]

    def test_nobody_is_shown_a_secret(
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

    def test_differences_of_a_text_are_told_line_by_line(
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

    def test_one_as_it_should_be(self, faked: Faked) -> None:
        assert self.run(faked(self.stat())) == []

    def test_one_that_is_missing(self, faked: Faked) -> None:
        assert self.run(faked()) == ["mkdir -p /x", "chmod 00755 /x && chown root:root /x"]

    @pytest.mark.parametrize(("mode", "user"), [("drwxrwxrwx", "root"), ("drwxr-xr-x", "ada")])
    def test_mode_and_owner_are_mended_and_told(
        self, faked: Faked, told: Callable[[], list[str]], mode: str, user: str
    ) -> None:
        assert self.run(faked(self.stat(mode, user))) == ["chmod 00755 /x && chown root:root /x"]
        assert "+ /x: mode 755, root:root" in told()

    def test_set_id_bits_are_seen_and_taken_away(self, faked: Faked, tmp_path: Path) -> None:
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

    def test_nothing_where_it_is_golden(self, faked: Faked) -> None:
        assert self.run(faked, {"images": [A, C], "golden": C}) == []

    def test_one_that_is_there_only_becomes_golden(self, faked: Faked) -> None:
        found = self.run(faked, {"images": [A, C], "golden": A})
        assert found == [f"/opt/polydev-ai/bin/polydev-host image golden --digest {C}"]

    @pytest.mark.parametrize(
        "there", [{}, {"images": [], "golden": None}, {"images": [A, B], "golden": A}]
    )
    def test_one_that_is_missing_is_sent_added_and_made_golden(
        self, faked: Faked, there: object
    ) -> None:
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
    def test_it_is_sent_against_what_is_there(
        self, faked: Faked, monkeypatch: pytest.MonkeyPatch, there: object, basis: str | None
    ) -> None:
        sent: list[object] = []
        monkeypatch.setattr(images, "send_image", lambda *words: sent.append(words))
        host = faked()
        images.golden_image(name="it", site=SITE, target=TARGET, digest=C, there=there)
        (operation,) = host.state.ops[host.host].values()
        list(operation.command_generator())[1].function()
        assert sent == [(SITE, TARGET, C, basis)]

    def test_a_plan_says_all_that_will_happen(
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

    def test_nothing_where_the_current_one_is_the_same(self, faked: Faked) -> None:
        assert self.run(faked, {"id": "20250101_000000-ffff", "digest": A}) == []

    @pytest.mark.parametrize("now", [{}, {"id": "20250101_000000-ffff", "digest": B}])
    def test_another_one_is_sent_and_made(self, faked: Faked, now: object) -> None:
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

    def test_nothing_where_the_release_and_its_configuration_are_the_same(
        self, faked: Faked
    ) -> None:
        assert self.run(faked, A, self.WORDS, []) == []

    def test_a_new_release_migrates(self, faked: Faked) -> None:
        assert self.run(faked, B, self.WORDS, []) == [f"{TOOL} release migrate --id {ID}"]

    def test_another_database_is_migrated_by_the_same_release(self, faked: Faked) -> None:
        found = self.run(faked, A, "SQLite", [], config="then")
        assert found == [f"{TOOL} release migrate --id {self.OLD}"]

    def test_a_schema_changed_by_hand_is_named_and_mended(
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

    def test_nothing_where_it_runs(self, faked: Faked) -> None:
        assert self.run(faked, A, shown()) == []

    def test_a_new_release_takes_over(self, faked: Faked) -> None:
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

    def test_one_that_is_not_enabled_gets_enabled(self, faked: Faked) -> None:
        found = self.run(faked, A, shown(enabled="disabled"))
        assert found[1] == "systemctl enable master-controller.service"

    def test_the_hosts_own_words_are_no_shell(self, faked: Faked) -> None:
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

    def test_the_first_one_of_all(self, faked: Faked) -> None:
        host = faked()
        found = host.commands(controller.handover, digest=A, release=ID, config="now", damage=[])
        assert found[-1] == f"{TOOL} handover --release {ID}"


class TestMove:
    """The database goes from SQLite to PostgreSQL with what is in it, or without."""

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
        """What keeps the move from being planned."""
        with pytest.raises((ConfigError, DeployError)) as refused:
            self.require(faked, **values)
        assert refused.value.hint
        assert "horse" not in refused.value.message
        return str(refused.value.message)

    def test_the_host_tries_a_database_that_it_does_not_use_yet(self, faked: Faked) -> None:
        faked({"database check": json.dumps(self.USABLE).splitlines()})
        assert database.require_usable(self.URL) == self.USABLE

    @pytest.mark.parametrize("end", ["", "\n"])
    def test_one_that_it_uses_already_is_not_tried(self, faked: Faked, end: str) -> None:
        digest = hashlib.sha256(f"{self.URL}{end}".encode()).hexdigest()
        known = f"600 root root\n{digest}  -".splitlines()
        faked({"stat -c": known, "database check": ['{"error": "database-unusable"}']})
        assert database.require_usable(self.URL) == {}

    def test_a_database_that_the_host_cannot_use_is_refused_with_its_words(
        self, faked: Faked
    ) -> None:
        said = {"error": "database-unusable", "message": "no route", "hint": "open the port"}
        faked({"database check": [json.dumps(said)]})
        with pytest.raises(
            DeployError, match=r"cannot use the database of secrets.database-url: no route$"
        ) as told:
            database.require_usable(self.URL)
        assert told.value.hint == "open the port"

    def test_an_empty_database_that_the_secret_names_will_do(self, faked: Faked) -> None:
        self.require(faked)

    def test_without_the_secret_it_is_refused(self, faked: Faked) -> None:
        assert "secrets.database-url is missing" in self.refusal(faked, url=None)

    def test_a_host_with_postgresql_has_nothing_to_move(self, faked: Faked) -> None:
        assert "uses PostgreSQL, x already" in self.refusal(faked, was="PostgreSQL, x")

    def test_a_host_without_a_controller_has_nothing_to_move(self, faked: Faked) -> None:
        assert "no controller is deployed there" in self.refusal(faked, checked=False)

    def test_rows_that_are_there_are_refused_unless_they_are_to_go(self, faked: Faked) -> None:
        said = self.refusal(faked, occupied=["users", "slots"])
        assert "data at db.example as me has rows in users, slots already" in said
        self.require(faked, how="replace", occupied=["users"])

    def test_the_host_copies_while_the_controller_is_stopped(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        known = json.dumps({"id": "20250101_000000-ffff", "digest": A})
        host = faked({"release.json": [known], "systemctl show": shown(config="then")})
        values = {"digest": A, "release": ID, "config": "now", "move": f"--backup {ID}"}
        found = host.commands(controller.handover, **values, damage=[])
        assert found == [f"{TOOL} database move --release 20250101_000000-ffff --backup {ID}"]
        assert any("is stopped while its database is copied" in line for line in told())

    def test_another_database_without_a_move_is_warned_of(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        faked({"release.json": [json.dumps({"id": ID})]})
        database.warn_of_another("SQLite", "PostgreSQL, x")
        warning = told()[-1]
        assert "from SQLite to PostgreSQL, x. Nothing is copied" in warning
        assert "./inv database.move --to postgresql takes them along" in warning

    def test_a_plan_names_what_becomes_of_the_database(self) -> None:
        assert DatabaseChange("SQLite", "SQLite").operation == "database"
        other = DatabaseChange("SQLite", "PostgreSQL, x")
        assert other.operation.startswith("database: PostgreSQL, x instead of SQLite, ")
        moved = replace(other, is_move=True)
        assert "nothing" in other.operation
        assert "nothing" not in moved.operation
        assert other.differences(ID)[:2] == ["- database: SQLite", "+ database: PostgreSQL, x"]
        (same,) = DatabaseChange("SQLite", "SQLite").differences(ID)
        assert same == f"  database: SQLite, at the schema of release {ID}"

    def test_a_plan_shows_what_is_deleted(self) -> None:
        for replaces in (False, True):
            change = DatabaseChange("SQLite", "PostgreSQL, x", is_move=True, replaces=replaces)
            shown = "\n".join(change.differences(ID))
            assert ("without a backup" in shown) == replaces
            assert change.move_words(ID).endswith("--replace") == replaces

    def test_a_first_deployment_has_nothing_to_lose(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        faked()
        database.warn_of_another("SQLite", "PostgreSQL, x")
        assert not any("database changes" in line for line in told())


class TestListening:
    def test_a_host_that_cannot_say_is_deployed_to(self, faked: Faked) -> None:
        faked()
        controller.require_free_address(SITE, {})

    def test_an_address_that_the_host_lacks_is_refused(self, faked: Faked) -> None:
        faked()
        with pytest.raises(
            DeployError, match=r"controller_listen 10\.9\.9\.9:4000: the host has no"
        ):
            controller.require_free_address(
                HostData(controller_listen="10.9.9.9:4000"), {"hasAddress": False, "others": []}
            )

    def test_the_bridges_may_come_with_this_deployment(self, faked: Faked) -> None:
        faked()
        site = HostData(controller_listen=f"{SITE.gateway}:4000")
        controller.require_free_address(site, {"hasAddress": False, "others": []})

    def test_a_port_of_another_program_is_refused_by_its_name(self, faked: Faked) -> None:
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

    def test_a_lost_socket_is_drift_and_is_made_anew(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        found = faked().commands(controller.mend_socket, lost=True)
        assert found == [
            "systemctl stop master-controller.socket",
            "systemctl start master-controller.socket master-controller.service",
        ]
        assert "- master-controller.socket: active, but without its socket" in told()

    def test_one_that_listens_is_left_alone(self, faked: Faked) -> None:
        assert faked().commands(controller.mend_socket, lost=False) == []


class TestReach:
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

    def test_no_timer_where_the_way_stays(self, faked: Faked) -> None:
        assert self.arm(faked, "h", []) == []

    @pytest.mark.parametrize(("confirmed", "difference"), [(None, []), ("g", []), ("h", ["-x"])])
    def test_a_change_has_a_backup_and_then_a_timer(
        self, faked: Faked, confirmed: str | None, difference: list[str]
    ) -> None:
        backup, timer = self.arm(faked, confirmed, difference)
        assert backup.startswith(f"test -e /opt/polydev-ai/backups/{ID}/backup.json || printf %s ")
        assert """'{"paths": ["it'"'"'s"]}'""" in backup
        assert timer == f"{TOOL} deadman arm --seconds 90 --backup {ID}"

    def test_a_bridge_changed_by_hand_has_a_timer_too(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"reach.json": ['{"confirmed": "h"}'], "unshare": []})
        values = {**self.VALUES, "bridge": ["- br-vm state: down"]}
        assert len(host.commands(deadman.arm, **values)) == 2
        assert "- access to the host: the bridge was changed by hand" in told()

    def test_settings_of_sshd_changed_by_hand_have_a_timer_too(
        self, faked: Faked, told: Callable[[], list[str]]
    ) -> None:
        host = faked({"reach.json": ['{"confirmed": "h"}'], "unshare": []})
        values = {**self.VALUES, "sshd": ["- sshd: passwordauthentication yes"]}
        assert len(host.commands(deadman.arm, **values)) == 2
        assert "- access to the host: the SSH daemon was changed by hand" in told()

    def confirm(self, faked: Faked, active: str) -> list[str]:
        host = faked({"systemctl show": shown(active=active)})
        return host.commands(deadman.confirm, reach="h", target=TARGET, seconds=90)

    def test_a_timer_is_stopped_from_outside_and_then_remembered(self, faked: Faked) -> None:
        assert self.confirm(faked, "active") == [
            HERE,
            f"""printf %s '{{"confirmed": "h"}}' >{ACCESS_STAMP}""",
        ]

    def test_without_one_there_is_nothing_to_confirm(self, faked: Faked) -> None:
        assert self.confirm(faked, "inactive") == []


class TestSecrets:
    def test_one_that_is_missing_is_named(self, faked: Faked, tmp_path: Path) -> None:
        faked()
        site = HostData(secrets={"jwt-secret": tmp_path / "none"}, deployment_id=ID)
        with pytest.raises(ConfigError, match=r"secrets\.jwt-secret: .*No such file"):
            controller.controller(site, TARGET, ID, HostReport())
