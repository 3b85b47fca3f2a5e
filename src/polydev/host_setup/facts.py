"""Facts of a host that pyinfra lacks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_interface
from typing import Any

from pyinfra.api.facts import FactBase

from polydev.host_setup.inventory_network_checks import HostNetwork
from polydev.host_setup.render import STAMPS, UNITS

TOUCHED = "Touched=yes"


@dataclass(frozen=True)
class UnitState:
    """State of a unit; `config` is the hash that the unit wrote down when it was started.

    `touched`: one of its files differs, was changed after that start, or is a drop-in of others.
    """

    active: bool = False
    enabled: bool = False
    config: str = ""
    loaded: bool = False
    result: str = ""
    touched: bool = False


class UnitFact(FactBase[UnitState]):
    """State of a unit, from systemd and the unit's stamp; `files` are paths with their SHA-256.

    Not systemd.SystemdStatus: it knows nothing of configurations and drop-ins.
    """

    def command(self, unit: str, files: tuple[tuple[str, str], ...] = ()) -> str:
        name = shlex.quote(unit)
        stamp = f"{STAMPS}/{name}"
        asked = (
            f"systemctl show {name} -p ActiveState -p UnitFileState -p LoadState -p Result "
            f"-p NeedDaemonReload -p DropInPaths; echo Config=$(cat {stamp} 2>/dev/null)"
        )
        # Drop-ins count only where the whole unit is ours.
        if any(path.rpartition("/")[0] == UNITS for path, _ in files):
            asked += "; echo Own=yes"
        for path, sha256 in files:
            asked += f"; {_unless_same(path, sha256)}"
            # Without the first test, shells differ on whether a file is newer than a missing stamp.
            newer = f"test -e {stamp} && test {shlex.quote(path)} -nt {stamp}"
            asked += f"; if {newer}; then echo {TOUCHED}; fi"
        return asked

    @staticmethod
    def default() -> UnitState:
        return UnitState()

    def process(self, output: Iterable[str]) -> UnitState:
        found = dict(line.split("=", 1) for line in output if "=" in line)
        return UnitState(
            active=found.get("ActiveState") in ("active", "reloading"),
            enabled=found.get("UnitFileState") in ("enabled", "static"),
            config=found.get("Config", ""),
            loaded=found.get("LoadState") == "loaded",
            result=found.get("Result", ""),
            touched="yes" in (found.get("NeedDaemonReload"), found.get("Touched"))
            or ("Own" in found and _names_one_unit(found.get("DropInPaths", ""))),
        )


def _names_one_unit(drop_ins: str) -> bool:
    """Whether one of them is for certain units, not for a whole type as those in service.d."""
    folders = (path.split("/")[-2] for path in drop_ins.split() if path.count("/") > 1)
    return any("." in folder.removesuffix(".d") for folder in folders)


def _unless_same(path: str, sha256: str) -> str:
    """Return shell that prints TOUCHED unless the file has this checksum."""
    sums = shlex.quote(f"{sha256}  {path}")
    return f"echo {sums} | sha256sum --check --status 2>/dev/null || echo {TOUCHED}"


@dataclass(frozen=True)
class PresentFile:
    """Checksum, and mode, user and group, of a regular file; empty if there is none."""

    sha256: str = ""
    rights: tuple[str, str, str] | tuple[()] = ()


class FileState(FactBase[PresentFile]):
    """The regular file at a path, read by one command; a link does not count as one."""

    def command(self, path: str) -> str:
        name = shlex.quote(path)
        asked = f"test -f {name} && test ! -L {name} && stat -c '%a %U %G' {name}"
        return f"{{ {asked} && sha256sum <{name}; }} 2>/dev/null || true"

    @staticmethod
    def default() -> PresentFile:
        return PresentFile()

    def process(self, output: Iterable[str]) -> PresentFile:
        words = " ".join(output).split()
        if len(words) != 5:  # mode, user, group, checksum, and the name of standard input
            return PresentFile()
        mode, user, group, sha256, _ = words
        return PresentFile(sha256, (mode, user, group))


class UnitStates(FactBase[dict[str, str]]):
    """The units of a pattern that are active, activating, deactivating or failed."""

    def command(self, pattern: str) -> str:
        return (
            "systemctl list-units --plain --no-legend "
            f"--state=active,activating,deactivating,failed {shlex.quote(pattern)}"
        )

    @staticmethod
    def default() -> dict[str, str]:
        return {}

    def process(self, output: Iterable[str]) -> dict[str, str]:
        lines = (line.split() for line in output if line.strip())
        return {unit: active for unit, _, active, *_ in lines}


class Names(FactBase[list[str]]):
    """Names in a folder; none if there is no such folder."""

    def command(self, folder: str) -> str:
        return f"ls -1A {shlex.quote(folder)} 2>/dev/null || true"

    @staticmethod
    def default() -> list[str]:
        return []

    def process(self, output: Iterable[str]) -> list[str]:
        return sorted(output)


class StaleUnits(FactBase[bool]):
    """Whether systemd has loaded older files of a pattern's units, or the files differ."""

    def command(self, pattern: str, files: tuple[tuple[str, str], ...]) -> str:
        asked = [f"systemctl show -p NeedDaemonReload {shlex.quote(pattern)}"]
        return "; ".join([*asked, *(_unless_same(path, sha256) for path, sha256 in files)])

    @staticmethod
    def default() -> bool:
        return False

    def process(self, output: Iterable[str]) -> bool:
        return any(line in ("NeedDaemonReload=yes", TOUCHED) for line in output)


