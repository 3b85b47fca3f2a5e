"""The SSH settings of an inventory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polydev.errors import ConfigError
from polydev.host_setup.inventory_values import check_host_data


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ssh_prot": 2222}, "ssh_prot: there is no such key; did you mean ssh_port?"),
        ({"ssh_hostnam": "x"}, "ssh_hostnam: there is no such key; did you mean ssh_hostname?"),
        ({"ssh_port": 0}, "ssh_port: must be 1 or more"),
        ({"ssh_port": 99999}, "ssh_port: must be 65535 or less"),
        ({"ssh_port": "ssh"}, "ssh_port: must be a whole number"),
        ({"ssh_hostname": "[2001:db8::10]"}, "ssh_hostname: write an IPv6 address without"),
        ({"ssh_hostname": "[2001:db8::10]:22"}, "ssh_hostname: write the port as ssh_port: 22"),
        ({"ssh_hostname": "box.example:2222"}, "ssh_hostname: write the port as ssh_port: 2222"),
        ({"ssh_hostname": "ada@box.example"}, "ssh_hostname: write the user as ssh_user: ada"),
        ({"ssh_hostname": "-oProxyCommand=x"}, "ssh_hostname: is not a name or address"),
        ({"ssh_hostname": "a b"}, "ssh_hostname: is not a name or address"),
        ({"ssh_hostname": ""}, "ssh_hostname: is not a name or address"),
        ({"ssh_user": "ada@box"}, "ssh_user: is not a name of a user"),
        ({"ssh_user": 1}, "ssh_user: must be text"),
        ({"ssh_user": "$(id)"}, "ssh_user: is not a name of a user"),
        ({"ssh_hostname": "a;b"}, "ssh_hostname: is not a name or address"),
        ({"ssh_hostname": "büro"}, "ssh_hostname: is not a name or address"),
        ({"ssh_known_hosts_file": "/"}, "ssh_known_hosts_file: is not a name of a file"),
        ({"ssh_known_hosts_file": ""}, "ssh_known_hosts_file: is not a name of a file"),
        ({"ssh_connect_retries": -1}, "ssh_connect_retries: must be 0 or more"),
        ({"ssh_key": "/nowhere/key"}, "ssh_key: no such file: /nowhere/key"),
        ({"ssh_key": ""}, "ssh_key: no such file"),
        ({"ssh_config_file": "/nowhere/config"}, "ssh_config_file: no such file"),
        ({"ssh_config_file": "~/.ssh/other"}, "ssh_config_file: write the whole path"),
        ({"ssh_password": "hunter2"}, "the host: ssh_password: ssh logs in with keys"),
        ({"ssh_key_password": "hunter2"}, "the host: ssh_key_password: .*SSH agent"),
    ],
)
def test_invalid_ssh_setting_is_refused_with_its_key(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"inventory: box: {said.replace('[', '.')}") as caught:
        check_host_data(values, "box")
    assert "hunter2" not in caught.value.message


def test_public_key_as_ssh_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key.pub").touch()
    with pytest.raises(ConfigError, match="ssh_key: this is the public key"):
        check_host_data({"ssh_key": str(tmp_path / "key.pub")}, "box")


@pytest.mark.parametrize(
    "values",
    [
        {"ssh_hostname": "2001:db8::10", "ssh_port": "2222", "ssh_user": "ada"},
        {"ssh_hostname": "fe80::1%eth0"},
        {"ssh_hostname": "box.example", "ssh_port": None},
        {"ssh_known_hosts_file": "~/a b/known", "ssh_config_file": "/dev/../etc/hostname"},
    ],
)
def test_valid_ssh_settings_are_accepted(values: dict[str, Any]) -> None:
    check_host_data(values, "box")


def test_ssh_key_path_may_contain_blanks(tmp_path: Path) -> None:
    (tmp_path / "a key").touch()
    check_host_data({"ssh_key": str(tmp_path / "a key")}, "box")
