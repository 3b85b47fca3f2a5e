"""A host for tests of the host tool: files below a folder, and a fake systemd."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

from polydev.deployment.connection import HostRefused
from polydev.durable_files import UNFINISHED
from polydev.hosttool import backup, restore
from polydev.hosttool.backup_manifest import Backup
from polydev.hosttool.backup_scope import ControllerScope, Scope, list_scope
from polydev.hosttool.cli import parser
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import entries_below
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore import RestoreOptions
from polydev.hosttool.restore_job import RestoreJob, read_state
from polydev.hosttool.restore_units import SYSCTL_UNIT
from polydev.hosttool.sqlite_database import content_sha256
from polydev.hosttool.systemd import UnitStatus
from polydev.hosttool.units import MAIN, NEXT, SOCKET, file_roots, template_of, wanted_config
from polydev.hosttool.verb import Call
from polydev.image_layout import BOOT_FILES
from polydev.ssh import SshTarget

FIRST, SECOND, THIRD = (f"2025013{day}_120000-abcd{day}" for day in (0, 1, 2))
OLD, NEW = "20250101_000000-aaaa1", "20250102_000000-bbbb2"
NETWORK, FIREWALL, SLOTS = "polydev-network.service", "polydev-firewall.service", "microvm-slot@"

FOREIGN_UNITS = ("ssh.service", SYSCTL_UNIT)
OWN_UNITS = (NETWORK, FIREWALL, f"{SLOTS}.service", SOCKET, MAIN, f"{NEXT}.service")


@dataclass
class ObedientSystemd:
    """Units exist while they have a file; a start writes the unit's stamp.

    `fails` says which call goes wrong; `log` keeps every call that changes something; a socket
    unit in `lost` is active without a socket.
    """

    paths: Paths
    controller: ControllerScope
    active: dict[str, str] = field(default_factory=dict)
    enabled: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    fails: Callable[[str, str], bool] = lambda verb, unit: False
    timers: dict[str, list[str]] = field(default_factory=dict)
    started: list[list[str]] = field(default_factory=list)
    starts: Callable[[str, Sequence[str]], object] | None = None
    known: dict[str, str | None] = field(default_factory=dict)
    running: dict[str, str] = field(default_factory=dict)
    falls_over: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.reload()

    def reload(self) -> None:
        """Read the unit files, as systemd does when told to and not before."""
        folder = self.paths.units
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        self.known = {name: wanted_config(self.paths, name) for name in names}

    def exists(self, unit: str) -> bool:
        roots = file_roots(self.paths, unit)
        return unit in self.foreign or any(
            root.name in self.known and root.suffix != ".d" for root in roots
        )

    def states(self, units: Sequence[str]) -> dict[str, UnitStatus]:
        return {unit: self._state(unit) for unit in units}

    def _state(self, unit: str) -> UnitStatus:
        if unit in self.timers:
            return UnitStatus(True, "active")
        if not self.exists(unit):
            return UnitStatus(False, self.active.get(unit, "inactive"))
        word = "enabled" if unit in self.enabled else "static" if "@" in unit else "disabled"
        return UnitStatus(True, self.active.get(unit, "inactive"), word)

    def declared_sockets(self, unit: str) -> set[tuple[str, int]]:
        return {("127.0.0.1", 4000)}

    def listens(self, unit: str) -> bool:
        return self.active.get(unit) == "active" and unit not in self.lost

    def loaded(self, pattern: str) -> list[str]:
        return sorted(unit for unit in self.active if fnmatch(unit, pattern))

    def act(self, verb: str, *units: str, timeout_seconds: float) -> None:
        self.log.append(" ".join([verb, *units]))
        MOMENTS.step(self.log[-1])
        with MOMENTS.by_systemd():
            self._all(verb, *units)

    def _all(self, verb: str, *units: str) -> None:
        if verb == "daemon-reload":
            self.reload()
        for unit in units:
            if self.fails(verb, unit):
                self.active[unit] = "failed"
                raise HostError("unit-failed", f"systemctl {verb} {unit} exited with status 1")
            self._act(verb, unit)

    def _act(self, verb: str, unit: str) -> None:
        if verb == "stop":
            self.active.pop(unit, None)
            self.lost.discard(unit)
            self.running.pop(unit, None)
            self.timers.pop(unit, None)
        elif verb in ("enable", "disable"):
            self.enabled = self.enabled | {unit} if verb == "enable" else self.enabled - {unit}
        elif verb in ("start", "restart", "reload-or-restart"):
            if not self.exists(unit):
                raise HostError("unit-failed", f"Unit {unit} not found.")
            if verb == "start" and self.active.get(unit) == "active":
                return
            if unit == SOCKET and unit not in self.active and MAIN in self.active:
                raise HostError("unit-failed", "Socket service already active, refusing.")
            self.come_up(unit)
            if unit in self.falls_over:
                self.active[unit] = "activating"

    def come_up(self, unit: str) -> None:
        self.active[unit] = "active"
        self.lost.discard(unit)
        self.running[unit] = self._read_by(unit)
        config = self._known_config(unit)
        if config is not None:
            self.paths.stamps.mkdir(parents=True, exist_ok=True)
            (self.paths.stamps / unit).write_text(f"{config}\n")

    def _known_config(self, unit: str) -> str | None:
        """Return the hash in the unit's files as of the last reload."""
        names = (unit, f"{unit}.d", template_of(unit) or unit)
        return next((self.known[name] for name in names if self.known.get(name)), None)

    def _read_by(self, unit: str) -> str:
        """Return a hash of everything that a unit read at its start."""
        folders = file_roots(self.paths, unit)
        if unit == MAIN:
            folders.append(self.paths.controller_config)
        if unit == SYSCTL_UNIT:
            folders.append(self.paths.sysctl)
        texts = [entry.sha256 for entry in entries_below(folders) if entry.kind == "file"]
        if unit == MAIN:
            texts += [
                os.readlink(self.controller.current),
                str(content_sha256(self.controller.database)),
            ]
        return " ".join(text[:8] for text in texts)

    def invocation(self, unit: str) -> str:
        return f"run of {unit}"

    def log_since(self, unit: str, since: float, lines: int, without: str = "") -> str:
        release = os.readlink(self.controller.current).rpartition("/")[2]
        if unit != MAIN:
            release = unit.removeprefix("master-controller-next@").removesuffix(".service")
        return f"starting {release}\nerror: {release} has no database\nthe last of {lines} lines"

    def run_now(self, unit: str, argv: Sequence[str]) -> None:
        """Run a verb of the host tool to its end, or do what the test says instead."""
        self.active[unit] = "active"
        self.started.append([unit, *argv])
        (self.starts or self.run_to_end)(unit, argv)

    def run_to_end(self, unit: str, argv: Sequence[str]) -> None:
        arguments = parser().parse_args(argv[1:])
        with suppress(Exception):  # the verb recorded the error
            arguments.verb.run(Call(arguments, self.paths, self))
        self.active.pop(unit, None)

    def run_later(self, unit: str, after_seconds: int, argv: Sequence[str]) -> None:
        self.timers[f"{unit}.timer"] = [str(after_seconds), *argv]

    def seen(self) -> object:
        """Return everything about units that a restore must bring back."""
        return (
            {unit for unit, word in self.active.items() if word == "active"},
            {*self.enabled},
            {unit: text for unit, text in self.running.items() if text},
            {unit: self.exists(unit) for unit in (NETWORK, FIREWALL, MAIN, SOCKET)},
        )


