"""Operations that pyinfra lacks: facts read, commands yielded, nothing done here."""

from __future__ import annotations

import hashlib
import io
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyinfra import logger
from pyinfra.api.command import FileUploadCommand, FunctionCommand, StringCommand
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host, state
from pyinfra.facts.files import Directory, File, Sha256File
from pyinfra.operations import files

from polydev.deploys.facts import (
    Firewall,
    Folders,
    KnownUsers,
    Names,
    StaleUnits,
    SysctlValue,
    Unit,
    UnitState,
    UnitStates,
)
from polydev.deploys.render import render, render_unit
from polydev.deploys.typed import Commands, operation
from polydev.errors import Error
from polydev.hosttool.paths import Paths

TOOL = str(Paths().tool)
UNITS = "/etc/systemd/system"


@dataclass(frozen=True)
class PlacedFile:
    """A file that the deploy puts in its place."""

    path: str
    text: str

    @property
    def sum(self) -> tuple[str, str]:
        return self.path, hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class UnitConfig:
    """What a unit is to be started with: the hash in its file, and its files' own."""

    hash: str
    files: tuple[tuple[str, str], ...]


def done_here(function: Callable[..., None], *arguments: Any) -> FunctionCommand:
    """Something that is done on the operator's machine; its errors are told in their own words."""

    def run_it() -> None:
        try:
            function(*arguments)
        except Error as error:
            logger.error(error.message)
            raise

    return FunctionCommand(run_it, (), {})


def told(difference: str) -> None:
    """Show a difference where the operator asked for them, as pyinfra does for files."""
    if state.config.DIFF:
        for line in difference.splitlines():
            logger.info("  %s", line)


def text_file(
    path: str, text: str, mode: str = "644", user: str = "root", group: str = "root"
) -> OperationMeta:
    return files.put(
        name=path,
        src=io.BytesIO(text.encode()),
        dest=path,
        mode=mode,
        user=user,
        group=group,
        create_remote_dir=False,
    )


@operation
def opaque_file(path: str, data: bytes, mode: int = 755) -> Commands:
    """A file of root's that nobody is shown, put in its place by one rename: programs, secrets.

    Not files.put: it tells differences line by line, which a secret must not be, and fails on
    what is no text.
    """
    name = shlex.quote(path)
    digest = hashlib.sha256(data).hexdigest()
    there = host.get_fact(Sha256File, path=path)
    held: dict[str, Any] = dict(host.get_fact(File, path=path) or {})
    if there == digest and (held.get("mode"), held.get("user")) == (mode, "root"):
        host.noop(f"{path} is the same")
        return
    other = "the same content" if there == digest else "other content" if there else "not there"
    told(f"- {path}: {other}, mode {held.get('mode')}, {held.get('user')}")
    told(f"+ {path}: mode {mode}, root")
    if there != digest:
        fresh = f"{path}.new"
        temporary = host.get_temp_filename(fresh)
        yield FileUploadCommand(io.BytesIO(data), fresh, remote_temp_filename=temporary)
        yield StringCommand(f"chown root:root {name}.new && chmod {mode} {name}.new")
        yield StringCommand(f"mv {name}.new {name}")
    else:
        yield StringCommand(f"chown root:root {name} && chmod {mode} {name}")


def template(
    path: str, values: dict[str, Any], mode: str = "644", group: str = "root"
) -> PlacedFile:
    """Put a rendered template in its place."""
    text = render(path, values)
    text_file(path, text, mode=mode, group=group)
    return PlacedFile(path, text)


def unit_file(name: str, values: dict[str, Any], *depends: PlacedFile | str) -> UnitConfig:
    """Put a unit in its place; what it is started with: that file, those and texts it reads."""
    placed = [each for each in depends if isinstance(each, PlacedFile)]
    texts = [each.text if isinstance(each, PlacedFile) else each for each in depends]
    text, config = render_unit(name, values, texts)
    own = PlacedFile(f"{UNITS}/{name}", text)
    text_file(own.path, text)
    return UnitConfig(config, tuple(each.sum for each in (own, *placed)))


