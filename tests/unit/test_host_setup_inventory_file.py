"""Inventory files with errors that pyinfra would ignore, or report by a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.errors import ConfigError
from polydev.host_setup.inventory_file import read_inventory

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts = [('a', {})]", "there is no list browser_hosts; did you mean hosts?"),
        ("browser_host = ['a']\nx = ['b']", "there is no list browser_hosts; did you mean browser"),
        ("browserhosts = ['a']", "there is no list browser_hosts; did you mean browserhosts?"),
        ("_browser_hosts = ['a']", "there is no list browser_hosts"),
        ("", "there is no list browser_hosts"),
        ("browser_hosts = {'a': {}}", "browser_hosts: must be a list, and is of type dict"),
        ("browser_hosts = ('a', 'b', 'c')", "browser_hosts: must be a list, and is of type tuple"),
        ("browser_hosts = 'a'", "browser_hosts: must be a list, and is of type str"),
        ("browser_hosts = None", "browser_hosts: must be a list, and is of type NoneType"),
        ("browser_hosts = ['a', ['b', {}]]", "browser_hosts[1]: must be a name, or a name with"),
        ("browser_hosts = [('a', None)]", "browser_hosts[0]: must be a name, or a name with"),
        ("browser_hosts = [('a',)]", "browser_hosts[0]: must be a name, or a name with"),
        ("browser_hosts = [3]", "browser_hosts[0]: must be a name, or a name with"),
        ("browser_hosts = ['']", "browser_hosts[0]: must be a name, or a name with"),
        ("browser_hosts = ['a', ('a', {})]", "browser_hosts[1]: the host a is listed twice"),
        ("browser_hosts = ['a']\nDNS = ['8.8.8.8']", "DNS: '8.8.8.8' is not in browser_hosts"),
        ("browser_hosts = ['a']\nmore = (['b'], {})", "more: 'b' is not in browser_hosts"),
        ("browser_hosts = [\n", "line 1: is not valid Python: '[' was never closed"),
        ("x = 1\nbrowser_hosts = [y]\n", "line 2: cannot be read: NameError: name 'y' is not"),
        ("import nowhere_at_all\n", "line 1: cannot be read: ModuleNotFoundError"),
        ("browser_hosts = [' a']", "browser_hosts[0]: ' a' is not a name or address of a host"),
        ("browser_hosts = ['-oX=y']", "browser_hosts[0]: '-oX=y' is not a name or address"),
        ("browser_hosts = ['me@a']", "browser_hosts[0]: 'me@a' write the user as ssh_user: me"),
        ("browser_hosts = ['a:22']", "browser_hosts[0]: 'a:22' write the port as ssh_port: 22"),
        ("import sys\nsys.exit(0)", "ends Python, as by sys.exit()"),
    ],
)
def test_invalid_inventory_is_refused_with_its_file_and_reason(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "inventory.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_inventory(file)
    assert caught.value.message.startswith(f"{file}: {said}")
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "browser_hosts = ['a', ('b', {})]",
        "browser_hosts = (['a', 'b'], {'slots': 3})",
        "browser_hosts = []",
        "browser_hosts = ['a', 'b']\nberlin = ['a']\n_dns = ['8.8.8.8']\nports = [1, 2]\nnone = []",
    ],
)
def test_valid_inventories_are_accepted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "inventory.py"
    file.write_text(text)
    read_inventory(file)


@pytest.mark.parametrize("name", ["lab.py", "production.example.py"])
def test_inventories_of_the_checkout_are_valid(name: str) -> None:
    read_inventory(ROOT / "inventory" / name)


@pytest.mark.parametrize("name", ["inventory.py", "group_data/all.py"])
def test_duplicate_key_is_refused_with_both_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / "group_data").mkdir()
    (tmp_path / "inventory.py").write_text("browser_hosts = ['a']\n")
    with (tmp_path / name).open("a") as file:
        file.write("_x = {\n 'slots': 3,\n 'y': {'slots': 4},\n 'slots': 5}\n")
    with pytest.raises(
        ConfigError, match=r"slots: this key appears twice, in line \d and in"
    ) as told:
        read_inventory(tmp_path / "inventory.py")
    assert told.value.file == tmp_path / name


@pytest.mark.parametrize("key", ["move_database", "target", "deployment_id"])
@pytest.mark.parametrize("is_of_all", [False, True])
def test_keys_set_by_verbs_are_refused(tmp_path: Path, key: str, *, is_of_all: bool) -> None:
    """With `move_database` each deployment would delete the rows of the database."""
    values = {} if is_of_all else {key: "replace"}
    (tmp_path / "inventory.py").write_text(f"browser_hosts = [('a', {values})]\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(f"{key} = 'replace'\n" if is_of_all else "")
    with pytest.raises(ConfigError, match=f"{key} is set by verbs only"):
        read_inventory(tmp_path / "inventory.py")


@pytest.mark.parametrize(
    "text", ["target: str = 'all'", "target, slots = 'all', 3", "if True:\n    target = 'all'"]
)
def test_keys_set_by_verbs_are_refused_however_they_are_set(tmp_path: Path, text: str) -> None:
    (tmp_path / "inventory.py").write_text("browser_hosts = ['a']\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(text)
    with pytest.raises(ConfigError, match=r"all\.py: its keys: target is set by verbs only"):
        read_inventory(tmp_path / "inventory.py")


def test_keys_set_by_verbs_are_refused_in_the_values_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "inventory.py").write_text("browser_hosts = (['a'], {'target': 'all'})\n")
    with pytest.raises(ConfigError, match="browser_hosts: target is set by verbs only"):
        read_inventory(tmp_path / "inventory.py")


@pytest.mark.parametrize("text", ["slots =", "\0"])
def test_group_data_that_is_no_python_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "inventory.py").write_text("browser_hosts = ['a']\n")
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data/all.py").write_text(text)
    with pytest.raises(ConfigError, match=r"all\.py: (line 1: )?is not valid Python"):
        read_inventory(tmp_path / "inventory.py")


def test_polydev_error_in_an_inventory_is_raised_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "inventory.py"
    file.write_text("from polydev.errors import ConfigError\nraise ConfigError('mine', 'hint')\n")
    with pytest.raises(ConfigError) as caught:
        read_inventory(file)
    assert (caught.value.message, caught.value.hint) == ("mine", "hint")
