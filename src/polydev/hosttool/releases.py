"""Releases of the controller: a folder for each, installed from wheels on the host.

    incoming/<id>/      requirements.txt, as it arrived
    wheels/             the wheels of all releases
    releases/<id>/      venv/, requirements.txt, release.json, files.jsonl

A release is complete when it has its release.json, which is written last. Nothing is downloaded:
pip looks in these folders only and takes nothing whose hash the requirements do not name.
"""

from __future__ import annotations

import re
import shutil
import time
from functools import partial
from pathlib import Path

from polydev.durable_files import json_bytes, make_folder, read_json, remove, sync, write_new
from polydev.host_layout import CONTROLLER_ROOT
from polydev.hosttool.database_schema_cache import remember
from polydev.hosttool.deployment_counter import next_number, number_in, order
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import file_sha256
from polydev.hosttool.paths import Paths, require_id
from polydev.hosttool.release_files import FILES, write_file_list
from polydev.hosttool.release_venv import make_venv, run
from polydev.hosttool.run_controller_command import ControllerProgram, database_in_words
from polydev.hosttool.verb import ID, Call, HostVerb, argument, required
from polydev.hosttool.verb_lock import lock_host

ROOT = CONTROLLER_ROOT
PYTHON = "/usr/bin/python3"


def create(
    release: str,
    digest: str,
    commit: str,
    paths: Paths,
    root: Path = ROOT,
    python: str = PYTHON,
) -> dict[str, object]:
    """Install a release from what arrived for it. Raises HostError `release-failed`."""
    place, arrived = root / "releases" / require_id(release), root / "incoming" / release
    remove(place)
    # A venv contains its own path, so it is created in its final place.
    make_folder(place)
    make_venv(place, arrived, root, python)
    shutil.copyfile(arrived / "requirements.txt", place / "requirements.txt")
    write_file_list(place)
    known: dict[str, object] = {
        "id": release,
        "number": next_number(paths),
        "digest": digest,
        "commit": commit,
        "files": file_sha256(place / FILES),
        "createdAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    # Last, after all else is on the disk: a release without it is incomplete.
    run(["sync", "--file-system", str(place)])
    write_new(place / "release.json", json_bytes(known), 0o644)
    sync(place)
    remove(arrived)
    return known


def migrate(release: str, paths: Paths, user: str | None = None) -> dict[str, object]:
    """Migrate the database that the host's files name for a release.

    Raises HostError `migration-failed`.
    """
    program = ControllerProgram(paths, paths.controller / "releases" / require_id(release), user)
    try:
        found = program.ask("migrate", "--require-tools")
    except HostError as error:
        raise HostError(
            "migration-failed",
            f"release {release} cannot migrate the database "
            f"({database_in_words(paths)}): {error.message}",
            error.hint,
        ) from error
    remember(paths, release)
    return {"release": release, "migrated": True, "database": found["database"]}


def prune(keep: int, paths: Paths, root: Path = ROOT) -> dict[str, object]:
    """Remove releases that are neither current, nor in a backup, nor among the newest `keep`."""
    saved = (read_json(file) or {} for file in paths.backups.glob("*/backup.json"))
    named = {str(each.get("release")) for each in saved}
    names = sorted((path.name for path in (root / "releases").glob("*")), key=partial(_order, root))
    stay = {(root / "current").resolve().name, *named, *names[::-1][:keep]}
    gone = [name for name in names if name not in stay]
    for name in gone:
        remove(root / "releases" / name)
    return {"removed": gone, "wheels": _prune_wheels(root)}


def _order(root: Path, name: str) -> tuple[int, str]:
    return order(number_in(root / "releases" / name / "release.json"), name)


def _prune_wheels(root: Path) -> list[str]:
    """Remove the wheels that no release is made of."""
    pins = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)
    texts = (path.read_text() for path in root.glob("releases/*/requirements.txt"))
    needed = {(_plain(name), version) for text in texts for name, version in pins.findall(text)}
    gone = []
    for wheel in sorted((root / "wheels").glob("*.whl")):
        # name-version-….whl, with _ for - in the name (PEP 427)
        name, version, *_ = wheel.name.split("-")
        if (_plain(name), version) not in needed:
            wheel.unlink()
            gone.append(wheel.name)
    return gone


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# Verbs


def release_create(call: Call) -> object:
    arguments = call.arguments
    with lock_host(call.paths, f"release create {arguments.id}"):
        return create(
            arguments.id, arguments.digest, arguments.commit, call.paths, call.paths.controller
        )


def release_migrate(call: Call) -> object:
    arguments = call.arguments
    with lock_host(call.paths, f"release migrate {arguments.id}"):
        return migrate(arguments.id, call.paths, arguments.user)


def release_prune(call: Call) -> object:
    with lock_host(call.paths, "release prune"):
        return prune(call.arguments.keep, call.paths, call.paths.controller)


VERBS = (
    HostVerb(
        "release create",
        "Make a release of the controller from what arrived for it",
        release_create,
        (
            ID,
            required("--digest", help="hash of its sources"),
            required("--commit", help="the commit that it was made from"),
        ),
    ),
    HostVerb(
        "release migrate",
        "Migrate the database for a release",
        release_migrate,
        (ID, argument("--user", help="user who runs it (default: owner of the controller's home)")),
    ),
    HostVerb(
        "release prune",
        "Remove releases that nothing needs",
        release_prune,
        (required("--keep", type=int, help="how many of the newest to keep in any case"),),
    ),
)
