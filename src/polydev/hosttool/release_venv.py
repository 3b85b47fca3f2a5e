"""The venv of a release, installed by pip from wheels on the host only.

Most releases differ in our own package only. The other packages are then copied from a release that
has the same ones for the same Python, and whose files are intact.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from polydev.hosttool.errors import HostError
from polydev.hosttool.release_files import release_damage, sum_at_install

REQUIREMENTS = "requirements.txt"
OURS = "polydev-controller=="
OUR_FILES = ("polydev", "polydev_controller-*.dist-info")
VERSION = re.compile(r"^version = (\S+)$", re.MULTILINE)


def make_venv(place: Path, arrived: Path, root: Path, python: str) -> None:
    """Make the venv of the release in `place` from the requirements in `arrived`.

    Raises HostError `release-failed`.
    """
    venv, requirements = place / "venv", arrived / REQUIREMENTS
    run([python, "-m", "venv", "--without-pip", str(venv)])
    inside = [str(venv / "bin/python"), "-I", "-m"]
    source = _release_with_same_packages(requirements, venv, root)
    if source is None:
        run([*inside, "ensurepip", "--default-pip"])
    else:
        _copy_packages(source / "venv", venv)
        requirements = arrived / "our-requirements.txt"
        requirements.write_text("".join(_lines(arrived / REQUIREMENTS, ours=True)))
    pip = [*inside, "pip", "--isolated", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-index", "--no-deps", "--require-hashes", "--find-links", str(root / "wheels")]
    run([*pip, "-r", str(requirements)])


def _release_with_same_packages(requirements: Path, venv: Path, root: Path) -> Path | None:
    wanted = _lines(requirements, ours=False), _python_version(venv)
    for place in sorted((root / "releases").iterdir(), reverse=True):
        # An incomplete or damaged release lacks files or has others.
        with suppress(OSError, ValueError):
            has = _lines(place / REQUIREMENTS, ours=False), _python_version(place / "venv")
            if has == wanted and release_damage(place, sum_at_install(place), others=True) == []:
                return place
    return None


def _lines(requirements: Path, *, ours: bool) -> list[str]:
    lines = requirements.read_text().splitlines(keepends=True)
    return sorted(line for line in lines if line.startswith(OURS) == ours)


def _python_version(venv: Path) -> str | None:
    found = VERSION.search((venv / "pyvenv.cfg").read_text())
    return found and found[1]


def _copy_packages(source: Path, target: Path) -> None:
    (packages,) = source.glob("lib/python3*/site-packages")

    def ours(folder: str, names: list[str]) -> set[str]:
        if Path(folder) != packages:
            return set()
        return {name for name in names if any(fnmatchcase(name, each) for each in OUR_FILES)}

    place = target / packages.relative_to(source)
    try:
        shutil.copytree(packages, place, symlinks=True, dirs_exist_ok=True, ignore=ours)
    except OSError as error:  # shutil.Error, which lists many, is one too
        raise HostError(
            "release-failed",
            f"cannot copy packages from release {source.parent.name}: {error}"[:2000],
        ) from error


def run(argv: list[str]) -> None:
    """Run a program that must succeed. Raises HostError `release-failed` with its last output."""
    import subprocess

    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", umask=0o022)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise HostError("release-failed", f"{argv[0]} exited with status {done.returncode}: {said}")
