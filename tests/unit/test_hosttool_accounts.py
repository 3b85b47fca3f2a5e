"""Users of a host as declared, and how changes by hand are undone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from polydev.host_setup.accounts import declared_accounts, mend_accounts
from polydev.host_setup.inventory_values import HostData
from polydev.hosttool import accounts
from polydev.hosttool import sudoers as host_sudoers
from polydev.hosttool.accounts import (
    Account,
    accounts_of,
    correcting_commands,
    differences,
    read,
    set_back,
)
from polydev.hosttool.errors import HostError
from polydev.hosttool.sudoers import is_only_about
from tests.unit.fake_host import fake_host

WANTED = [
    Account("controller", "Controller of VMs", "/var/lib/controller").declared,
    Account("vm-2", "VM of slot 2").declared,
]
USUAL = {
    "passwd": [
        "root:x:0:0:root:/root:/bin/bash",
        "anna:x:1000:1000::/home/anna:/bin/bash",
        "controller:x:997:997:Controller of VMs:/var/lib/controller:/usr/sbin/nologin",
        "vm-2:x:996:996:VM of slot 2:/:/usr/sbin/nologin",
    ],
    "group": ["root:x:0:", "sudo:x:27:anna", "anna:x:1000:", "controller:x:997:", "vm-2:x:996:"],
    "gshadow": ["root:*::", "sudo:*::anna", "anna:!::", "controller:!*::", "vm-2:!::"],
    "shadow": ["root:*:1::::::", "controller:!*:1::::::", "vm-2:!*:1::::::"],
    "sudoers": ["root ALL=(ALL:ALL) ALL", "%sudo ALL=(ALL:ALL) ALL", "@includedir /etc/sudoers.d"],
}
CONTROLLER = USUAL["passwd"][2]


def etc(folder: Path, changed: dict[str, str] | None = None, without: str = "\0") -> Path:
    """Write the account files of a host with these changed lines, named by their beginnings."""
    changed = changed or {}
    for table, all_lines in USUAL.items():
        lines = [
            changed.get(f"{table}:{line.partition(':')[0]}", line)
            for line in all_lines
            if not line.startswith(f"{without}:")
        ]
        (folder / table).write_text("".join(f"{line}\n" for line in lines))
    (folder / "sudoers.d").mkdir(exist_ok=True)
    return folder


def test_no_differences_for_accounts_as_declared(tmp_path: Path) -> None:
    assert differences(WANTED, etc(tmp_path)) == []


def test_missing_user_is_a_difference(tmp_path: Path) -> None:
    assert differences(WANTED, etc(tmp_path, without="vm-2")) == ["+ user vm-2"]


@pytest.mark.parametrize(
    ("changed", "difference", "command"),
    [
        (
            {"passwd:controller": CONTROLLER.replace("/usr/sbin/nologin", "/bin/bash")},
            "shell /bin/bash",
            "",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("/var/lib/controller", "/tmp")},
            "home /tmp",
            "",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("Controller of VMs", "")},
            "comment ",
            "",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("997:997", "997:27")},
            "group sudo",
            "",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("997:997", "997:31337")},
            "group 31337",
            "",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("997:997", "0:997")},
            "ids 0:997, of others too",
            "chown --recursive controller:controller /var/lib/controller",
        ),
        (
            {"group:root": "root:x:997:"},
            "ids 997:997, of others too",
            "chown --recursive controller:controller /var/lib/controller",
        ),
        (
            {"shadow:controller": "controller:$y$j9T$:1::::::"},
            "password not locked",
            "usermod --password !* controller",
        ),
        (
            {"group:sudo": "sudo:x:27:anna,controller"},
            "further groups sudo",
            "usermod --groups  controller",
        ),
        (
            {"group:controller": "controller:x:997:anna"},
            "further members of its group anna",
            "gpasswd --members  controller",
        ),
        (
            {"gshadow:controller": "controller:!*::anna"},
            "further members of its group anna",
            "gpasswd --members  controller",
        ),
        ({"gshadow:controller": "controller:!*:anna:"}, "administrators of its group anna", ""),
        ({"gshadow:controller": "controller:$y$j9T$::"}, "password of its group set", ""),
        ({"group:controller": "controller:$1$a:997:"}, "password of its group set", ""),
        (
            {"passwd:anna": "anna:x:1000:997::/home/anna:/bin/bash"},
            "further members of its group anna",
            "sh anna controller",
        ),
    ],
)
def test_each_change_by_hand_is_found_and_set_back(
    tmp_path: Path, changed: dict[str, str], difference: str, command: str
) -> None:
    folder = etc(tmp_path, changed)
    said, there = differences(WANTED, folder), read(folder)
    assert f"- user controller: {difference}" in said
    commands = [" ".join(each) for each in correcting_commands(there["controller"], WANTED[0])]
    if command:
        assert any(each.endswith(command) for each in commands)
        return
    assert commands == []
    set_back(WANTED[:1], there, folder)
    assert differences(WANTED, folder) == []


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"passwd:vm-2": "vm-2:x:0:996:VM of slot 2:/:/usr/sbin/nologin"}, "996"),
        ({"group:vm-2": "vm-2:x:27:"}, "996"),
        ({"passwd:vm-2": "vm-2:x:0:0::/:/bin/sh", "group:vm-2": "vm-2:x:0:"}, "999"),
        ({"passwd:vm-2": "vm-2:x:997:997::/:/bin/sh", "group:vm-2": "vm-2:x:997:"}, "999"),
        ({"passwd:vm-2": "vm-2:x:0:1000::/:/bin/sh", "group:vm-2": "vm-2:x:999:"}, "999"),
    ],
)
def test_user_gets_its_former_id_back(tmp_path: Path, changed: dict[str, str], found: str) -> None:
    folder = etc(tmp_path, changed)
    with (folder / "passwd").open("a") as file:
        file.write("+@people\n")  # a line without a user
    set_back(WANTED[1:], read(folder), folder)
    assert differences(WANTED[1:], folder) == []
    passwd = (folder / "passwd").read_text()
    assert f"vm-2:x:{found}:{found}:VM of slot 2:/:/usr/sbin/nologin\n" in passwd
    assert passwd.endswith("\n+@people\n")
    assert passwd.startswith("".join(f"{line}\n" for line in USUAL["passwd"][:3]))


def spec(*users: dict[str, object], command: dict[str, object] | None = None) -> dict[str, object]:
    """A rule as cvtsudoers writes it."""
    commands = [{"Commands": [command or {"command": "ALL"}]}]
    return {"User_List": list(users), "Cmnd_Specs": commands}


VM: dict[str, object] = {"username": "vm-2"}


@pytest.fixture
def sudoers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sudoers files with cvtsudoers' answers as content; labs test the real program."""
    monkeypatch.setattr(host_sudoers, "parse", lambda text: {"User_Specs": json.loads(text)})


