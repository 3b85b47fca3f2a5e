"""Operations that pyinfra lacks. Each shows a difference in the plan, which pyinfra's do not."""

from __future__ import annotations

import difflib
import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyinfra import logger
from pyinfra.api.command import FunctionCommand, StringCommand
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host, state
from pyinfra.facts.files import Directory, FileContents

from polydev.errors import Error
from polydev.host_setup.facts import FileState, Firewall, Folders, Names, SysctlValue
from polydev.host_setup.pyinfra_types import Commands, operation
from polydev.host_setup.render import render
from polydev.hosttool.upload import file_upload


@dataclass(frozen=True)
class PlacedFile:
    """A file that the deploy writes."""

    path: str
    text: str

    @property
    def sum(self) -> tuple[str, str]:
        return self.path, hashlib.sha256(self.text.encode()).hexdigest()


def run_locally(function: Callable[..., None], *arguments: Any) -> FunctionCommand:
    """Return a command that calls a function on the operator's machine; logs its Error."""

    def run_it() -> None:
        try:
            function(*arguments)
        except Error as error:
            logger.error(error.message)
            raise

    return FunctionCommand(run_it, (), {})


def show_diff(difference: str) -> None:
    """Add a difference to the operation in the plan."""
    if state.config.DIFF:
        for line in difference.splitlines():
            logger.info("  %s", line)


def text_file(
    path: str, text: str, mode: str = "644", user: str = "root", group: str = "root"
) -> OperationMeta:
    """Write a text, and show its differences line by line."""
    data = text.encode()
    return file(name=path, path=path, data=data, mode=mode, user=user, group=group, is_shown=True)


def opaque_file(path: str, data: bytes, mode: str = "755") -> OperationMeta:
    """Write a file of root whose content is not shown: a program or a secret."""
    return file(name=path, path=path, data=data, mode=mode, user="root", group="root")


@operation
def file(
    path: str, data: bytes, mode: str, user: str, group: str, is_shown: bool = False
) -> Commands:
    """Write a file with this content, mode and owner by one rename.

    Not files.put: it uploads to a path in /tmp that other users can predict and read.
    """
    now = host.get_fact(FileState, path=path)
    wanted = (mode, user, group)
    is_same = now.sha256 == hashlib.sha256(data).hexdigest()
    if is_same and now.rights == wanted:
        host.noop(f"{path} is the same")
        return
    if is_shown and not is_same:
        show_diff(_difference(path, data.decode(), is_there=bool(now.sha256)))
    if not is_shown or now.rights != wanted:
        content = "the same content" if is_same else "other content"
        show_diff(
            f"- {path}: " + (f"{content}, {_rights(now.rights)}" if now.rights else "not there")
        )
        show_diff(f"+ {path}: {_rights(wanted)}")
    if is_same:
        name = shlex.quote(path)
        yield StringCommand(f"chown {user}:{group} {name} && chmod {mode} {name}")
    else:
        placed = file_upload(path, data, mode=mode, owner=f"{user}:{group}")
        yield StringCommand(placed.command, _stdin=placed.input)


def _difference(path: str, text: str, *, is_there: bool) -> str:
    """Return the difference between a file and its wanted text, line by line."""
    lines = host.get_fact(FileContents, path=path) if is_there else None
    changed = difflib.unified_diff(lines or [], text.splitlines(), lineterm="", n=2)
    body = [*changed][2:]  # without the names of the files
    return "\n".join(f"{line[0]} {line[1:]}" for line in body if line[0] != "@")


def _rights(rights: tuple[str, str, str]) -> str:
    return "mode {}, {}:{}".format(*rights)


def template(
    path: str, values: dict[str, Any], mode: str = "644", group: str = "root"
) -> PlacedFile:
    """Write a rendered template."""
    text = render(path, values)
    text_file(path, text, mode=mode, group=group)
    return PlacedFile(path, text)


def directory(
    path: str, mode: str = "755", user: str = "root", group: str = "root"
) -> OperationMeta:
    return folder(name=path, path=path, mode=mode, user=user, group=group)


@operation
def folder(path: str, mode: str, user: str, group: str) -> Commands:
    """Make a folder with this mode and owner.

    Not files.directory: it shows no difference, and leaves set-id bits as they are.
    """
    there: dict[str, Any] = dict(host.get_fact(Directory, path=path) or {})
    now = (str(there.get("mode")), there.get("user"), there.get("group"))
    if now == (mode, user, group):
        host.noop(f"{path} is as declared")
        return
    show_diff(f"- {path}: " + (f"mode {now[0]}, {now[1]}:{now[2]}" if there else "not there"))
    show_diff(f"+ {path}: mode {mode}, {user}:{group}")
    name = shlex.quote(path)
    if not there:
        yield StringCommand(f"mkdir -p {name}")
    # chmod clears a folder's set-id bits only if the mode has five digits.
    yield StringCommand(f"chmod {mode:0>5} {name} && chown {user}:{group} {name}")


@operation
def create_tmpfiles_folders(file: str, folders: dict[str, tuple[str, str, str]]) -> Commands:
    """Make these folders, as a file of tmpfiles.d declares them; all by one command.

    `folders` has mode, user and group of each path. Not files.directory: it takes a command each.
    """
    there: dict[str, Any] = host.get_fact(Folders, paths=tuple(folders))
    wrong = {path: state for path, state in folders.items() if there.get(path) != state}
    if not wrong:
        host.noop("all folders are as declared")
        return
    for path, wanted in wrong.items():
        was = "mode {}, {}:{}".format(*there[path]) if path in there else "not there"
        show_diff(f"- {path}: {was}")
        show_diff("+ {}: mode {}, {}:{}".format(path, *wanted))
    yield StringCommand(f"systemd-tmpfiles --create {shlex.quote(file)}")


@operation
def remove_other_files(folder: str, wanted: list[str]) -> Commands:
    """Remove all files of a folder but the wanted ones.

    Not files.sync: it copies a local folder, with the secrets' names and modes as they are here.
    """
    there: list[str] = host.get_fact(Names, folder=folder)
    extra = [f"{folder}/{name}" for name in sorted(set(there) - set(wanted))]
    for path in extra:
        show_diff(f"- {path}")
    for path in extra:
        yield StringCommand(f"rm {shlex.quote(path)}")


@operation
def remove_file(path: str) -> Commands:
    """Remove a file. Not files.file: it shows no difference."""
    folder, _, name = path.rpartition("/")
    if name not in host.get_fact(Names, folder=folder):
        host.noop(f"{path} does not exist")
        return
    show_diff(f"- {path}")
    yield StringCommand(f"rm {shlex.quote(path)}")


@operation
def load_firewall(family: str, table: str, text: str, path: str) -> Commands:
    """Load a table of nftables if the kernel's differs from the file's.

    pyinfra has no operation for nftables.
    """
    difference = host.get_fact(Firewall, family=family, table=table, text=text)
    if not difference:
        host.noop(f"table {family} {table} is as declared")
        return
    show_diff(difference)
    yield StringCommand(f"nft -f {shlex.quote(path)}")


@operation
def sysctl_value(key: str, value: str) -> Commands:
    """Set a sysctl now; its file in /etc/sysctl.d keeps it over a restart.

    Not server.sysctl: it shows no difference.
    """
    now = host.get_fact(SysctlValue, key=key)
    if now == value:
        host.noop(f"{key} is {value}")
        return
    show_diff(f"- {key} = {now}")
    show_diff(f"+ {key} = {value}")
    yield StringCommand(f"sysctl -q -w {shlex.quote(f'{key}={value}')}")
