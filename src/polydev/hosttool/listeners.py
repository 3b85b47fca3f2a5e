"""The processes that listen on the host's TCP ports, from /proc.

A unit's state is not enough: a socket unit can be active and have lost its descriptor, as after its
file was broken for a while. Then the service listens by itself, and the next one finds the address
in use.

/proc/net/tcp{,6}: local address and port, state, inode      /proc/PID/fd: socket:[inode]
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTEN_STATE = "0A"
SYSTEMD_PID = 1
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  (compared, not bound)
LISTEN_LINE = re.compile(r"^\[?(?P<address>[^\]\s]+?)\]?:(?P<port>\d+) \(Stream\)$")


@dataclass(frozen=True)
class Listener:
    """One listening socket and a process that has it open."""

    address: str
    port: int
    pid: int
    name: str
    unit: str


def listens(declared: set[tuple[str, int]], proc: Path = PROC) -> bool:
    """Whether systemd itself holds a socket for everything that a socket unit declares."""
    held = {(each.address, each.port) for each in listeners(proc) if each.pid == SYSTEMD_PID}
    return bool(declared) and declared <= held


def declared_addresses(text: str) -> set[tuple[str, int]]:
    """Parse systemd's `Listen` property, with lines such as `0.0.0.0:4000 (Stream)`."""
    found = (LISTEN_LINE.match(line.strip()) for line in text.splitlines())
    return {(match["address"], int(match["port"])) for match in found if match}


def overlap(one: str, other: str) -> bool:
    """Whether sockets at two addresses conflict on the same port."""
    if one == other or "::" in (one, other):
        return True
    return WILDCARDS[0] in (one, other) and ":" not in one + other


def has_address(address: str) -> bool:
    """Whether this host has an address; tries to bind to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def listeners(proc: Path = PROC) -> list[Listener]:
    """Return every TCP socket that listens, once for each process that has it open."""
    sockets = {
        inode: (address, port)
        for name in ("tcp", "tcp6")
        for address, port, inode in listening_sockets(_text(proc / "net" / name))
    }
    return [
        Listener(*sockets[inode], pid, _text(proc / str(pid) / "comm").strip(), _unit(proc, pid))
        for pid, inode in _holders(proc, set(sockets))
    ]


def listening_sockets(table: str) -> Iterator[tuple[str, int, str]]:
    """Yield address, port and inode of each listening socket in a table of /proc/net."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if words[3] == LISTEN_STATE:
            address, _, port = words[1].partition(":")
            yield _address(address), int(port, 16), words[9]


def _address(text: str) -> str:
    """The kernel writes each 32 bits of an address in the machine's own byte order."""
    parts = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    family = socket.AF_INET if len(parts) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, struct.pack(f"={len(parts)}I", *parts))


def _holders(proc: Path, inodes: Iterable[str]) -> Iterator[tuple[int, str]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    for folder in proc.glob("[0-9]*"):
        for target in sorted(opened_by(folder) & wanted.keys()):
            yield int(folder.name), wanted[target]


def opened_by(process: Path) -> set[str]:
    """Return what a process has open, by its folder in /proc; empty if it ends meanwhile."""
    found = set()
    with suppress(OSError):
        for link in os.scandir(process / "fd"):
            with suppress(OSError):  # it has closed it
                found.add(os.readlink(link.path))
    return found


def _unit(proc: Path, pid: int) -> str:
    """Return the unit of a process: the last part of its cgroup."""
    lines = _text(proc / str(pid) / "cgroup").splitlines()
    return lines[-1].rpartition("/")[2] if lines else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
