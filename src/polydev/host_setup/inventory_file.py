"""Inventories: files of Python, as pyinfra has them, read without pyinfra.

    file, group_data/*.py → host → its own values, over those of its groups, over those of all

Mistakes that pyinfra ignores are errors here.
"""

from __future__ import annotations

import ast
import runpy
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from polydev.errors import ConfigError, Error
from polydev.host_setup.ssh_settings import check_host_name
from polydev.validation import near

LIST = "browser_hosts"
# Keys that verbs set for one deployment; in an inventory they would apply to all.
OF_VERBS = ("target", "deployment_id", "move_database")
HINT = f"inventory/production.example.py shows the list, {LIST}"


def read_inventory(file: Path) -> dict[str, dict[str, Any]]:
    """Return the values of each host. Raises ConfigError unless the file is sound.

    A host's groups are the lists that name it, in their order, and then the file itself.
    """
    if not file.is_file():
        hint = "./inv lab.up, or see inventory/production.example.py"
        raise ConfigError(f"no inventory {file}", hint)
    lists = _sound_lists(file)
    lists.setdefault(file.stem, (lists[LIST][0], {}))
    of_groups = {each.stem: _group_values(each) for each in _group_files(file)}
    for group, (_, data) in lists.items():
        _refuse_keys_of_verbs(data, file, group)
    hosts = {}
    for name in lists[LIST][0]:
        of_all: dict[str, Any] = dict(of_groups.get("all", {}))
        own: dict[str, Any] = {}
        for group, (members, data) in lists.items():
            if name in members:
                of_all |= {**data, **of_groups.get(group, {})}
                own |= members[name]
        hosts[name] = of_all | own
    return hosts


Group = tuple[dict[str, dict[str, Any]], dict[str, Any]]
"""The values of each host that a list names, and those of the list itself."""


def _sound_lists(file: Path) -> dict[str, Group]:
    """Run the file; return its lists. Raises ConfigError unless all hosts are in one, LIST."""
    for each in (file, *_group_files(file)):
        _refuse_keys_twice(each)
    names = _run(file)
    lists = {name: value for name, value in names.items() if _is_group(name, value)}
    if LIST not in names:
        others = ", ".join(lists)
        meant = near(LIST, list(lists)) if len(lists) != 1 else f"; did you mean {others}?"
        raise ConfigError(f"there is no list {LIST}{meant}", HINT, file=file)
    found, _ = _members(names[LIST])
    if not isinstance(found, list):
        kind = type(names[LIST]).__name__
        raise ConfigError(f"must be a list, and is of type {kind}", HINT, file=file, key=LIST)
    known = list(_host_names(found, file))
    groups: dict[str, Group] = {}
    for name, value in lists.items():
        members, data = _members(value)
        for host in _values_by_name(members):
            if host not in known:
                raise ConfigError(
                    f"{host!r} is not in {LIST}; every list counts as hosts",
                    f"name the host in {LIST}; a list of other things is named with an underscore, "
                    f"as _{name}",
                    file=file,
                    key=name,
                )
        groups[name] = _values_by_name(members), data
    groups.setdefault(LIST, ({}, {}))
    return groups


def _members(value: Any) -> tuple[Any, dict[str, Any]]:
    """Return the hosts of a group and its own values, if it has any."""
    is_pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict)
    return value if is_pair else (value, {})


def _values_by_name(members: list[Any]) -> dict[str, dict[str, Any]]:
    pairs = (each if isinstance(each, tuple) else (each, {}) for each in members)
    return {name: dict(values) for name, values in pairs}


def _group_files(file: Path) -> list[Path]:
    return sorted((file.parent / "group_data").glob("*.py"))


def _group_values(file: Path) -> dict[str, Any]:
    """Return what a file of group data sets: its names, without those that it imports."""
    names = _run(file)
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in ast.parse(file.read_bytes()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    values = {
        name: value
        for name, value in names.items()
        if name not in imported and not name.startswith("__")
    }
    _refuse_keys_of_verbs(values, file, "its keys")
    return values


def _host_names(hosts: list[Any], file: Path) -> Iterator[str]:
    seen: set[str] = set()
    for index, each in enumerate(hosts):
        key = f"{LIST}[{index}]"
        match each:
            case str(name) if name:
                pass
            case (str(name), dict(values)) if name and not isinstance(each, list):
                _refuse_keys_of_verbs(values, file, key)
            case _:
                words = 'must be a name, or a name with its values: ("browsers-1", {"slots": 8})'
                raise ConfigError(words, HINT, file=file, key=key)
        try:  # a name that begins with @ is one of pyinfra's connectors
            check_host_name(name.removeprefix("@").partition("/")[0] or name)
        except ValueError as error:
            raise ConfigError(f"{name!r} {error}", HINT, file=file, key=key) from None
        if name in seen:
            words = f"the host {name} is listed twice"
            raise ConfigError(
                words, "list each host once, with all of its values", file=file, key=key
            )
        seen.add(name)
        yield name


def _refuse_keys_of_verbs(values: Iterable[object], file: Path, place: str) -> None:
    for name in OF_VERBS:
        if name in values:
            hint = "remove it; ./inv deploy --help and ./inv database.move --help have options"
            raise ConfigError(f"{name} is set by verbs only", hint, file=file, key=place)


def _is_group(name: str, value: Any) -> bool:
    """Whether pyinfra takes this name of the file for a group of hosts."""
    if isinstance(value, tuple) and value:
        value = value[0]
    is_list = isinstance(value, list) and bool(value)
    return is_list and not name.startswith("_") and all(isinstance(x, str | tuple) for x in value)


def _refuse_keys_twice(file: Path) -> None:
    """Raise ConfigError if a mapping has a key twice: Python would use the last."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return  # the error comes when the file is run
    for node in ast.walk(tree):
        lines: dict[object, int] = {}
        for key in node.keys if isinstance(node, ast.Dict) else ():
            if isinstance(key, ast.Constant):
                if key.value in lines:
                    before = lines[key.value]
                    raise ConfigError(
                        f"this key appears twice, in line {before} and in line {key.lineno}",
                        "remove one of them",
                        file=file,
                        key=str(key.value),
                    )
                lines[key.value] = key.lineno


def _run(file: Path) -> dict[str, Any]:
    try:
        return runpy.run_path(str(file))
    except Error:
        raise
    except SyntaxError as error:
        words = f"is not valid Python: {error.msg}"
        where = f"line {error.lineno}" if error.lineno else ""
        raise ConfigError(words, HINT, file=file, key=where) from None
    except SystemExit:
        raise ConfigError("ends Python, as by sys.exit()", HINT, file=file) from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"line {lines[-1]}" if lines else ""
        words = f"cannot be read: {type(error).__name__}: {error}"
        raise ConfigError(words, HINT, file=file, key=where) from None
