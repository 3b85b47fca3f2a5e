"""Let a host make a template: start it, follow it, return its record."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from polydev.client.controller_cli import HostController, follow
from polydev.errors import CommandError, ConfigError, DeployError
from polydev.hosttool.units import TEMPLATE_MAKER as UNIT
from polydev.image_layout import STORE
from polydev.ssh import SshTarget

FOLDER = f"{STORE}/templates"
# If one is being made, this waits for it: systemd starts no unit twice.
FOLLOW = f"""
systemctl is-active --quiet {UNIT} && echo 'a template is being made already: waiting for it'
journalctl --follow --lines=0 --output=cat --unit={UNIT} &
systemctl start --wait {UNIT} 2>/dev/null
kill $!
"""


def build_template(
    target: SshTarget, say: Callable[[str], None], *, again: bool = False
) -> dict[str, Any]:
    """Make the golden image's template, `again` even if it exists; return its record.

    `made` says whether this call made it. Raises ConfigError if templates are off, DeployError
    with the reason if there is no template afterwards.
    """
    ask = HostController(target).ask
    before = ask("templates", "report")
    if not before["enabled"]:
        raise ConfigError(
            f"templates are off on {target.name}",
            "set `templates` of the inventory's `controller` to true, then ./inv deploy",
        )
    _make(target, say, again=again)
    after = ask("templates", "report")
    record = _wanted(after)
    if after["build"]["state"] == "failed" or record is None:
        why = after["build"]["detail"] or f"{UNIT} ended without one"
        raise DeployError(
            f"{target.name}: cannot make the template of image {str(after['goldenImage'])[:12]}: "
            f"{why}",
            f"./inv host.logs --unit {UNIT}",
        )
    was = _wanted(before)
    return {"made": was is None or was["madeAt"] != record["madeAt"], **record}


def _wanted(report: dict[str, Any]) -> dict[str, Any] | None:
    return next((each for each in report["templates"] if each["key"] == report["wanted"]), None)


def _make(target: SshTarget, say: Callable[[str], None], *, again: bool) -> None:
    def on_line(line: str) -> None:
        if line and not line.startswith("{"):  # its answers, which are for programs
            say(line)

    script = f"touch {FOLDER}/.again\n{FOLLOW}" if again else FOLLOW
    with suppress(CommandError):  # the host's report says more of it
        follow(target, ("sh", "-c", script), on_line)
