"""All that a deployment's plan asks the host tool about a host, in one call.

Starting Python takes longer than most of these questions, so it is started once, and questions that
wait for other programs run in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from polydev.hosttool import (
    accounts,
    config_file_conflicts,
    controller_socket,
    database_schema_cache,
    disk_reserve,
    file_permissions,
    images,
    network_state,
    network_watch,
    polkit,
    release_files,
    run_controller_command,
    sshd,
    unit_overrides,
)
from polydev.hosttool.errors import HostError

if TYPE_CHECKING:
    from polydev.hosttool.verb import Call

Json = dict[str, Any]


def inspect_host(call: Call, question: Mapping[str, Any]) -> Json:
    """Answer each part of the question; a part that fails has `error` and `message`.

    `host` is the host.json to come, `socket` the address at which the controller is to listen,
    `parts` are the names of the questions.
    """
    from concurrent.futures import ThreadPoolExecutor

    asked = [name for name in PARTS if name in question["parts"]]
    with ThreadPoolExecutor(max(1, len(asked))) as pool:
        said = {name: pool.submit(_answer, PARTS[name], call, question) for name in asked}
    return {name: each.result() for name, each in said.items()}


Part = Callable[["Call", Mapping[str, Any]], object]


def _answer(part: Part, call: Call, question: Mapping[str, Any]) -> object:
    try:
        return part(call, question)
    except HostError as error:
        return error.as_dict()
    except (OSError, ValueError, KeyError) as error:
        return HostError("unread", f"{type(error).__name__}: {error}").as_dict()


def _database(call: Call, _question: Mapping[str, Any]) -> Json:
    """Return the database that the host's files name, and what its release finds wrong with it."""
    named: Json = {"database": run_controller_command.database_in_words(call.paths)}
    asked = run_controller_command.current_program(call.paths)
    if not asked.file.exists():
        return named
    if database_schema_cache.is_known(call.paths, asked.release.name):
        return {**named, "differences": []}
    try:
        said = asked.ask("database", "check", "--no-tools", code="database-unusable")
    except HostError as error:
        return {**named, "differences": [f"- {error.message}"], "hint": error.hint}
    found = said.get("differences")
    if found == []:
        database_schema_cache.remember(call.paths, asked.release.name)
    return {**named, "differences": found or []}


def _accounts(call: Call, question: Mapping[str, Any]) -> list[str]:
    return accounts.differences(accounts.accounts_of(question["host"]), call.paths.etc)


def _socket(call: Call, question: Mapping[str, Any]) -> Json:
    where = question["socket"]
    return controller_socket.state(call.systemd, where["address"], where["port"])


# The slowest come first.
PARTS: dict[str, Part] = {
    "database": _database,
    "network": lambda _, question: network_state.as_document(network_state.check(question["host"])),
    "release": lambda call, _: release_files.current_damage(call.paths.controller),
    "socket": _socket,
    "sshd": lambda _, question: sshd.differences(question["host"]["sshd"]),
    "polkit": lambda call, question: polkit.differences(question["host"], call.paths.root),
    "accounts": _accounts,
    "overrides": lambda call, question: unit_overrides.find(
        question["host"]["ownUnits"], call.paths.root
    ),
    "settings": lambda call, question: config_file_conflicts.differences(
        question["host"], call.paths.root
    ),
    "permissions": lambda call, _: file_permissions.find(file_permissions.trees(call.paths)),
    "reserve": lambda call, _: disk_reserve.differences(call.paths),
    "watch": lambda *_: network_watch.watch_differences(),
    "images": lambda call, _: images.listing(call.paths.images),
}
