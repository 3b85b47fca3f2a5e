"""The files of a release: listed when it is installed, compared with that list later.

releases/<id>/files.jsonl    one line for each file: path (from the release's folder), mode,
                             ctime and sha256 or, for a symbolic link, target
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polydev.durable_files import read_json, write_new
from polydev.hosttool.backup_scope import ControllerScope
from polydev.hosttool.file_metadata import file_sha256

FILES = "files.jsonl"
PROGRAM = Path("venv/bin/master-controller")
SHOWN = 3


def write_file_list(place: Path) -> None:
    lines = [json.dumps(entry) for entry in files_of(place / "venv")]
    write_new(place / FILES, ("\n".join(lines) + "\n").encode(), 0o644)


def files_of(venv: Path) -> Iterator[dict[str, object]]:
    """Yield path, mode, ctime and SHA-256 (or target) of each file in the venv of a release."""
    for path in sorted(venv.rglob("*")):
        state = path.lstat()
        entry: dict[str, object] = {"path": path.relative_to(venv.parent).as_posix()}
        if stat.S_ISLNK(state.st_mode):
            yield {**entry, "target": os.readlink(path)}
        elif stat.S_ISREG(state.st_mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            mode = f"{stat.S_IMODE(state.st_mode):o}"
            yield {**entry, "mode": mode, "ctimeNs": state.st_ctime_ns, "sha256": digest}


def current_release(controller: ControllerScope) -> str | None:
    """Return the name of the release that `current` points at."""
    current = controller.current
    return Path(current.readlink()).name if current.is_symlink() else None


def release_sum(controller: ControllerScope, release: str) -> str | None:
    """Return the checksum of a release's list of files; None if it has no list."""
    try:
        return file_sha256(controller.release(release) / FILES)
    except FileNotFoundError:
        return None


def release_damage(
    folder: Path, expected_sum: str | None, *, changed_only: bool = False, others: bool = False
) -> list[str]:
    """Describe the differences of a release from its list; [] for an intact one.

    `changed_only` reads only files whose ctime, which no program can set, has changed; damage by
    the disk itself is not noticed then. `others` also names files that are not listed.
    """
    if not (folder / PROGRAM).exists():
        return [f"release {folder.name} has no {PROGRAM}"]
    if expected_sum is None:
        return []
    files = folder / FILES
    if not files.is_file():
        return [f"{files} is missing"]
    text = files.read_bytes()
    if hashlib.sha256(text).hexdigest() != expected_sum:
        return [f"{files} has changed since the release was installed"]
    listed = [json.loads(line) for line in text.splitlines()]
    damage = list(_differences(folder, listed, changed_only=changed_only))
    damage += _unlisted(folder, {entry["path"] for entry in listed}) if others else []
    more = [f"and {len(damage) - SHOWN} more files"] if len(damage) > SHOWN else []
    return damage[:SHOWN] + more


def current_damage(root: Path) -> dict[str, object]:
    """Return the current release and its `damage`: changed files, and files that are not listed."""
    current = root / "current"
    if not current.is_symlink():
        return {"release": None, "damage": []}
    folder = current.resolve()
    damage = release_damage(folder, sum_at_install(folder), changed_only=True, others=True)
    return {"release": folder.name, "damage": damage}


def sum_at_install(folder: Path) -> str:
    """Return the checksum that the list of a release's files had when it was installed.

    Releases of an earlier host tool have none: their list is assumed to be unchanged.
    """
    files = folder / FILES
    known = (read_json(folder / "release.json") or {}).get("files")
    return str(known) if known else file_sha256(files) if files.is_file() else "unknown"


def _unlisted(folder: Path, listed: set[str]) -> Iterator[str]:
    for place, folders, names in os.walk(folder / "venv"):
        # Python writes compiled files later; those from the installation are listed.
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in sorted([*names, *links]):
            path = f"{place}/{name}"
            if path.removeprefix(f"{folder}/") not in listed:
                yield f"{path} does not belong to the release"


def _differences(
    folder: Path, listed: list[dict[str, Any]], *, changed_only: bool
) -> Iterator[str]:
    for wanted in listed:
        path = folder / wanted["path"]
        if "target" in wanted:
            if not path.is_symlink() or str(path.readlink()) != wanted["target"]:
                yield f"{path} is not the link to {wanted['target']}"
            continue
        try:
            state = path.stat()
            if changed_only and state.st_ctime_ns == wanted.get("ctimeNs"):
                continue
            found = file_sha256(path)
            mode = stat.S_IMODE(state.st_mode)
        except OSError as error:
            yield f"{path}: {error.strerror}"
            continue
        if found != wanted["sha256"]:
            yield f"{path} has sha256 {found[:12]}, not {wanted['sha256'][:12]}"
        elif mode != int(wanted["mode"], 8):
            yield f"{path} has mode {mode:04o}, not {wanted['mode']}"