def directory(
    path: str, mode: str = "755", user: str = "root", group: str = "root"
) -> OperationMeta:
    return folder(name=path, path=path, mode=mode, user=user, group=group)


@operation
def folder(path: str, mode: str, user: str, group: str) -> Commands:
    """A folder with this mode and owner; files.directory does the same, but tells nothing."""
    there: dict[str, Any] = dict(host.get_fact(Directory, path=path) or {})
    now = (str(there.get("mode")), there.get("user"), there.get("group"))
    if now == (mode, user, group):
        host.noop(f"{path} is as it should be")
        return
    told(f"- {path}: " + (f"mode {now[0]}, {now[1]}:{now[2]}" if there else "not there"))
    told(f"+ {path}: mode {mode}, {user}:{group}")
    name = shlex.quote(path)
    if not there:
        yield StringCommand(f"mkdir -p {name}")
    yield StringCommand(f"chmod {mode} {name} && chown {user}:{group} {name}")


@operation
def users_as_in(file: str, users: tuple[str, ...]) -> Commands:
    """These users, whom a file of sysusers.d describes, are there; all by one command."""
    there: list[str] = host.get_fact(KnownUsers, users=users)
    missing = [name for name in users if name not in there]
    if not missing:
        host.noop("all users are there")
        return
    told("\n".join(f"+ user {name}" for name in missing))
    yield StringCommand(f"systemd-sysusers {shlex.quote(file)}")


@operation
def folders_as_in(file: str, folders: dict[str, tuple[str, str, str]]) -> Commands:
    """These folders, as a file of tmpfiles.d describes them; all by one command.

    To each path its mode, user and group.
    """
    there: dict[str, Any] = host.get_fact(Folders, paths=tuple(folders))
    wrong = {path: state for path, state in folders.items() if there.get(path) != state}
    if not wrong:
        host.noop("all folders are as they should be")
        return
    for path, wanted in wrong.items():
        was = "mode {}, {}:{}".format(*there[path]) if path in there else "not there"
        told(f"- {path}: {was}")
        told("+ {}: mode {}, {}:{}".format(path, *wanted))
    yield StringCommand(f"systemd-tmpfiles --create {shlex.quote(file)}")


@operation
def reread_units(pattern: str, files: tuple[tuple[str, str], ...]) -> Commands:
    """systemd knows the units of a pattern by these files, as they are; what runs runs on.

    The files are asked for too: as the plan is made, a change of them is still to come.
    """
    if not host.get_fact(StaleUnits, pattern=pattern, files=files):
        host.noop(f"{pattern} are known as they are")
        return
    told(f"- {pattern}: known by an older file")
    yield StringCommand("systemctl daemon-reload")


@operation
def unit(
    unit: str,
    config: str,
    files: tuple[tuple[str, str], ...] = (),
    stamped: bool = True,
    stop_first: str = "",
    needed_by: str = "",
) -> Commands:
    """A unit that is enabled and runs with exactly this configuration.

    What it was started with decides, not whether this deploy changes a file: one that broke
    off between the two is mended by the next one. `files` are paths with their SHA-256; what
    somebody wrote there may be what the unit runs with, although the hash in its file is right.
    A target runs nothing, so it has no stamp. `stop_first` must not run while this unit is
    restarted. As long as `needed_by` runs, a unit that is active stays as it is.
    """
    now = host.get_fact(Unit, unit=unit, files=files)
    name = shlex.quote(unit)
    is_current = not now.touched and (now.config == config or not stamped)
    if now.active and now.enabled and is_current:
        host.noop(f"{unit} runs as it should")
        return
    if now.active and now.enabled and _runs(needed_by):
        host.noop(f"{unit} stays as it is: {needed_by} runs")
        return
    told(f"- {unit}: {_state(now.active, now.enabled, now.config)}{touched_words(now, config)}")
    told(f"+ {unit}: {_state(True, True, config)}")
    yield StringCommand("systemctl daemon-reload")
    if not now.enabled:
        yield StringCommand(f"systemctl enable {name}")
    if stop_first and not (now.active and is_current):
        yield StringCommand(f"systemctl stop {shlex.quote(stop_first)}")
    if not now.active:
        # A target passes a restart on to its parts, and these may run.
        yield StringCommand(_or_why("restart" if stamped else "start", name))
    elif stamped and not is_current:
        yield StringCommand(_unless_running(needed_by, _or_why("reload-or-restart", name)))


