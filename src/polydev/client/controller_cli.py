"""Run the controller's command line on a host, through the host tool, over SSH."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from polydev.errors import CommandError, CommandTimeout, ConfigError, DeployError
from polydev.hosttool.paths import Paths
from polydev.processes import PIPE, end_group, run, run_lines, spawn
from polydev.ssh import SSH_FAILED, SshTarget

WRONG_WORDS = 2  # argparse's
ANSWER_SECONDS = 120.0
TOOL = str(Paths().tool)
# The name of the file on the host, as errors have it.
COPY_THERE = re.compile(r"\S+/exchange/dump")


@dataclass(frozen=True)
class HostController:
    """The command line of a host's controller. Raises DeployError with its message and hint."""

    target: SshTarget

    def ask(self, *words: str, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        """Run a verb of `master-controller`; return its JSON answer."""
        argv = self.target.argv(TOOL, "controller", *words)
        try:
            done = run(argv, check=False, timeout_seconds=timeout_seconds)
        except CommandTimeout as error:
            raise DeployError(f"{self.target.name} did not answer: {error.message}") from error
        if done.status != 0:
            raise refusal(self.target, done.status, done.stderr, done.stdout)
        return json.loads(done.stdout)

    def back_up(self, file: Path) -> dict[str, Any]:
        """Copy the database into a new file here, readable by its owner only.

        Raises ConfigError if the file exists.
        """
        if file.exists():
            raise ConfigError(f"{file} already exists", "choose another name")
        with Path(os.devnull).open("rb") as nothing, _new_file(file) as copy:
            return self._exchange("backup", stdin=nothing, copy=copy)

    def restore(self, file: Path, *, stop: bool) -> dict[str, Any]:
        """Replace the database by a copy; `stop` stops the service meanwhile."""
        try:
            copy = file.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror}") from error
        try:
            with copy:
                return self._exchange("restore", *(["--stop"] if stop else []), stdin=copy)
        except DeployError as error:
            error.message = COPY_THERE.sub(str(file), error.message)
            if not stop and "stop" in (error.hint or ""):
                error.hint = f"./inv database.restore {shlex.quote(str(file))} --stop"
            raise

    def _exchange(
        self, *words: str, stdin: IO[bytes], copy: IO[bytes] | None = None
    ) -> dict[str, Any]:
        """Run a database verb; return its answer, one line. The rest is written to `copy`."""
        with tempfile.TemporaryFile() as said:
            argv = self.target.argv(TOOL, "database", *words)
            process = spawn(argv, stdin=stdin, stdout=PIPE, stderr=said)
            assert process.stdout is not None
            try:
                answer = process.stdout.readline()
                if copy is not None:
                    shutil.copyfileobj(process.stdout, copy)
                status = process.wait()
            finally:
                end_group(process)
                process.stdout.close()
            if status != 0:
                said.seek(0)
                stderr = said.read().decode(errors="replace")
                raise refusal(self.target, status, stderr, answer.decode(errors="replace"))
        return dict(json.loads(answer))


@contextmanager
def _new_file(file: Path) -> Iterator[IO[bytes]]:
    """Yield a file that is renamed to `file` when it is complete."""
    unfinished = file.with_name(f"{file.name}.part")
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        with unfinished.open("wb") as opened:
            yield opened
        unfinished.replace(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def follow(target: SshTarget, words: tuple[str, ...], on_line: Callable[[str], None]) -> None:
    """Run a program on a host, and pass on each line as it comes.

    Raises DeployError if the host cannot be reached, CommandError if the program fails.
    """
    try:
        run_lines(target.argv(*words), on_line)
    except CommandError as error:
        if error.status != SSH_FAILED:
            raise
        raise DeployError(
            f"cannot reach {target.name} over SSH: {error.stderr_tail}",
            f"try: {target.by_hand()}",
        ) from error


def refusal(target: SshTarget, status: int, stderr: str, stdout: str = "") -> DeployError:
    """Return the error of a command on the host, in its own words."""
    if status == SSH_FAILED:
        return DeployError(
            f"cannot reach {target.name} over SSH: {stderr.strip()}",
            f"try: {target.by_hand()}, or ./inv doctor",
        )
    if status == WRONG_WORDS:
        said = stderr.strip().rpartition("error: ")[2]
        return DeployError(f"{target.name}: {said}", "./inv VERB --help lists its options")
    if failure := _tool_failure(stdout):
        if failure["error"] == "usage":
            hint = "./inv deploy installs the host tool of this checkout"
            return DeployError(f"{target.name}: its host tool is older than this checkout", hint)
        return DeployError(f"{target.name}: {failure['message']}", failure.get("hint"))
    if f"{TOOL}: command not found" in stderr:
        return DeployError(f"{target.name}: no controller is deployed there", "./inv deploy")
    _, found, told = f"\n{stderr}".rpartition("\nerror: ")
    if not found:
        last = stderr.strip().splitlines()[-1:] or ["no output"]
        return DeployError(f"{target.name}: master-controller failed: {last[0]}")
    message, _, hint = told.partition("\nnext:  ")
    return DeployError(f"{target.name}: {message.strip()}", hint.strip() or None)


def _tool_failure(stdout: str) -> dict[str, Any] | None:
    """Return the host tool's own error, which is JSON; programs that it runs use stderr."""
    try:
        said = json.loads(stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    is_failure = isinstance(said, dict) and {"error", "message"} <= said.keys()
    return said if is_failure else None
