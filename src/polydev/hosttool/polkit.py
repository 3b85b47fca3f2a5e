"""The controller's rights by polkit: start VMs, and no other unit. Polkit itself is asked."""

from __future__ import annotations

from polydev.hosttool.errors import HostError
from polydev.hosttool.units import MAIN

ACTION = "org.freedesktop.systemd1.manage-units"
# May it start a VM; may it end what it must not touch?
ASKED = {"microvm@2.service": True, "ssh.service": False}


def differences() -> list[str]:
    """Lines with `-` for what holds and `+` for what is declared; [] if nobody can be asked."""
    process = _main_process()
    if process is None:
        return []
    found = []
    for unit, is_to_be in ASKED.items():
        may = _may_start(process, unit)
        if may is not None and may != is_to_be:
            found += [f"- polkit: {_said(unit, may)}", f"+ polkit: {_said(unit, is_to_be)}"]
    return found


def require() -> dict[str, object]:
    """Raises HostError `polkit-wrong` where the controller may more than it is to, or less."""
    if found := differences():
        raise HostError(
            "polkit-wrong",
            found[0].removeprefix("- "),
            "look for rules of others in /etc/polkit-1/rules.d and /usr/share/polkit-1/rules.d",
        )
    return {"ok": True}


def _said(unit: str, may: bool) -> str:
    return f"the controller may {'' if may else 'not '}start {unit}"


def _main_process() -> str | None:
    """PID of the running controller; None if it does not run."""
    said = _ask(["systemctl", "show", "-P", "MainPID", MAIN])
    return said[1] if said and said[1] not in ("", "0") else None


def _may_start(process: str, unit: str) -> bool | None:
    words = ["pkcheck", "--action-id", ACTION, "--process", process]
    done = _ask([*words, "--detail", "unit", unit, "--detail", "verb", "start"])
    return None if done is None else done[0] == 0


def _ask(argv: list[str]) -> tuple[int, str] | None:
    import subprocess

    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.returncode, done.stdout.strip()
