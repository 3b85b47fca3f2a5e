"""Scripts and styles of others for the controller's pages, from npm, packed into its wheel.

web/package-lock.json has each package's hash, `controller/web/vendor.yaml` the files to serve.
Both count in the digest of the controller's sources. Packages are cached in folders that appear
only when they are complete.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from polydev.errors import ConfigError
from polydev.host_setup.atomic_folder import atomic_folder
from polydev.npm import LOCK, MANIFEST, clean_install
from polydev.progress import Steps
from polydev.yaml_files import load_yaml

PROJECT = Path("web")
SOURCES = (PROJECT / MANIFEST, PROJECT / LOCK)
CHOICE = Path("src/polydev/controller/web/vendor.yaml")
PLACE = Path("src/polydev/controller/web/vendor")
SUFFIXES = (".js", ".css", ".txt")


def node_modules(root: Path, cache: Path, steps: Steps) -> Path:
    """Return the folder of the packages that the lock at `root` names, those of tests included.

    Raises ConfigError if the lock cannot be read, BuildError if they cannot be downloaded.
    """
    made = cache / "controller" / "web" / _digest(root)
    if not made.is_dir():
        with steps.step("scripts and styles of the pages") as step, atomic_folder(made) as scratch:
            clean_install(root / PROJECT, scratch, step.say)
    return made / "node_modules"


def _digest(root: Path) -> str:
    try:
        content = b"".join((root / file).read_bytes() for file in SOURCES)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=root / PROJECT) from error
    return hashlib.sha256(content).hexdigest()


def pack(root: Path, packages: Path, to: Path) -> None:
    """Copy the files that vendor.yaml at `root` names from the packages into `to`.

    Raises ConfigError naming a file that the packages do not have.
    """
    for place, source in _chosen(root):
        for file in _files(packages / source):
            target = to / place / file.relative_to(packages / source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            target.chmod(0o644)


def _chosen(root: Path) -> Iterator[tuple[str, str]]:
    chosen = load_yaml(root / CHOICE)
    if not isinstance(chosen, dict):
        raise ConfigError("must map places to files", file=root / CHOICE)
    yield from chosen.items()


def _files(source: Path) -> list[Path]:
    found = [source] if source.is_file() else sorted(source.rglob("*"))
    files = [file for file in found if file.is_file() and _is_served(file)]
    if not files:
        raise ConfigError(f"the packages have no {source}", "correct vendor.yaml or the lock")
    return files


def _is_served(file: Path) -> bool:
    return file.suffix in SUFFIXES or file.stem == "LICENSE"