class Folders(FactBase[dict[str, tuple[str, str, str]]]):
    """Mode, user and group of each of these paths that is a folder."""

    def command(self, paths: tuple[str, ...]) -> str:
        return f"stat -c '%F:%n:%a:%U:%G' {shlex.join(paths)} 2>/dev/null || true"

    @staticmethod
    def default() -> dict[str, tuple[str, str, str]]:
        return {}

    def process(self, output: Iterable[str]) -> dict[str, tuple[str, str, str]]:
        found = (line.split(":") for line in output if line.startswith("directory:"))
        return {path: (mode, user, group) for _, path, mode, user, group in found}


class JsonFact(FactBase[dict[str, Any]]):
    """A fact that is a JSON object; {} if there is none."""

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: Iterable[str]) -> dict[str, Any]:
        try:
            found = json.loads("\n".join(output))
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class JsonFile(JsonFact):
    def command(self, path: str) -> str:
        return f"cat {shlex.quote(path)} 2>/dev/null || true"


class HostNetworks(FactBase[list[HostNetwork]]):
    """Networks of the host's addresses and routes; none if it has no `ip` yet.

    Only unicast routes count: our blackhole route for the VMs' network does not.
    """

    def command(self) -> str:
        asked = "ip -json address show; echo; ip -json -4 route show table all; echo"
        return f"! command -v ip >/dev/null || {{ {asked}; }}"

    @staticmethod
    def default() -> list[HostNetwork]:
        return []

    def process(self, output: Iterable[str]) -> list[HostNetwork]:
        said = [each for line in output if line.strip() for each in json.loads(line)]
        found = []
        for each in said:
            device = each.get("ifname") or each.get("dev") or ""
            for info in each.get("addr_info", []):
                own = ip_interface(f"{info['local']}/{info['prefixlen']}")
                found.append(HostNetwork(own.network, device, own.ip))
            if "dst" in each and each.get("type", "unicast") == "unicast":
                to = each["dst"].replace("default", "0.0.0.0/0")
                found.append(HostNetwork(IPv4Network(to), device))
        return found


class DatabaseCheck(JsonFact):
    """Whether the host can use a database, whose URL it reads from standard input.

    The answer has `checked`, or `error`, `message` and `hint`.
    """

    def command(self, tool: str) -> str:
        return f"test ! -x {tool} || {tool} database check 2>/dev/null || true"


class Firewall(FactBase[str]):
    """Diff of a table in the kernel and of the same table as its file makes it; empty if equal.

    The file is loaded in a temporary network namespace for the comparison.
    """

    def command(self, family: str, table: str, text: str) -> str:
        listing = f"nft -s list table {family} {table}"
        fresh = f"printf %s {shlex.quote(text)} | unshare -n sh -c 'nft -f - && {listing}'"
        return (
            f"d=$(mktemp -d); {listing} >$d/live 2>/dev/null || echo none >$d/live; "
            f"{fresh} >$d/wanted 2>/dev/null; "
            "diff -U2 --label live --label wanted $d/live $d/wanted; rm -rf $d"
        )

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: Iterable[str]) -> str:
        return "\n".join(output)


class SysctlValue(FactBase[str]):
    def command(self, key: str) -> str:
        return f"sysctl -n {shlex.quote(key)} 2>/dev/null || true"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: Iterable[str]) -> str:
        return " ".join(" ".join(output).split())


class PythonVersion(FactBase[str]):
    """Version of the host's Python, for which releases are made, as in 3.11."""

    def command(self) -> str:
        return "/usr/bin/python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'"

    @staticmethod
    def default() -> str:
        return ""

    def process(self, output: Iterable[str]) -> str:
        return "".join(output).strip()
