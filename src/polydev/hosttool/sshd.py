"""The SSH daemon's settings: as declared, and as sshd reads them from its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from polydev.hosttool.errors import HostError

ROOT = Path("/")
MAIN = "etc/ssh/sshd_config"
PARTS = "etc/ssh/sshd_config.d"
OURS = "00-polydev.conf"
ALIASES = {"challengeresponseauthentication": "kbdinteractiveauthentication"}

Settings = dict[str, str]


def differences(declared: Settings, root: Path = ROOT) -> list[str]:
    """Return a diff, `-` for effective settings and `+` for declared ones; [] if equal."""
    if not declared:
        return []
    try:
        now = effective(root)
    except HostError as error:
        return [f"- sshd: {error.message}"]
    found = []
    for name, value in declared.items():
        if now.get(name) != value:
            found += [f"- sshd: {name} {now.get(name, 'unknown')}", f"+ sshd: {name} {value}"]
    return found + [f"- sshd: {line}" for line in exceptions(declared, root)]


def effective(root: Path = ROOT) -> Settings:
    """Return the settings outside of Match blocks. Raises HostError `sshd-unread`."""
    import subprocess

    argv = ["/usr/sbin/sshd", "-T"]
    if root != ROOT:
        argv = ["chroot", str(root), *argv]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HostError("sshd-unread", f"cannot run {argv[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise HostError(
            "sshd-unread", " ".join(done.stderr.split())[-500:] or "sshd -T gave no answer"
        )
    lines = (line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    return {name.lower(): value.strip() for name, value in lines}


def exceptions(declared: Settings, root: Path = ROOT) -> Iterator[str]:
    """Yield other values in Match blocks before ours, which sshd uses for some users."""
    match = ""
    for place, name, value in _settings_before_ours(root):
        if name == "match":
            match = value
            continue
        name = ALIASES.get(name, name)
        if match and name in declared and value.lower() != declared[name]:
            yield f"{place}: {name} {value} for Match {match}"


def _settings_before_ours(root: Path) -> Iterator[tuple[str, str, str]]:
    for place, name, value in _settings_in(root, MAIN):
        if name != "include":
            yield place, name, value
            continue
        if PARTS not in value:
            continue
        for part in sorted((root / PARTS).glob("*.conf")):
            if part.name == OURS:
                return
            yield from _settings_in(root, f"{PARTS}/{part.name}")
            yield place, "match", ""  # a block ends with its file


def _settings_in(root: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, keyword in lower case, and value of each line."""
    try:
        lines = (root / name).read_text(errors="replace").splitlines()
    except OSError:
        return
    for number, line in enumerate(lines, 1):
        if found := re.match(r"\s*([A-Za-z]\w*)(?:\s*=\s*|\s+)(.*\S)", line):
            yield f"/{name}:{number}", found[1].lower(), found[2].strip('"')
