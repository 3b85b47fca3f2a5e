"""Users of a host as declared, and what sets back what somebody changed by hand."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from polydev.deploys.users import Account, Accounts, accounts_as_in
from tests.unit.fake_host import fake_host

WANTED = (
    Account("controller", "Controller of VMs", "/var/lib/controller"),
    Account("vm-2", "VM of slot 2"),
)
USUAL = {
    "passwd": [
        "root:x:0:0:root:/root:/bin/bash",
        "anna:x:1000:1000::/home/anna:/bin/bash",
        "controller:x:997:997:Controller of VMs:/var/lib/controller:/usr/sbin/nologin",
        "vm-2:x:996:996:VM of slot 2:/:/usr/sbin/nologin",
    ],
    "group": ["root:x:0:", "sudo:x:27:anna", "anna:x:1000:", "controller:x:997:", "vm-2:x:996:"],
    "locked": ["controller:yes", "vm-2:yes"],
}


def lines(changed: dict[str, str]) -> list[str]:
    """What a host says on which these lines, named by what they begin with, were changed."""
    return [
        f"{table}:" + changed.get(f"{table}:{line.partition(':')[0]}", line)
        for table, all_lines in USUAL.items()
        for line in all_lines
    ]


def run(changed: dict[str, str] | None = None, without: str = "") -> list[str]:
    said = [line for line in lines(changed or {}) if not without or f":{without}:" not in line]
    with fake_host({"getent passwd": said}) as host:
        return host.commands(accounts_as_in, file="/etc/u.conf", wanted=WANTED)


def told(caplog: pytest.LogCaptureFixture) -> set[str]:
    """The differences shown."""
    said = (record.getMessage().strip() for record in caplog.records)
    return {line for line in said if line[:2] in ("- ", "+ ")}


def test_as_declared() -> None:
    assert run() == []


def test_one_command_makes_all_that_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pyinfra")
    assert run(without="vm-2") == ["systemd-sysusers /etc/u.conf"]
    assert told(caplog) == {"+ user vm-2"}


CONTROLLER = USUAL["passwd"][2]


@pytest.mark.parametrize(
    ("changed", "difference", "command"),
    [
        (
            {"passwd:controller": CONTROLLER.replace("/usr/sbin/nologin", "/bin/bash")},
            "shell /bin/bash",
            "usermod --shell /usr/sbin/nologin controller",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("/var/lib/controller", "/tmp")},
            "home /tmp",
            "unshare --fork --pid --mount-proc usermod --home /var/lib/controller controller",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("Controller of VMs", "")},
            "comment ",
            "usermod --comment 'Controller of VMs' controller",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("997:997", "997:27")},
            "group sudo",
            "usermod --gid controller controller",
        ),
        (
            {"passwd:controller": CONTROLLER.replace("997:997", "997:31337")},
            "group 31337",
            "usermod --gid controller controller",
        ),
        (
            {"locked:controller": "controller:no"},
            "password not locked",
            "usermod --password '!*' controller",
        ),
        (
            {"group:sudo": "sudo:x:27:anna,controller"},
            "further groups sudo",
            "usermod --groups '' controller",
        ),
        (
            {"group:controller": "controller:x:997:anna"},
            "further members of its group anna",
            "gpasswd --members '' controller",
        ),
        (
            {"passwd:anna": "anna:x:1000:997::/home/anna:/bin/bash"},
            "further members of its group anna",
            "usermod --gid anna anna",
        ),
    ],
)
def test_each_change_by_hand_is_named_and_set_back(
    changed: dict[str, str], difference: str, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pyinfra")
    first, *commands = run(changed)
    assert first == "systemd-sysusers /etc/u.conf"
    assert any(each.endswith(command) for each in commands), commands
    said = told(caplog)
    assert f"- user controller: {difference}".strip() in said
    assert len(said) == 2


def test_a_password_stays_on_the_host() -> None:
    """The question as this machine's own shell answers it."""
    asked = Accounts().command(("root", "nobody"))
    output = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True).stdout
    shadow = subprocess.run(
        ["getent", "shadow", "root", "nobody"], capture_output=True, text=True, check=True
    ).stdout
    locked = [line for line in output.splitlines() if line.startswith("locked:")]
    fields: list[Any] = [line.split(":") for line in shadow.splitlines()]
    assert locked == [
        f"locked:{name}:{'yes' if word[:1] in ('!', '*') else 'no'}" for name, word, *_ in fields
    ]
    found = Accounts().process(output.splitlines())["nobody"]
    assert replace(found, comment="", others=(), members=()) == Account(
        "nobody", "", "/nonexistent", group="nogroup", is_locked=True
    )
