"""Hosts of an inventory, described without pyinfra."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from polydev.deploys.host_data import check_host_data
from polydev.deploys.inventory_hosts import described_hosts
from polydev.errors import ConfigError
from polydev.run import run

ROOT = Path(__file__).resolve().parents[2]


def test_pyinfra_is_not_started() -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from polydev.deploys import __main__, inventory_hosts; "
        "inventory_hosts.described_hosts(Path('inventory/production.example.py')); "
        "print([each for each in sys.modules if each.startswith(('pyinfra', 'gevent'))])"
    )
    assert run([sys.executable, "-c", program], cwd=ROOT).stdout.strip() == "[]"


def test_the_inventory_of_a_real_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (host,) = described_hosts(ROOT / "inventory/production.example.py")
    assert host["name"] == "browsers-1.example.com"
    assert host["connection"]["ssh_user"] == "deploy"
    assert host["connection"]["ssh_known_hosts_file"] == "~/.ssh/known_hosts"
    assert host["deadmanSeconds"] == 90
    assert "microvm-slot@17.service" in host["scope"]["units"]


def test_its_keys_are_all_known_and_those_commented_out_too() -> None:
    ((name, values),) = runpy.run_path(str(ROOT / "inventory/production.example.py"))[
        "browser_hosts"
    ]
    assert check_host_data(values, name).slots == 16
    text = (ROOT / "inventory/production.example.py").read_text()
    for key in ("secrets", "firecracker", "image"):
        assert f'# "{key}": ' in text


def test_a_list_of_another_name_is_named(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("hosts = [('browsers', {'slots': 3})]\n")
    with pytest.raises(ConfigError, match="no list browser_hosts; did you mean hosts"):
        described_hosts(inventory)


def test_a_broken_file_of_values_for_all_is_named(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("browser_hosts = ['browsers']\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "all.py").write_text("slots = eight\n")
    with pytest.raises(ConfigError, match=r"all\.py: line 1: cannot be read: NameError"):
        described_hosts(inventory)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("browser_hosts = [('browsers', {'slots': 0})]\n")
    with pytest.raises(ConfigError, match="inventory: browsers: slots: "):
        described_hosts(inventory)


def test_an_inventory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no inventory") as failure:
        described_hosts(tmp_path / "none.py")
    assert "lab.up" in str(failure.value.hint)