class Killed(BaseException):
    """The process ends here: nothing after it happens, no clean-up either."""


FEWEST_MOMENTS = 5


class Moments:
    """A counter of changes of the host, which raises `Killed` at the chosen one."""

    EVENTS = frozenset(
        {"os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}
        | {"os.symlink", "os.truncate", "os.utime"}
    )

    def __init__(self) -> None:
        self.root = Path()
        self.chosen: int | None = None
        self.is_systemd = False
        self.count = 0

    def observe(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.chosen is None:
            return
        if self.is_systemd:
            return
        if event == "open":
            name, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not writes or not str(name).startswith(str(self.root)):
                return
        elif event not in self.EVENTS:
            return
        self.step(event)

    @contextmanager
    def by_systemd(self) -> Iterator[None]:
        """Run work of another process, which a kill of this one does not stop."""
        self.is_systemd = True
        try:
            yield
        finally:
            self.is_systemd = False

    def step(self, what: str) -> None:
        if self.chosen is None:
            return
        self.count += 1
        if self.count >= self.chosen:
            raise Killed(what)

    def killed_at(self, number: int, action: Callable[[], object]) -> bool:
        """Run `action` up to its step `number`; False if it ended before that."""
        self.chosen, self.count = number, 0
        try:
            action()
        except Killed:
            return True
        finally:
            self.chosen = None
        return False


MOMENTS = Moments()
sys.addaudithook(MOMENTS.observe)


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def unit_text(config: str) -> str:
    return f"[Unit]\nX-Polydev-Config={config}\n"


@dataclass
class Host:
    """A host as a first deployment leaves it: everything there, everything running."""

    root: Path
    paths: Paths
    systemd: ObedientSystemd
    scope: Scope

    @property
    def controller(self) -> ControllerScope:
        assert self.scope.controller is not None
        return self.scope.controller

    @property
    def store(self) -> Path:
        assert self.scope.store is not None
        return self.scope.store

    def backup(self, backup_id: str = FIRST) -> Backup:
        return backup.create(self.paths, self.systemd, backup_id, self.scope)

    def restore(self, backup_id: str = FIRST, *, reach: bool = False) -> dict[str, object]:
        return restore.restore(self.paths, self.systemd, backup_id, RestoreOptions(reach=reach))

    def seen(self) -> dict[str, object]:
        """Return everything that a restore must bring back."""
        return {"listing": list_scope(self.scope), "units": self.systemd.seen()}

    def killed_everywhere(self, action: Callable[[], object]) -> Iterator[int]:
        """Yield after a kill at each step of `action`, and at last after a complete run."""
        MOMENTS.root = self.root
        was, systemd = self.root.with_name("was"), deepcopy(self.systemd)
        shutil.copytree(self.root, was, symlinks=True)
        is_killed = True
        for number in count(1):
            if not is_killed:
                break
            shutil.rmtree(self.root)
            shutil.copytree(was, self.root, symlinks=True)
            self.systemd.__dict__.update(deepcopy(systemd).__dict__)
            is_killed = MOMENTS.killed_at(number, action)
            yield number
        assert number > FEWEST_MOMENTS, "the hook does not see what the verb does"
        shutil.rmtree(was)

    def unfinished(self) -> list[Path]:
        """Return the files that must not remain after a verb."""
        names = (f"**/.*{UNFINISHED}", "**/.new-*", "**/.old-*")
        return [path for name in names for path in self.root.glob(name)]

    def execute(self, sql: str) -> None:
        with closing(sqlite3.connect(self.controller.database)) as connection, connection:
            connection.execute(sql)

    def rows(self) -> list[str]:
        with closing(sqlite3.connect(self.controller.database)) as connection:
            return [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY 1")]

    def unit(self, name: str, config: str) -> None:
        put(self.paths.units / name, unit_text(config))

    def release(self, release: str) -> Path:
        folder = self.controller.release(release)
        program = folder / "venv" / "bin" / "master-controller"
        put(program, f"the program of {release}\n", 0o755)
        program.with_name("python3").symlink_to("/usr/bin/python3")
        lines = [
            {
                "path": "venv/bin/master-controller",
                "mode": "755",
                "sha256": hashlib.sha256(program.read_bytes()).hexdigest(),
            },
            {"path": "venv/bin/python3", "target": "/usr/bin/python3"},
        ]
        put(folder / "files.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return folder

    def image(self, number: int, digest: str) -> None:
        put(self.store / "images" / digest / "rootfs.ext4", f"image {digest}")
        (self.store / "promotions").mkdir(exist_ok=True)
        (self.store / "promotions" / f"{number:06d}").symlink_to(f"../images/{digest}")
        put(self.store / "promotions" / f"{number:06d}.json", json.dumps({"digest": digest}))

    def promote(self, number: int) -> None:
        link = self.store / "golden-rootfs.ext4"
        link.unlink(missing_ok=True)
        link.symlink_to(f"promotions/{number:06d}/rootfs.ext4")

    def point(self, release: str) -> None:
        self.controller.current.unlink(missing_ok=True)
        self.controller.current.symlink_to(f"releases/{release}")

    def start(self, *units: str) -> None:
        self.systemd.reload()
        for unit in units:
            self.systemd.come_up(unit)


def arrive(store: Path, digest: str) -> Path:
    """Put an uploaded image into a store, not yet added."""
    folder = store / "incoming" / digest
    folder.mkdir(parents=True)
    for name in BOOT_FILES:
        (folder / name).write_text(f"{name} of {digest}")
    files = {
        name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name in BOOT_FILES
    }
    (folder / "record.json").write_text(json.dumps({"digest": digest, "files": files}))
    return folder


def bare_host(root: Path) -> Host:
    """Return a host with only the files of its distribution."""
    paths = Paths.below(root)
    etc = root / "etc"
    for folder in (paths.units, etc / "ssh" / "sshd_config.d", etc / "sysctl.d"):
        folder.mkdir(parents=True)
    put(etc / "ssh" / "sshd_config", "Port 22\n")
    names = [*OWN_UNITS, "ssh.service.d/polydev.conf"]
    reach = (
        etc / "polydev" / "firewall.nft",
        etc / "ssh" / "sshd_config.d" / "50-polydev.conf",
        *(paths.units / name for name in (NETWORK, FIREWALL, "ssh.service.d/polydev.conf")),
    )
    own = (etc / "polydev", paths.controller_config, paths.sysctl / "60-polydev.conf")
    controller = ControllerScope(
        root / "opt/master-controller", root / "var/lib/master-controller/controller.sqlite3"
    )
    store = root / "var/lib/firecracker/snapshots/base"
    for folder in (controller.root, controller.database.parent, store):
        folder.mkdir(parents=True)
    scope = Scope(
        paths=tuple(sorted({*own, *reach, *(paths.units / name for name in names)})),
        reach=reach,
        units=("ssh.service", NETWORK, FIREWALL, f"{SLOTS}2.service", SOCKET, MAIN),
        controller=controller,
        store=store,
    )
    systemd = ObedientSystemd(
        paths,
        controller,
        dict.fromkeys(FOREIGN_UNITS, "active"),
        enabled={"ssh.service"},
        foreign={*FOREIGN_UNITS},
    )
    return Host(root, paths, systemd, scope)


def deploy(host: Host, config: str = "1", release: str = OLD, image: str = "a" * 64) -> None:
    """Make all changes of a deployment at once."""
    etc = host.root / "etc"
    put(etc / "polydev" / "firewall.nft", f"table inet polydev {{ }} # {config}\n")
    put(etc / "polydev" / "dns.conf", f"cache-size={config}\n", 0o640)
    put(etc / "polydev" / "more" / f"{config}.conf", config)
    put(etc / "ssh" / "sshd_config.d" / "50-polydev.conf", f"MaxSessions {config}\n")
    put(host.paths.sysctl / "60-polydev.conf", f"net.ipv4.ip_forward={config}\n")
    put(host.paths.controller_config / "config.yaml", f"log_level: {config}\n", 0o640)
    put(host.paths.controller_config / "secrets" / "jwt-secret", f"secret {config}", 0o600)
    for name in OWN_UNITS:
        host.unit(name, config)
    put(host.paths.units / "ssh.service.d" / "polydev.conf", unit_text(config))
    with suppress(FileExistsError):
        host.release(release)
    host.point(release)
    number = len(list((host.store / "promotions").glob("*.json"))) + 1
    host.image(number, image)
    host.promote(number)
    host.execute("PRAGMA journal_mode=WAL")
    host.execute("CREATE TABLE IF NOT EXISTS notes (text)")
    host.execute(f"INSERT INTO notes VALUES ('written by {config}')")
    units = [NETWORK, FIREWALL, f"{SLOTS}2.service", SOCKET, MAIN]
    host.start(*units, *FOREIGN_UNITS)
    host.systemd.enabled |= {NETWORK, FIREWALL, SOCKET, MAIN}


@dataclass(frozen=True)
class CallWith(Call):
    """A call of the host tool with this document on stdin."""

    given: object = None

    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(self.given))
        return found


class ToolConnection:
    """The operator's connection to such a host; the host tool runs in this process."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.target = SshTarget("browsers", "browsers")

    def install_tool(self) -> None:
        pass

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        # In this order, as in a real connection: the state of a unit that has ended is its last.
        is_dead = job.unit not in self.host.systemd.active
        state = read_state(self.host.paths, job)
        return None if state and state["state"] == "running" and is_dead else state

    def wait_until_back(self, seconds: float) -> None:
        pass

    def command(self, text: str, **_: object) -> str:
        assert text.endswith("record list"), text
        return json.dumps(self.tool("record", "list"))

    def tool(
        self, *words: str, document: object = None, timeout_seconds: float = 0
    ) -> dict[str, Any]:
        arguments = parser().parse_args(words)
        call = CallWith(arguments, self.host.paths, self.host.systemd, given=document)
        try:
            found: dict[str, Any] = json.loads(json.dumps(arguments.verb.run(call)))
        except HostError as error:
            raise HostRefused(error.message, error.hint) from error
        return found