def _runs(unit: str) -> bool:
    """Whether an instance of a template runs; one question answers for all its instances."""
    if not unit:
        return False
    states: dict[str, str] = host.get_fact(UnitStates, pattern=unit.replace(_instance(unit), "*"))
    return states.get(unit, "failed") != "failed"


def _unless_running(unit: str, command: str) -> str:
    """Decided as it runs: much may have been started since the plan."""
    if not unit:
        return command
    state = f"$(systemctl show -P ActiveState {shlex.quote(unit)})"
    return f"case {state} in inactive|failed) {command};; esac"


def touched_words(now: UnitState, config: str) -> str:
    """What only the unit's files tell; where the hash is another one, that says it all."""
    return ", files changed" if now.touched and now.config == config else ""


def _or_why(verb: str, name: str) -> str:
    """systemd says only that a unit failed; the unit itself may have said why."""
    this_start = f"i=$(systemctl show -P InvocationID {name})"
    journal = "journalctl -q --no-pager -n 15 -o cat _SYSTEMD_INVOCATION_ID=$i + INVOCATION_ID=$i"
    return f"systemctl {verb} {name} || {{ {this_start}; {journal} >&2; exit 1; }}"


def _state(active: bool, enabled: bool, config: str) -> str:
    words = ("active" if active else "not active", "enabled" if enabled else "not enabled")
    return f"{words[0]}, {words[1]}, configuration {config or 'unknown'}"


@operation
def only_units(template: str, wanted: list[str], needed_by: str) -> Commands:
    """No instance of the template is active but the wanted ones, and those that are needed.

    `needed_by` is the template whose instance of the same name needs it while it is active.
    """
    there: dict[str, str] = host.get_fact(UnitStates, pattern=template.replace("@.", "@*."))
    users = {name: needed_by.replace("@.", f"@{_instance(name)}.") for name in there}
    extra = [name for name in sorted(set(there) - set(wanted)) if not _runs(users[name])]
    # All of them first: a plan asks for no more than the first command.
    told("\n".join(f"- {name}: {there[name]}" for name in extra))
    for name in extra:
        yield StringCommand(_unless_running(users[name], f"systemctl stop {shlex.quote(name)}"))


def _instance(unit: str) -> str:
    return unit.partition("@")[2].rpartition(".")[0]


@operation
def only_files(folder: str, wanted: list[str]) -> Commands:
    """No file lies in the folder but the wanted ones."""
    there: list[str] = host.get_fact(Names, folder=folder)
    extra = [f"{folder}/{name}" for name in sorted(set(there) - set(wanted))]
    for path in extra:
        told(f"- {path}")
    for path in extra:
        yield StringCommand(f"rm {shlex.quote(path)}")


@operation
def live_firewall(family: str, table: str, text: str, path: str) -> Commands:
    """The kernel's table is what the file makes of it, whoever touched it since."""
    difference = host.get_fact(Firewall, family=family, table=table, text=text)
    if not difference:
        host.noop(f"table {family} {table} is as it should be")
        return
    told(difference)
    yield StringCommand(f"nft -f {shlex.quote(path)}")


@operation
def kernel_value(key: str, value: str) -> Commands:
    """A sysctl's value now; its file in /etc/sysctl.d keeps it over a restart."""
    now = host.get_fact(SysctlValue, key=key)
    if now == value:
        host.noop(f"{key} is {value}")
        return
    told(f"- {key} = {now}")
    told(f"+ {key} = {value}")
    yield StringCommand(f"sysctl -q -w {shlex.quote(f'{key}={value}')}")
