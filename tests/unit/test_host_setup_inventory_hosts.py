"""Hosts of an inventory, described without pyinfra."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from polydev.errors import ConfigError
from polydev.host_setup.inventory_hosts import described_hosts
from polydev.host_setup.inventory_values import check_host_data
from polydev.processes import run

ROOT = Path(__file__).resolve().parents[2]


def test_describing_hosts_does_not_import_pyinfra() -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from polydev.host_setup import __main__, inventory_hosts; "
        "inventory_hosts.described_hosts(Path('inventory/production.example.py')); "
        "print([each for each in sys.modules if each.startswith(('pyinfra', 'gevent'))])"
    )
    assert run([sys.executable, "-c", program], cwd=ROOT).stdout.strip() == "[]"


def test_example_inventory_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (host,) = described_hosts(ROOT / "inventory/production.example.py")
    assert host["name"] == "browsers-1.example.com"
    assert host["connection"]["ssh_user"] == "deploy"
    assert host["connection"]["ssh_known_hosts_file"] == "~/.ssh/known_hosts"
    assert host["deadmanSeconds"] == 90
    assert "microvm-slot@17.service" in host["scope"]["units"]


def test_example_inventory_has_only_known_keys() -> None:
    ((name, values),) = runpy.run_path(str(ROOT / "inventory/production.example.py"))[
        "browser_hosts"
    ]
    assert check_host_data(values, name).slots == 16
    text = (ROOT / "inventory/production.example.py").read_text()
    for key in ("secrets", "firecracker", "image"):
        assert f'# "{key}": ' in text


def test_list_with_a_wrong_name_is_refused(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("hosts = [('browsers', {'slots': 3})]\n")
    with pytest.raises(ConfigError, match="no list browser_hosts; did you mean hosts"):
        described_hosts(inventory)


def test_broken_group_data_file_is_refused_with_its_path(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("browser_hosts = ['browsers']\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "all.py").write_text("slots = eight\n")
    with pytest.raises(ConfigError, match=r"all\.py: line 1: cannot be read: NameError"):
        described_hosts(inventory)


def test_invalid_host_value_is_refused(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory.py"
    inventory.write_text("browser_hosts = [('browsers', {'slots': 0})]\n")
    with pytest.raises(ConfigError, match="inventory: browsers: slots: "):
        described_hosts(inventory)


def test_missing_inventory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no inventory") as failure:
        described_hosts(tmp_path / "none.py")
    assert "lab.up" in str(failure.value.hint)
