"""Debian packages for the image: available versions, and the package files.

A private apt, with its own lists, archives and an empty status, answers for the guest's suite,
whatever the machine itself runs. It uses the sources of the machine's own apt; if these do not have
the suite, it uses the defaults of mmdebstrap.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from polydev.errors import BuildError, CommandError
from polydev.image.recipe import Recipe
from polydev.processes import run, run_lines

log = logging.getLogger(__name__)

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INDEX_AGE_SECONDS = 3600.0
# With less free space, apt-get update does not fail but waits without end.
INDEX_FREE_BYTES = 256 << 20
ESSENTIAL = "?essential"
# Raised when cached answers of older code must not be used any more.
ANSWER = 2
_UNKNOWN = re.compile(
    r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate"
)


class UnknownPackages(BuildError):
    """The archive does not have these packages."""

    def __init__(self, packages: Sequence[str], suite: str) -> None:
        super().__init__(
            f"Debian {suite} has no package {', '.join(packages)}",
            "correct the name in the recipe; `apt-cache search WORD` finds names",
        )
        self.packages = tuple(packages)


@dataclass(frozen=True)
class Deb:
    """One package file of the archive."""

    name: str
    version: str
    file: str
    sha256: str
    size_bytes: int

    @classmethod
    def from_print_uris(cls, line: str) -> Deb:
        """Parse one line of `apt-get --print-uris`: 'uri' file size SHA256:hex."""
        _, file, size, digest = shlex.split(line)
        name, version, _ = file.removesuffix(".deb").rsplit("_", 2)
        return cls(name, unquote(version), file, digest.removeprefix("SHA256:"), int(size))


class Archive:
    """The private apt under `folder`."""

    def __init__(self, folder: Path, suite: str, architecture: str) -> None:
        self.folder = folder
        self.suite = suite
        self.architecture = architecture
        self.lists = folder / "lists"
        self.debs = folder / "archives"
        self.sources = folder / f"{suite}.list"

    def options(self) -> list[str]:
        """Return the options that make apt-get use this archive."""
        settings = {
            "Dir::State": self.folder,
            "Dir::State::lists": self.lists,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "Dir::Cache::archives": self.debs,
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def refresh(self, *, force: bool = False) -> None:
        """Update the package lists, unless they are younger than an hour.

        Raises BuildError if the archive cannot be reached.
        """
        stamp = self.folder / f"{self.suite}.refreshed"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < INDEX_AGE_SECONDS:
            return
        for made in (self.lists / "partial", self.debs / "partial", self.folder / "empty/partial"):
            made.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(self.lists).free < INDEX_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.lists))
        (self.folder / "status").touch()
        self.sources.write_text(package_sources(self.suite))
        try:
            run(["apt-get", *self.options(), "--error-on=any", "-q", "update"], timeout_seconds=600)
        except CommandError as error:
            raise BuildError(
                f"cannot reach the Debian archive: {error.stderr_tail or error.message}",
                "check this machine's network and apt configuration (apt-get update); "
                "--offline uses the package lists of the last build",
            ) from error
        stamp.touch()

    def resolve(self, packages: Sequence[str]) -> list[Deb]:
        """Return all package files that are needed to install `packages` into an empty system.

        Answers are cached by lists and question. Raises BuildError with the package that does not
        exist or cannot be installed.
        """
        return self._ask(("install", *packages))

    def locate(self, packages: Sequence[str]) -> list[Deb]:
        """Return the files of these packages, without their dependencies."""
        return self._ask(("download", *packages)) if packages else []

    def _ask(self, question: tuple[str, ...]) -> list[Deb]:
        key = hashlib.sha256(repr((ANSWER, question, self.lists_digest())).encode()).hexdigest()
        answer = self.folder / "answers" / f"{key}.json"
        if answer.exists():
            return [Deb(**deb) for deb in json.loads(answer.read_text())]
        verb, *packages = question
        try:
            # apt leaves out packages that are in its archives, so these are an empty folder.
            nothing = ["-o", f"Dir::Cache::archives={self.folder / 'empty'}"]
            argv = ["apt-get", *self.options(), *nothing, "-qq", "--print-uris", verb, *packages]
            done = run(argv)
        except CommandError as error:
            unknown = [first or second for first, second in _UNKNOWN.findall(error.stderr_tail)]
            if unknown:
                raise UnknownPackages(unknown, self.suite) from error
            raise BuildError(
                f"apt cannot install the recipe's packages: {error.stderr_tail}",
                "check whether packages of the recipe's layers conflict with each other",
            ) from error
        debs = [Deb.from_print_uris(line) for line in done.stdout.splitlines() if line[:1] == "'"]
        answer.parent.mkdir(exist_ok=True)
        answer.write_text(json.dumps([asdict(deb) for deb in debs]))
        return debs

    def lists_digest(self) -> str:
        """Return one hash for the content of the lists: that of their signed Release files."""
        digest = hashlib.sha256()
        for release in sorted(self.lists.glob("*Release")):
            digest.update(release.name.encode() + release.read_bytes())
        return digest.hexdigest()

    def fetch(self, packages: Sequence[str], on_line: Callable[[str], None]) -> None:
        """Download `packages` and their dependencies into `debs`."""
        self._download(["install", "--download-only", *packages], on_line)

    def fetch_only(self, debs: Iterable[Deb], on_line: Callable[[str], None]) -> None:
        """Download only these files into `debs`."""
        missing = [f"{deb.name}={deb.version}" for deb in debs if not self.path(deb).exists()]
        if missing:
            self._download(["download", *missing], on_line, cwd=self.debs)

    def _download(
        self, words: Sequence[str], on_line: Callable[[str], None], cwd: Path | None = None
    ) -> None:
        argv = ["apt-get", *self.options(), "-q", "-y", *words]
        try:
            run_lines(argv, on_line, cwd=cwd)
        except CommandError as error:
            raise BuildError(
                f"cannot download packages: {error.stderr_tail}",
                "check this machine's network, then run the same command again: "
                "downloaded packages are kept",
            ) from error

    def path(self, deb: Deb) -> Path:
        return self.debs / deb.file


def package_sources(suite: str) -> str:
    """Return apt source lines for `suite`, its updates and its security updates."""
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    fields = "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listed = run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).stdout
    lines = set()
    for target in listed.splitlines():
        site, release, component, origin = target.split("|")
        # Before the first `apt-get update`, apt does not know the origin and prints the field.
        if release in wanted and component == "main" and origin in ("Debian", "$(ORIGIN)", ""):
            lines.add(f"deb [signed-by={KEYRING}] {site} {release} main\n")
    return "".join(sorted(lines)) if lines else _mmdebstrap_sources(suite)


def _mmdebstrap_sources(suite: str) -> str:
    """Return what mmdebstrap, which knows each suite's archive, writes into a new system."""
    show = 'cat "$1/etc/apt/sources.list" >&2; exit 1'
    argv = ["mmdebstrap", "--variant=custom", "--mode=root", "--skip=check/empty,check/signed-by"]
    argv += [f"--keyring={KEYRING}", f"--setup-hook={show}", suite, "/dev/null"]
    done = run(argv, check=False, timeout_seconds=120)
    lines = [
        line.replace("deb ", f"deb [signed-by={KEYRING}] ", 1)
        for line in done.stderr.splitlines()
        if line.startswith("deb ")
    ]
    if not lines:
        raise BuildError(
            f"this machine has no package source for Debian {suite}",
            "add one to /etc/apt/sources.list.d and run apt-get update",
        )
    return "\n".join(lines) + "\n"


def recipe_archive(folder: Path, recipe: Recipe) -> Archive:
    return Archive(folder, recipe.suite, recipe.architecture)
