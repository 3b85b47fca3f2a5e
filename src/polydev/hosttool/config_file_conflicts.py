"""Conflicts of settings: lines of other files that override ours at the host's next start.

systemd's programs read all files of certain folders in the order of their names. The last value
wins for kernel settings and the journal's settings. For folders (tmpfiles.d) the first line and
all later ones apply. For networkd and udev (`.link`) the first file that matches an interface wins.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from polydev.durable_files import make_folder, write_durably
from polydev.hosttool.errors import HostError

ROOT = Path("/")
# Of files with the same name, only the one in the first of these is read.
PLACES = ("etc", "run", "usr/local/lib", "usr/lib")
OUT = "# polydev: "
# The kernel has two names for this setting.
ALIASES = {"net.ipv4.conf.all.forwarding": "net.ipv4.ip_forward"}
JOURNAL, NETWORK = "systemd/journald.conf.d", "systemd/network"
SYSCTL, TMPFILES = "sysctl.d", "tmpfiles.d"
# Settings of `.link` files that would change our links, and conditions that none of them meets.
LINK_CHANGES = ("Name", "MTUBytes", "MACAddress")
NEVER_MET = ("MACAddress", "PermanentMACAddress", "Path", "Property")
# Letters of tmpfiles.d(5) whose path is a pattern, and those that act recursively.
WITH_PATTERN, DOWNWARDS = "wexXrRzZtThHaAm", "RZTHAD"


@dataclass(frozen=True)
class Conflict:
    """A line at `path` that overrides a setting of ours; without `line`, the whole file does.

    `shared` is our link, for a file that also matches other links.
    """

    path: str
    line: str | None = None
    shared: str | None = None

    @property
    def text(self) -> str:
        said = f": {self.line.strip()}" if self.line is not None else ""
        return f"{self.path}{said}"


def find(host: Mapping[str, Any], root: Path = ROOT) -> list[Conflict]:
    """Return all conflicts with what host.json declares.

    Its `settings` are the texts of our files by their paths in /etc.
    """
    found = _link_files(host, root)
    for path, text in sorted(host["settings"].items()):
        folder, _, name = path.removeprefix("/etc/").rpartition("/")
        if folder in (SYSCTL, JOURNAL):
            found += _later_values(_assignments(text), root, folder, name)
        elif folder == TMPFILES:
            found += _other_lines(text, root, folder, name)
        elif folder == NETWORK:
            found += _network_files(text, root, name)
    return found


def differences(host: Mapping[str, Any], root: Path = ROOT) -> list[str]:
    """Return a `-` line for each conflict; [] if there is none."""
    return [f"- {each.text}" for each in find(host, root)]


def mend(host: Mapping[str, Any], root: Path = ROOT) -> dict[str, object]:
    """Comment these lines out, and remove files that are about our links only.

    A package's file stays; a copy without the lines is written to /etc, which overrides it.
    Raises HostError `settings-undone` for a file that only its author can correct.
    """
    found = find(host, root)
    for each in found:
        if each.line is None:
            _remove(root / each.path.lstrip("/"), each)
    for path in sorted({each.path for each in found if each.line is not None}):
        _comment_out(path, {each.line for each in found if each.path == path}, root)
    if any(f"/{JOURNAL}/" in each.path for each in found):
        _run(["systemctl", "try-restart", "systemd-journald.service"])
    if any(f"/{NETWORK}/" in each.path for each in found):
        _run(["networkctl", "reload"])
    return {"mended": sorted({each.path for each in found})}


# Kernel settings, and the journal's


def _later_values(
    wanted: Mapping[str, str], root: Path, folder: str, own_name: str
) -> Iterator[Conflict]:
    for name, path in _files(root, folder, ".conf"):
        if name <= own_name:
            continue
        for line in _text(root, path).splitlines():
            for key, value in _assignments(line).items():
                if wanted.get(key, value) != value:
                    yield Conflict(f"/{path}", line)


def _assignments(text: str) -> dict[str, str]:
    """Return keys and values of `key = value` lines, as in sysctl.d and the journal's files."""
    found = {}
    for line in text.splitlines():
        key, sign, value = line.strip().partition("=")
        if sign and key[:1] not in "#;":
            found[_key(key.strip().removeprefix("-"))] = value.strip()
    return found


def _key(key: str) -> str:
    """Return a kernel setting's name in the form with dots."""
    first = re.search(r"[./]", key)
    if first and first[0] == "/":
        key = key.translate(str.maketrans("./", "/."))
    return ALIASES.get(key, key)


# Folders


def _other_lines(text: str, root: Path, folder: str, own_name: str) -> Iterator[Conflict]:
    declared = [words[1] for words in map(_words, text.splitlines()) if len(words) > 1]
    for name, path in _files(root, folder, ".conf"):
        if name == own_name:
            continue
        for line in _text(root, path).splitlines():
            words = _words(line)
            if len(words) > 1 and any(_is_about(words, each) for each in declared):
                yield Conflict(f"/{path}", line)


def _words(line: str) -> list[str]:
    if line.lstrip()[:1] in ("", "#"):
        return []
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def _is_about(words: list[str], folder: str) -> bool:
    """Whether a line of tmpfiles.d changes a folder, or something in it."""
    letter, path = words[0][0], words[1].rstrip("/") or "/"
    if path == folder or path.startswith(f"{folder}/"):
        return True
    if letter in WITH_PATTERN and fnmatchcase(folder, path):
        return True
    ages = len(words) > 5 and words[5] != "-"
    below = f"{path.rstrip('/')}/*"
    return (letter in DOWNWARDS or ages) and fnmatchcase(folder, below)


