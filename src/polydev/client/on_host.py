"""The controller's command line on a host, over SSH: as its own user, with its configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polydev.errors import CommandTimeout, ConfigError, DeployError
from polydev.run import PIPE, Process, end_group, run, spawn
from polydev.ssh import SshTarget

SSH_FAILED = 255
WRONG_WORDS = 2  # argparse's
ANSWER_SECONDS = 120.0
# The database's address may be a secret, which only root can read.
AS_CONTROLLER = """
program=/opt/master-controller/current/venv/bin/master-controller
config=/etc/master-controller/config.yaml
secret=/etc/master-controller/secrets/database-url
as_controller() { runuser -u polydev-controller -- "$@"; }
master_controller() { as_controller "$program" "$@" --config "$config"; }
if [ ! -x "$program" ]; then
    printf 'error: no controller is deployed there\\nnext:  ./inv deploy\\n' >&2
    exit 1
fi
if [ -r "$secret" ]; then
    POLYDEV_CONTROLLER_DATABASE_URL=$(cat "$secret")
    export POLYDEV_CONTROLLER_DATABASE_URL
fi
cd / && umask 077
"""
# A folder that only the controller's user can read, gone again whatever happens.
WITH_FOLDER = """
set -eu
folder=$(as_controller mktemp -d -p /var/tmp polydev-database.XXXXXX)
trap 'rm -rf "$folder"' EXIT
trap 'exit 1' HUP INT TERM PIPE
"""
BACK_UP = """
answer=$(master_controller database backup "$folder/copy")
printf '%s\\n' "$answer"
cat "$folder/copy"
"""
RESTORE = """
as_controller sh -c 'cat >"$1"' sh "$folder/copy"
if [ "$1" = stop ]; then
    units='master-controller.socket master-controller.service'
    trap 'rm -rf "$folder"; systemctl start $units' EXIT
    systemctl stop $units
fi
master_controller database restore "$folder/copy"
"""

# What an error there calls the file that was brought.
COPY_THERE = re.compile(r"\S+/polydev-database\.\w+/copy")


@dataclass(frozen=True)
class HostController:
    """A host's own command line. Raises DeployError with what it said and its hint."""

    target: SshTarget

    def ask(self, *words: str) -> Any:
        """Run one verb of `master-controller`; its JSON answer."""
        script = f'{AS_CONTROLLER}\nmaster_controller "$@"'
        try:
            done = run(self._argv(script, *words), check=False, timeout_seconds=ANSWER_SECONDS)
        except CommandTimeout as error:
            raise DeployError(f"{self.target.name} did not answer: {error.message}") from error
        if done.status != 0:
            raise refusal(self.target, done.status, done.stderr)
        return json.loads(done.stdout)

    def back_up(self, file: Path) -> dict[str, Any]:
        """Copy the database into a new file here, readable by its owner only.

        Raises ConfigError where there is one already.
        """
        if file.exists():
            raise ConfigError(f"{file} is there already", "choose another name")
        script = AS_CONTROLLER + WITH_FOLDER + BACK_UP
        with (
            Path(os.devnull).open("rb") as nothing,
            _new_file(file) as copy,
            self._running(script, stdin=nothing) as process,
        ):
            assert process.stdout is not None
            answer = process.stdout.readline()
            shutil.copyfileobj(process.stdout, copy)
        return dict(json.loads(answer))

    def restore(self, file: Path, *, stop: bool) -> dict[str, Any]:
        """Replace the database by a copy. With `stop` the service is stopped meanwhile."""
        script = AS_CONTROLLER + WITH_FOLDER + RESTORE
        try:
            copy = file.open("rb")
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        how = "stop" if stop else "as-it-is"
        try:
            with copy, self._running(script, how, stdin=copy) as process:
                assert process.stdout is not None
                answer = process.stdout.read()
        except DeployError as error:
            error.message = COPY_THERE.sub(str(file), error.message)
            if not stop and "stop" in (error.hint or ""):
                error.hint = f"./inv database.restore {file} --stop"
            raise
        return dict(json.loads(answer))

    def _argv(self, script: str, *words: str) -> list[str]:
        return self.target.argv("sh", "-c", script, "sh", *words)

    @contextmanager
    def _running(self, script: str, *words: str, stdin: IO[bytes]) -> Iterator[Process]:
        """The script on the host, until it ends; what it streams is read meanwhile."""
        with tempfile.TemporaryFile() as said:
            argv = self._argv(script, *words)
            process = spawn(argv, stdin=stdin, stdout=PIPE, stderr=said)
            try:
                yield process
                status = process.wait()
            finally:
                end_group(process)
                assert process.stdout is not None
                process.stdout.close()
            if status != 0:
                said.seek(0)
                raise refusal(self.target, status, said.read().decode(errors="replace"))


@contextmanager
def _new_file(file: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name once all of it is there."""
    unfinished = file.with_name(f"{file.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        with unfinished.open("wb") as opened:
            yield opened
        unfinished.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def refusal(target: SshTarget, status: int, stderr: str) -> DeployError:
    """What a command on the host ended with, in its own words."""
    if status == SSH_FAILED:
        return DeployError(
            f"cannot reach {target.name} over SSH: {stderr.strip()}",
            f"try: ssh {target.destination}, or ./inv doctor",
        )
    if status == WRONG_WORDS:
        said = stderr.strip().rpartition("error: ")[2]
        return DeployError(f"{target.name}: {said}", "./inv --help VERB shows what it takes")
    _, found, told = f"\n{stderr}".rpartition("\nerror: ")
    if not found:
        last = stderr.strip().splitlines()[-1:] or ["without a word"]
        return DeployError(f"{target.name}: master-controller failed: {last[0]}")
    message, _, hint = told.partition("\nnext:  ")
    return DeployError(f"{target.name}: {message.strip()}", hint.strip() or None)