@pytest.mark.usefixtures("sudoers")
@pytest.mark.parametrize(
    ("file", "rule", "is_granted"),
    [
        ("sudoers.d/90-x", spec(VM), True),
        ("sudoers.d/90-x", spec({"userid": 996}), True),
        ("sudoers.d/90-x", spec({"usergroup": "vm-2"}), True),
        ("sudoers.d/90-x", spec({"usergid": 996}), True),
        ("sudoers.d/90-x", spec({"username": "ALL"}, {"username": "root", "negated": True}), True),
        ("sudoers", spec(VM), True),
        (
            "sudoers.d/90-x",
            spec(
                {"username": "ALL"},
                {"username": "vm-2", "negated": True},
                {"username": "controller", "negated": True},
            ),
            False,
        ),
        ("sudoers.d/90-x", spec(VM, command={"command": "ALL", "negated": True}), False),
        ("sudoers.d/90-x", spec({"username": "anna"}), False),
        ("sudoers.d/90.x", spec(VM), False),
    ],
)
def test_sudo_rights_are_found(
    tmp_path: Path, file: str, rule: dict[str, object], is_granted: bool
) -> None:
    folder = etc(tmp_path)
    (folder / "sudoers").write_text("[]")
    (folder / file).write_text(json.dumps([rule]))
    said = differences(WANTED, folder)
    assert (f"- user vm-2: sudo {folder / file}" in said) == is_granted
    assert bool(said) == is_granted


@pytest.mark.usefixtures("sudoers")
@pytest.mark.parametrize(
    "line",
    [
        "@include {0}/else/where.conf",
        '@include "{0}/else/where.conf"',
        "#include ../else/where.conf",
        "  @includedir {0}/else",
        "#includedir ../else",
        "@include /etc/else/where.conf",
        "@include {0}/else/a\\ blank",
        "@include {0}/else/%h",
    ],
)
def test_included_sudoers_files_are_read(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_sudoers, "parse", parsed_with_includes)
    folder = etc(tmp_path)
    (folder / "sudoers").write_text("[]")
    (folder / "else").mkdir()
    name = os.uname().nodename.partition(".")[0]
    for each in ("where.conf", "where", "a blank", name):
        (folder / "else" / each).write_text(json.dumps([spec(VM)]))
    (folder / "sudoers.d/90-x").write_text(line.format(folder) + "\n")
    (said, _) = differences(WANTED, folder)
    assert said.startswith("- user vm-2: sudo ")
    assert f"{folder}/else/" in said or f"{folder}/sudoers.d/../else/" in said


