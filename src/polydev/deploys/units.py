"""Units of systemd: their files, what they were started with, and which of them run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.deploys.facts import StaleUnits, UnitFact, UnitState, UnitStates
from polydev.deploys.operations import PlacedFile, show_diff, text_file
from polydev.deploys.pyinfra_types import Commands, concern, operation
from polydev.deploys.render import UNITS, render_unit


@dataclass(frozen=True)
class UnitConfig:
    """What a unit is to be started with: the hash in its file, and its files' own."""

    hash: str
    files: tuple[tuple[str, str], ...]


def unit_file(name: str, values: dict[str, Any], *depends: PlacedFile | str) -> UnitConfig:
    """Put a unit in its place; what it is started with: that file, those and texts it reads."""
    placed = [each for each in depends if isinstance(each, PlacedFile)]
    texts = [each.text if isinstance(each, PlacedFile) else each for each in depends]
    text, config = render_unit(name, values, texts)
    own = PlacedFile(f"{UNITS}/{name}", text)
    text_file(own.path, text)
    return UnitConfig(config, tuple(each.sum for each in (own, *placed)))


@operation
def remove_overrides(paths: list[str]) -> Commands:
    """No file of others changes units of ours; those that run with one are restarted after this."""
    if not paths:
        host.noop("no file of others changes units of ours")
        return
    show_diff("\n".join(f"- {path}" for path in paths))
    folders = sorted({path.rpartition("/")[0] for path in paths if ".d/" in path})
    yield StringCommand(f"rm {shlex.join(paths)}")
    if folders:
        yield StringCommand(f"rmdir --ignore-fail-on-non-empty {shlex.join(folders)}")
    yield StringCommand("systemctl daemon-reload")


@concern("Units")
def unit_overrides(overrides: list[str]) -> None:
    """Before any unit is started again."""
    remove_overrides(name="files of others", paths=overrides)


@operation
def reload_units(pattern: str, files: tuple[tuple[str, str], ...]) -> Commands:
    """systemd knows the units of a pattern by these files, as they are; what runs runs on.

    The files are asked for too: as the plan is made, a change of them is still to come.
    """
    if not host.get_fact(StaleUnits, pattern=pattern, files=files):
        host.noop(f"{pattern} are known as they are")
        return
    show_diff(f"- {pattern}: known by an older file")
    yield StringCommand("systemctl daemon-reload")


@operation
def unit(
    unit: str,
    config: str,
    files: tuple[tuple[str, str], ...] = (),
    stamped: bool = True,
    stop_first: str = "",
    needed_by: str = "",
    differences: list[str] | None = None,
    mend: str = "",
) -> Commands:
    """A unit that is enabled and runs with exactly this configuration.

    What it was started with decides, not whether this deploy changes a file: one that broke
    off between the two is mended by the next one. `files` are paths with their SHA-256; what
    somebody wrote there may be what the unit runs with, although the hash in its file is right.
    A target runs nothing, so it has no stamp. `stop_first` must not run while this unit is
    restarted. As long as `needed_by` runs, a unit that is active stays as it is.
    `differences` say what of the unit's work was changed since: it is restarted, or `mend`
    brings its work back under a `needed_by` that runs.
    """
    now = host.get_fact(UnitFact, unit=unit, files=files)
    name = shlex.quote(unit)
    differences = differences or []
    is_as_started = not now.touched and (now.config == config or not stamped)
    is_current = is_as_started and not differences
    if now.active and now.enabled and is_current:
        host.noop(f"{unit} runs as it should")
        return
    stays = now.active and now.enabled and _runs(needed_by)
    if stays and not differences:
        host.noop(f"{unit} stays as it is: {needed_by} runs")
        return
    if not stays and not (now.active and now.enabled and is_as_started):
        show_diff(
            f"- {unit}: {_state(now.active, now.enabled, now.config)}{touched_words(now, config)}"
        )
        show_diff(f"+ {unit}: {_state(True, True, config)}")
    show_diff("\n".join(differences))
    if stays:
        yield StringCommand(mend)
        return
    yield StringCommand("systemctl daemon-reload")
    if not now.enabled:
        yield StringCommand(f"systemctl enable {name}")
    if stop_first and not (now.active and is_current):
        yield StringCommand(f"systemctl stop {shlex.quote(stop_first)}")
    if not now.active:
        # A target passes a restart on to its parts, and these may run.
        yield StringCommand(_with_journal("restart" if stamped else "start", name))
    elif stamped and not is_current:
        again = _with_journal("reload-or-restart", name)
        yield StringCommand(unless_running(needed_by, again, mend if differences else ""))


def _runs(unit: str) -> bool:
    """Whether an instance of a template runs; one question answers for all its instances."""
    if not unit:
        return False
    states: dict[str, str] = host.get_fact(UnitStates, pattern=unit.replace(_instance(unit), "*"))
    return states.get(unit, "failed") != "failed"


def unless_running(unit: str, command: str, otherwise: str = "") -> str:
    """Shell that decides as it runs: much may have been started since the plan."""
    if not unit:
        return command
    state = f"$(systemctl show -P ActiveState {shlex.quote(unit)})"
    rest = f" *) {otherwise};;" if otherwise else ""
    return f"case {state} in inactive|failed) {command};;{rest} esac"


def touched_words(now: UnitState, config: str) -> str:
    """What only the unit's files tell; where the hash is another one, that says it all."""
    return ", files changed" if now.touched and now.config == config else ""


def _with_journal(verb: str, name: str) -> str:
    """systemd says only that a unit failed; the unit itself may have said why."""
    this_start = f"i=$(systemctl show -P InvocationID {name})"
    journal = "journalctl -q --no-pager -n 15 -o cat _SYSTEMD_INVOCATION_ID=$i + INVOCATION_ID=$i"
    return f"systemctl {verb} {name} || {{ {this_start}; {journal} >&2; exit 1; }}"


def _state(active: bool, enabled: bool, config: str) -> str:
    words = ("active" if active else "not active", "enabled" if enabled else "not enabled")
    return f"{words[0]}, {words[1]}, configuration {config or 'unknown'}"


@operation
def stop_other_units(template: str, wanted: list[str], needed_by: str) -> Commands:
    """No instance of the template is active but the wanted ones, and those that are needed.

    `needed_by` is the template whose instance of the same name needs it while it is active.
    """
    there: dict[str, str] = host.get_fact(UnitStates, pattern=template.replace("@.", "@*."))
    users = {name: needed_by.replace("@.", f"@{_instance(name)}.") for name in there}
    extra = [name for name in sorted(set(there) - set(wanted)) if not _runs(users[name])]
    # All of them first: a plan asks for no more than the first command.
    show_diff("\n".join(f"- {name}: {there[name]}" for name in extra))
    for name in extra:
        yield StringCommand(unless_running(users[name], f"systemctl stop {shlex.quote(name)}"))


def _instance(unit: str) -> str:
    return unit.partition("@")[2].rpartition(".")[0]
