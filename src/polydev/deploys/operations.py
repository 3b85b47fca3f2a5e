"""Operations that pyinfra lacks: facts read, commands yielded, nothing done here."""

from __future__ import annotations

import hashlib
import io
import shlex
from typing import Any

from pyinfra import logger
from pyinfra.api.command import FileUploadCommand, StringCommand
from pyinfra.api.operation import OperationMeta
from pyinfra.context import host, state
from pyinfra.facts.files import File, Sha256File
from pyinfra.operations import files

from polydev.deploys.facts import ActiveUnits, Firewall, SysctlValue, Unit
from polydev.deploys.render import render, render_unit
from polydev.deploys.typed import Commands, operation

TOOL = "/opt/polydev-ai/bin/polydev-host"
UNITS = "/etc/systemd/system"


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
def program(path: str, data: bytes) -> Commands:
    """A program's file, put in its place by one rename.

    Not files.put: its differences are for text, and fail on anything else.
    """
    name = shlex.quote(path)
    digest = hashlib.sha256(data).hexdigest()
    there = host.get_fact(Sha256File, path=path)
    held: dict[str, Any] = dict(host.get_fact(File, path=path) or {})
    if there == digest and (held.get("mode"), held.get("user")) == (755, "root"):
        host.noop(f"{path} is the same")
        return
    told(f"- {path}: {str(there)[:12]}, mode {held.get('mode')}, {held.get('user')}")
    told(f"+ {path}: {digest[:12]}, mode 755, root")
    if there != digest:
        fresh = f"{path}.new"
        temporary = host.get_temp_filename(fresh)
        yield FileUploadCommand(io.BytesIO(data), fresh, remote_temp_filename=temporary)
        yield StringCommand(f"chown root:root {name}.new && chmod 755 {name}.new")
        yield StringCommand(f"mv {name}.new {name}")
    else:
        yield StringCommand(f"chown root:root {name} && chmod 755 {name}")


def template(path: str, values: dict[str, Any], mode: str = "644", group: str = "root") -> str:
    """Put a rendered template in its place; its text, for the hash of who reads it."""
    text = render(path, values)
    text_file(path, text, mode=mode, group=group)
    return text


def unit_file(name: str, values: dict[str, Any], *depends: str) -> str:
    """Put a unit in its place; the hash of its configuration."""
    text, config = render_unit(name, values, depends)
    text_file(f"{UNITS}/{name}", text)
    return config


def directory(
    path: str, mode: str = "755", user: str = "root", group: str = "root"
) -> OperationMeta:
    return files.directory(name=path, path=path, mode=mode, user=user, group=group)


@operation
def unit(unit: str, config: str, stamped: bool = True, stop_first: str = "") -> Commands:
    """A unit that is enabled and runs with exactly this configuration.

    What it was started with decides, not whether a file has just changed: a deploy that broke
    off between the two is mended by the next one. A target runs nothing, so it has no stamp.
    `stop_first` must not run while this unit is restarted.
    """
    now = host.get_fact(Unit, unit=unit)
    name = shlex.quote(unit)
    is_current = now.config == config or not stamped
    if now.active and now.enabled and is_current:
        host.noop(f"{unit} runs as it should")
        return
    told(f"- {unit}: {_state(now.active, now.enabled, now.config)}")
    told(f"+ {unit}: {_state(True, True, config)}")
    yield StringCommand("systemctl daemon-reload")
    if not now.enabled:
        yield StringCommand(f"systemctl enable {name}")
    if stop_first and not (now.active and is_current):
        yield StringCommand(f"systemctl stop {shlex.quote(stop_first)}")
    if not now.active:
        yield StringCommand(f"systemctl restart {name}")
    elif not is_current:
        yield StringCommand(f"systemctl reload-or-restart {name}")


def _state(active: bool, enabled: bool, config: str) -> str:
    words = ("active" if active else "not active", "enabled" if enabled else "not enabled")
    return f"{words[0]}, {words[1]}, configuration {config or 'unknown'}"


@operation
def only_units(pattern: str, wanted: list[str]) -> Commands:
    """No unit of the pattern is active but the wanted ones."""
    there: list[str] = host.get_fact(ActiveUnits, pattern=pattern)
    for extra in sorted(set(there) - set(wanted)):
        told(f"- {extra}: active")
        yield StringCommand(f"systemctl stop {shlex.quote(extra)}")


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
