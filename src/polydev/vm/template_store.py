"""The templates on a host's disk: `templates/<key>/{memory,state,disk.qcow2,record.json}`.

    VmConfig, QEMU's version, CPU -> key      everything that a template depends on is in its key
    incoming --add--> <key>                   complete, or not there
    Build --note--> build.json                progress of the latest build, or its error

The folder `templates` is in the image store. Nothing in it says which template is in use.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from polydev.durable_files import sync
from polydev.file_checksum import file_sha256
from polydev.vm.config import MemoryFile, VmConfig
from polydev.vm.qemu_command_line import qemu_argv
from polydev.vm.template_client import FILES

RECORD = "record.json"
INCOMING = ".incoming"
BUILD, LOCK = "build.json", ".lock"
# If this file exists, the next build makes the template again although there is one.
AGAIN = ".again"
# Raised when templates of older code can no longer be used.
FORMAT = 2


@dataclass(frozen=True)
class Template:
    """The record of a template.

    files       SHA-256 of each file, in hex
    qemu        QEMU's version, in its own words
    made_at     seconds since 1970
    boot_seconds, seconds   how long its VM took to boot, and the whole build
    """

    key: str
    image_digest: str
    qemu: str
    accelerator: str
    cpus: int
    memory_mib: int
    files: dict[str, str]
    made_at: float
    boot_seconds: float
    seconds: float


@dataclass(frozen=True)
class Build:
    """The latest build of a template.

    step        its current or last step, in words
    ended_at    seconds since 1970; None while it runs, or if it was killed
    error       why it failed; None if it did not
    """

    key: str
    image_digest: str
    began_at: float
    step: str
    ended_at: float | None = None
    error: str | None = None


def template_key(config: VmConfig, qemu_version: str, cpu_model: str) -> str:
    """Return the key of the template for VMs like this one: 64 hexadecimal digits.

    `cpu_model` is the host's, since a running guest relies on the features of its processor.
    """
    anybody = replace(
        config,
        vm_id="template",
        session_id=None,
        folder=Path("/vm"),
        test_console=False,
        memory_file=MemoryFile(Path("/memory"), private=False),
    )
    argv = qemu_argv(anybody)
    parts = {"format": FORMAT, "qemu": qemu_version, "cpu": cpu_model, "argv": argv}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TemplateStore:
    """The templates in a folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, key: str) -> Path:
        return self.folder / key

    def find(self, key: str) -> Template | None:
        """Return a template by its key; None if there is none or its record cannot be read."""
        try:
            return _template_from(json.loads((self.place(key) / RECORD).read_bytes()), key)
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> list[Template]:
        """Oldest first."""
        folders = self.folder.iterdir() if self.folder.is_dir() else ()
        found = (self.find(each.name) for each in folders)
        return sorted((each for each in found if each), key=lambda each: each.made_at)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Yield a new folder on the same file system, removed at the end unless it was added."""
        place = self.folder / INCOMING
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextmanager
    def building(self, on_wait: Callable[[], object]) -> Iterator[None]:
        """Hold the lock of builds. `on_wait` is called if another process holds it.

        The kernel releases the lock with the process, so a killed one keeps nobody waiting.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # For its owner alone: a VM's user could otherwise keep templates from being made.
        with (self.folder / LOCK).open("a") as lock:
            os.fchmod(lock.fileno(), 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def take_again(self) -> bool:
        """Return whether a template is to be made again, and forget the request."""
        try:
            (self.folder / AGAIN).unlink()
        except FileNotFoundError:
            return False
        return True

    def disk_bytes(self, key: str) -> int:
        """The disk space that a template takes, which is less than its size, since it has holes."""
        with suppress(OSError):
            return sum((self.place(key) / name).stat().st_blocks * 512 for name in FILES)
        return 0

    def build(self) -> Build | None:
        """The latest build of a template; None if there is no record of one."""
        try:
            return Build(**json.loads((self.folder / BUILD).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def note(self, build: Build) -> None:
        """Write the state of the latest build."""
        fresh = self.folder / f".{BUILD}"
        fresh.write_text(json.dumps(asdict(build), indent=1) + "\n")
        fresh.chmod(0o644)
        fresh.replace(self.folder / BUILD)

    def add(self, incoming: Path, template: Template) -> None:
        """Make the files in `incoming` this template, after syncing them to the disk."""
        (incoming / RECORD).write_text(json.dumps(asdict(template), indent=1) + "\n")
        for name in (*FILES, RECORD):
            (incoming / name).chmod(0o644)
            sync(incoming / name)
        sync(incoming)
        gone = self._aside(template.key)
        incoming.rename(self.place(template.key))
        sync(self.folder)
        shutil.rmtree(gone, ignore_errors=True)

    def remove(self, key: str) -> None:
        """Remove a template. VMs that were resumed from it keep running."""
        shutil.rmtree(self._aside(key), ignore_errors=True)

    def _aside(self, key: str) -> Path:
        """Rename a template that is to be removed, so that nobody finds it; return its place."""
        gone = self.folder / f".{key}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.place(key).rename(gone)
        return gone


def file_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a template, in hex."""
    return {name: file_sha256(folder / name) for name in FILES}


def _template_from(found: Any, key: str) -> Template:
    """Raise ValueError or TypeError unless this is the record of the template `key`."""
    if not isinstance(found, dict) or set(found) != {each.name for each in fields(Template)}:
        raise ValueError("no record of a template")
    template = Template(**found)
    if template.key != key or set(template.files) != set(FILES):
        raise ValueError("the record of another template")
    return template