# Files of networkd, and of udev


def _network_files(text: str, root: Path, own_name: str) -> Iterator[Conflict]:
    """Yield drop-ins of our file, and earlier files that match the same interface."""
    suffix = own_name[own_name.rindex(".") :]
    yield from (Conflict(f"/{each}") for each in _drop_ins(root, own_name))
    link = _section(text, "Match" if suffix == ".network" else "NetDev").get("Name", "")
    for name, path in _files(root, NETWORK, suffix):
        other = _text(root, path)
        if name < own_name and _fits(other, suffix, link):
            is_shared = suffix == ".network" and _section(other, "Match").get("Name") != link
            yield Conflict(f"/{path}", shared=link if is_shared else None)


def _drop_ins(root: Path, name: str) -> list[Path]:
    return [
        drop_in.relative_to(root)
        for place in PLACES
        for drop_in in sorted((root / place / NETWORK / f"{name}.d").glob("*.conf"))
    ]


def _link_files(host: Mapping[str, Any], root: Path) -> list[Conflict]:
    """Return `.link` files about the bridge or ports of slots, of which we have none.

    A file for more links, such as systemd's own for all, may be the first match if it does not
    change ours.
    """
    bridge = host["bridge"]["name"]
    kinds = {bridge: "bridge"} | {f"vm-{number}": "veth" for number in host["slots"]}
    files = []
    for name, path in _files(root, NETWORK, ".link"):
        texts = {each: _text(root, each) for each in (path, *_drop_ins(root, name))}
        files.append((path, _section("\n".join(texts.values()), "Match"), texts))
    found: dict[Path, Conflict] = {}
    for link, kind in kinds.items():
        for path, match, texts in files:
            if not _is_set_up_by(match, link, kind):
                continue
            patterns = match.get("OriginalName", "").split()
            if patterns and all(each == bridge or each.startswith("vm-") for each in patterns):
                found.setdefault(path, Conflict(f"/{path}"))
                continue
            for each, text in texts.items():
                if any(key in LINK_CHANGES for key in _section(text, "Link")):
                    found.setdefault(each, Conflict(f"/{each}", shared=link))
            break
    return list(found.values())


def _is_set_up_by(match: Mapping[str, str], link: str, kind: str) -> bool:
    own = {
        "OriginalName": link,
        "Type": "ether" if kind == "veth" else kind,
        "Kind": kind,
        "Driver": kind,
    }
    return not any(key in match for key in NEVER_MET) and all(
        _matches(match[key], value) for key, value in own.items() if key in match
    )


def _fits(text: str, suffix: str, link: str) -> bool:
    if suffix == ".netdev":
        return _section(text, "NetDev").get("Name") == link
    conditions = _section(text, "Match")
    if "Name" in conditions:
        return _matches(conditions["Name"], link)
    kinds = {conditions.get(key, "") for key in ("Type", "Kind", "Driver")}
    return not conditions or any("bridge" in kind.split() for kind in kinds)


def _matches(patterns: str, link: str) -> bool:
    is_negated = patterns.startswith("!")
    return is_negated != any(fnmatchcase(link, each) for each in patterns.lstrip("!").split())


def _section(text: str, wanted: str) -> dict[str, str]:
    section, found = "", {}
    for line in text.splitlines():
        key, sign, value = line.strip().partition("=")
        if key.startswith("["):
            section = key.strip("[]")
        elif section == wanted and sign and key[:1] not in "#;":
            found[key.strip()] = value.strip()
    return found


# Files


def _files(root: Path, folder: str, suffix: str) -> list[tuple[str, Path]]:
    """Return the files that are read, by name, with their paths below the root."""
    found: dict[str, Path] = {}
    for place in PLACES:
        for file in (root / place / folder).glob(f"*{suffix}"):
            found.setdefault(file.name, Path(place, folder, file.name))
    return sorted(found.items())


def _text(root: Path, path: Path) -> str:
    try:
        return (root / path).read_text(errors="surrogateescape")
    except OSError:  # a mask, or a link that leads nowhere
        return ""


def _remove(file: Path, undoing: Conflict) -> None:
    if undoing.shared:
        raise HostError(
            "settings-undone",
            f"{undoing.path} also matches {undoing.shared}, which only a deployment may set up",
            "on the host, name other interfaces in its [Match] section, or rename it to sort later",
        )
    file.unlink()


def _comment_out(path: str, lines: set[str | None], root: Path) -> None:
    file = (root / path.lstrip("/")).resolve()
    kept = [
        f"{OUT}{line}" if line in lines else line
        for line in file.read_text(errors="surrogateescape").splitlines()
    ]
    if path.startswith("/usr/lib/"):
        file = root / path.replace("/usr/lib/", "/etc/", 1).lstrip("/")
        make_folder(file.parent)
    write_durably(file, "".join(f"{line}\n" for line in kept).encode(errors="surrogateescape"))


def _run(argv: list[str]) -> None:
    import subprocess

    subprocess.run(argv, capture_output=True, check=False)