def parsed_with_includes(text: str) -> dict[str, object]:
    return {"User_Specs": json.loads(text or "[]")}


@pytest.mark.usefixtures("sudoers")
def test_sudoers_files_including_each_other_are_read_once(tmp_path: Path) -> None:
    folder = etc(tmp_path)
    (folder / "sudoers").write_text(f"@include {folder}/sudoers\n@include {folder}/missing\n")
    assert differences(WANTED, folder) == []


@pytest.mark.usefixtures("sudoers")
def test_sudoers_file_about_other_users_too_is_not_ours(tmp_path: Path) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.write_text(json.dumps([spec(VM), spec({"username": "controller"})]))
    others.write_text(json.dumps([spec(VM, {"username": "anna"})]))
    names = {"vm-2", "controller"}
    assert is_only_about(ours, names)
    assert not is_only_about(others, names)


def test_sudoers_files_of_comments_are_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_sudoers, "parse", lambda text: pytest.fail(text))
    folder = etc(tmp_path)
    (folder / "sudoers").write_text("# nothing\n\n@includedir /etc/sudoers.d\n")
    assert differences(WANTED, folder) == []


def test_set_back_works_without_gshadow(tmp_path: Path) -> None:
    changed = CONTROLLER.replace("/usr/sbin/nologin", "/bin/bash")
    folder = etc(tmp_path, {"passwd:controller": changed})
    (folder / "gshadow").unlink()
    assert len(differences(WANTED, folder)) == 2
    set_back(WANTED[:1], read(folder), folder)
    assert differences(WANTED, folder) == []
    assert not (folder / "gshadow").exists()


def test_password_hash_is_not_kept(tmp_path: Path) -> None:
    found = read(etc(tmp_path, {"shadow:controller": "controller:$y$secret:1::::::"}))
    assert not found["controller"].is_locked
    assert "secret" not in repr(found)


def test_accounts_in_host_json_match_the_declared_ones() -> None:
    declared = declared_accounts(HostData(slots=2))
    document = json.loads(json.dumps({"accounts": [vars(each) for each in declared]}))
    assert accounts_of(document) == [each.declared for each in declared]
    assert accounts_of({}) == [], "of an earlier deploy"


class TestOperation:
    def run(self, differences: list[str] | None) -> list[str]:
        with fake_host({}) as host:
            return host.commands(mend_accounts, differences=differences, document="{}")

    def test_no_command_if_accounts_are_as_declared(self) -> None:
        assert self.run([]) == []

    @pytest.mark.parametrize("found", [None, ["- user vm-2: sudo /etc/sudoers.d/x"]])
    def test_one_command_mends_all_accounts(self, found: list[str] | None) -> None:
        (command,) = self.run(found)
        assert command.startswith("printf %s '{}' | ")
        assert command.endswith("accounts mend --host /dev/stdin")


class TestMend:
    """The complete repair, with programs that only record their arguments."""

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        made: list[list[str]] = []
        monkeypatch.setattr(accounts, "_run", made.append)
        return made

    def test_mend_without_differences_changes_nothing(
        self, asked: list[list[str]], tmp_path: Path
    ) -> None:
        assert accounts.mend(WANTED, etc(tmp_path)) == {"mended": []}
        assert asked == [["systemd-sysusers", accounts.SYSUSERS]]

    def test_mend_raises_if_differences_remain(
        self, asked: list[list[str]], tmp_path: Path
    ) -> None:
        wrong = {"group:sudo": "sudo:x:27:anna,vm-2"}
        with pytest.raises(HostError, match="vm-2") as told:
            accounts.mend(WANTED, etc(tmp_path, wrong))
        assert told.value.code == "accounts-wrong"
        there = read(etc(tmp_path, wrong))["vm-2"]
        assert asked[1:] == [list(each) for each in correcting_commands(there, WANTED[1])]
        assert asked[1:]

    def test_failed_program_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(HostError, match=r"^sh -c exit 3") as told:
            accounts._run(["sh", "-c", "exit 3"])
        assert told.value.code == "accounts-wrong"
        accounts._run(["true"])
