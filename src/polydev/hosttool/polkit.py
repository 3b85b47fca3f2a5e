"""Rights through polkit: the controller may start VMs and nothing else, the VMs' users nothing.

`pkcheck` asks polkit about the controller's process, and about a process that runs as a VM's user
for this purpose. Rules of others that name one of our users are reported, too: they may be about
any action.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polydev.hosttool.errors import HostError
from polydev.hosttool.units import MAIN

ROOT = Path("/")
# Of files with the same name, polkit reads only the one in the first of these.
FOLDERS = tuple(
    Path(folder, "polkit-1/rules.d") for folder in ("etc", "run", "usr/local/share", "usr/share")
)
OWN = FOLDERS[0] / "50-polydev.rules"
OUR_USERS = re.compile(r"polydev-(vm|controller)")
VM_USER = re.compile(r"polydev-vm-\d+")
ACTION = "org.freedesktop.systemd1.manage-units"
# May the controller start a VM; may it start what it must not touch?
ASKED = {"microvm@2.service": True, "ssh.service": False}
# Actions of a VM's user: units of the host, programs as root, reboot.
ASKED_OF_VM = (ACTION, "org.freedesktop.policykit.exec", "org.freedesktop.login1.reboot")


def differences(host: dict[str, object], root: Path = ROOT) -> list[str]:
    """Return a diff, `-` for what holds and `+` for what is declared; [] if polkit does not answer.

    `host` is the content of host.json.
    """
    found = [f"- polkit: {path} names users of ours" for path in rules_of_others(root)]
    if process := _main_process():
        for unit, is_to_be in ASKED.items():
            may = _may(process, ACTION, unit)
            if may is not None and may != is_to_be:
                found += [f"- polkit: {_said(unit, may)}", f"+ polkit: {_said(unit, is_to_be)}"]
    user = _vm_user(host)
    for action in _permitted(user) if user else ():
        found += [f"- polkit: {user} may {action}", f"+ polkit: {user} may not {action}"]
    return found


def rules_of_others(root: Path = ROOT) -> list[str]:
    """Return the paths of rules files of others that name one of our users."""
    return [
        f"/{path}"
        for path in _other_files(root)
        if OUR_USERS.search((root / path).read_text(errors="replace"))
    ]


def _other_files(root: Path) -> list[Path]:
    """Return the rules files that polkit reads, except ours, in its order: by name."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for file in (root / folder).glob("*.rules"):
            found.setdefault(file.name, folder / file.name)
    return [found[name] for name in sorted(found) if found[name] != OWN]


def mend(host: dict[str, object], root: Path = ROOT) -> dict[str, object]:
    """Remove the administrator's rules that name our users, and restart polkit.

    Raises HostError `polkit-wrong` if a user still has other rights than declared.
    """
    removed = [path for path in rules_of_others(root) if path.startswith(("/etc/", "/run/"))]
    for path in removed:
        (root / path.lstrip("/")).unlink()
    _ask(["systemctl", "restart", "polkit.service"])
    if found := differences(host, root):
        files = ", ".join(f"/{path}" for path in _other_files(root))
        raise HostError(
            "polkit-wrong",
            found[0].removeprefix("- "),
            f"on the host, correct the rule that says so, in {files}; then deploy again"
            if files
            else "`journalctl -u polkit.service` on the host says which rules polkit read",
        )
    return {"removed": removed}


def _said(unit: str, may: bool) -> str:
    return f"the controller may {'' if may else 'not '}start {unit}"


def _main_process() -> str | None:
    """Return the PID of the running controller; None if it does not run."""
    said = _ask(["systemctl", "show", "-P", "MainPID", MAIN])
    return said[1] if said and said[1] not in ("", "0") else None


def _vm_user(host: dict[str, object]) -> str | None:
    accounts = host.get("accounts")
    names = (str(each["name"]) for each in accounts) if isinstance(accounts, list) else ()
    return next((name for name in names if VM_USER.fullmatch(name)), None)


def _permitted(user: str) -> list[str]:
    """Return the actions that a process of the user may do without a password."""
    with _process_of(user) as process:
        if process is None:
            return []
        return [action for action in ASKED_OF_VM if _may(process, action, "ssh.service")]


@contextmanager
def _process_of(user: str) -> Iterator[str | None]:
    """Run a waiting process as that user; yield its PID, or None if there is no such user."""
    import subprocess

    try:
        known = pwd.getpwnam(user)
    except KeyError:
        yield None
        return
    with subprocess.Popen(
        ["/bin/cat"],  # it ends with its input
        stdin=subprocess.PIPE,
        user=known.pw_uid,
        group=known.pw_gid,
        extra_groups=(),
    ) as waiting:
        yield str(waiting.pid)


def _may(process: str, action: str, unit: str) -> bool | None:
    words = ["pkcheck", "--action-id", action, "--process", process]
    if action == ACTION:
        words += ["--detail", "unit", unit, "--detail", "verb", "start"]
    done = _ask(words)
    return None if done is None else done[0] == 0


def _ask(argv: list[str]) -> tuple[int, str] | None:
    import subprocess

    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.returncode, done.stdout.strip()
