"""Units of systemd: their files, the configuration they were started with, whether they run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from pyinfra.api.command import StringCommand
from pyinfra.context import host

from polydev.host_setup.facts import StaleUnits, UnitFact, UnitState, UnitStates
from polydev.host_setup.pyinfra_operations import PlacedFile, show_diff, text_file
from polydev.host_setup.pyinfra_types import Commands, concern, operation
from polydev.host_setup.render import UNITS, render_unit


@dataclass(frozen=True)
class UnitConfig:
    """The configuration of a unit: the hash in its file, and the checksums of its files."""

    hash: str
    files: tuple[tuple[str, str], ...]


def unit_file(name: str, values: dict[str, Any], *depends: PlacedFile | str) -> UnitConfig:
    """Write a unit file; return its configuration, which includes the files and texts it reads."""
    placed = [each for each in depends if isinstance(each, PlacedFile)]
    texts = [each.text if isinstance(each, PlacedFile) else each for each in depends]
    text, config = render_unit(name, values, texts)
    own = PlacedFile(f"{UNITS}/{name}", text)
    text_file(own.path, text)
    return UnitConfig(config, tuple(each.sum for each in (own, *placed)))


@operation
def remove_overrides(paths: list[str]) -> Commands:
    """Remove files of others that change our units; later operations restart these units.

    Not files.file: paths are known only from the host tool, and systemd must be reloaded.
    """
    if not paths:
        host.noop("no file of others changes our units")
        return
    show_diff("\n".join(f"- {path}" for path in paths))
    folders = sorted({path.rpartition("/")[0] for path in paths if ".d/" in path})
    yield StringCommand(f"rm {shlex.join(paths)}")
    if folders:
        yield StringCommand(f"rmdir --ignore-fail-on-non-empty {shlex.join(folders)}")
    yield StringCommand("systemctl daemon-reload")


@concern("Units")
def unit_overrides(overrides: list[str]) -> None:
    """Remove others' changes before any unit is restarted."""
    remove_overrides(name="files of others", paths=overrides)


@operation
def reload_units(pattern: str, files: tuple[tuple[str, str], ...]) -> Commands:
    """Reload systemd if it has loaded other files for these units; running units go on.

    The files are compared too: when the plan is made, their change is still to come. Not
    systemd.daemon_reload: it would run at every deployment.
    """
    if not host.get_fact(StaleUnits, pattern=pattern, files=files):
        host.noop(f"systemd has loaded the present files of {pattern}")
        return
    show_diff(f"- {pattern}: systemd has loaded an older file")
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
    """Enable a unit and run it with exactly this configuration.

    Not systemd.service: it restarts only if told to. Here the configuration that the unit was
    started with decides, so that an interrupted deployment is completed by the next one.

    files        paths with SHA-256; the unit may run with a file that somebody changed, although
                 the hash in its own file is right
    stamped      false for a target, which runs nothing and writes down no configuration
    stop_first   unit that must not run while this one is restarted
    needed_by    while this unit runs, an active unit stays as it is
    differences  changes of what the unit set up: it is restarted, or `mend` is run while
                 `needed_by` runs
    """
    now = host.get_fact(UnitFact, unit=unit, files=files)
    name = shlex.quote(unit)
    differences = differences or []
    is_as_started = not now.touched and (now.config == config or not stamped)
    is_current = is_as_started and not differences
    if now.active and now.enabled and is_current:
        host.noop(f"{unit} runs with its configuration")
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
        # A restarted target restarts its units, some of which may be in use.
        yield StringCommand(_with_journal("restart" if stamped else "start", name))
    elif stamped and not is_current:
        again = _with_journal("reload-or-restart", name)
        yield StringCommand(unless_running(needed_by, again, mend if differences else ""))


def _runs(unit: str) -> bool:
    """Whether an instance of a template runs; all instances are read by one fact."""
    if not unit:
        return False
    states: dict[str, str] = host.get_fact(UnitStates, pattern=unit.replace(_instance(unit), "*"))
    return states.get(unit, "failed") != "failed"


def unless_running(unit: str, command: str, otherwise: str = "") -> str:
    """Return shell that checks again as it runs: the unit may have started since the plan."""
    if not unit:
        return command
    state = f"$(systemctl show -P ActiveState {shlex.quote(unit)})"
    rest = f" *) {otherwise};;" if otherwise else ""
    return f"case {state} in inactive|failed) {command};;{rest} esac"


def touched_words(now: UnitState, config: str) -> str:
    """Return words for changed files, unless the configuration's hash differs anyway."""
    return ", files changed" if now.touched and now.config == config else ""


def _with_journal(verb: str, name: str) -> str:
    """Return a systemctl command that shows the unit's journal if it fails."""
    # By the unit, not by its invocation: journald cannot tell the invocation of a process that
    # has exited, and systemd may have begun to start the unit again.
    journal = f"journalctl -q --no-pager -n 15 -o cat --since @$s -u {name}"
    return (
        f"s=$(date +%s.%6N); systemctl {verb} {name} || "
        f"{{ journalctl --sync; {journal} >&2; exit 1; }}"
    )


def _state(active: bool, enabled: bool, config: str) -> str:
    words = ("active" if active else "not active", "enabled" if enabled else "not enabled")
    return f"{words[0]}, {words[1]}, configuration {config or 'unknown'}"


@operation
def stop_other_units(template: str, wanted: list[str], needed_by: str) -> Commands:
    """Stop all instances of a template but the wanted ones and those in use.

    An instance is in use while the instance of `needed_by` with the same name is active. Not
    systemd.service: which instances there are is known only from the host.
    """
    there: dict[str, str] = host.get_fact(UnitStates, pattern=template.replace("@.", "@*."))
    users = {name: needed_by.replace("@.", f"@{_instance(name)}.") for name in there}
    extra = [name for name in sorted(set(there) - set(wanted)) if not _runs(users[name])]
    # All differences first: a plan runs the operation to its first command only.
    show_diff("\n".join(f"- {name}: {there[name]}" for name in extra))
    for name in extra:
        yield StringCommand(unless_running(users[name], f"systemctl stop {shlex.quote(name)}"))


def _instance(unit: str) -> str:
    return unit.partition("@")[2].rpartition(".")[0]
