"""Commands and the host tool, run on a host over SSH."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from polydev import hosttool
from polydev.errors import CommandTimeout, DeployError, Error, LockHeld
from polydev.host_layout import HOST_HOME, HOST_TOOL
from polydev.hosttool.paths import Paths
from polydev.hosttool.restore_job import RUNNING as RESTORE_RUNNING
from polydev.hosttool.restore_job import RestoreJob
from polydev.hosttool.upload import file_upload
from polydev.hosttool.zipapp import zipapp_bytes
from polydev.processes import run
from polydev.ssh import SSH_FAILED, SshTarget, ssh_option

log = logging.getLogger(__name__)

TOOL = str(Paths().tool)
ANSWER_SECONDS = 60.0
CLOSE_SECONDS = 10.0
UNIT_RUNNING = ("active", "activating", "deactivating", "reloading")


class Unreachable(DeployError):
    """The connection failed, not the command."""


class TookTooLong(DeployError):
    """A command did not end in time, over a working connection: it may still run."""


class HostRefused(DeployError):
    """The host tool refused, with its reason."""


class HostConnection:
    """Runs commands on a host. They share one SSH connection, which `close` ends."""

    def __init__(self, target: SshTarget) -> None:
        self.target = target
        self._sockets = tempfile.TemporaryDirectory(prefix="polydev-ssh-")

    def close(self) -> None:
        with suppress(CommandTimeout):  # it ends by itself, 30 s after the last command
            run(self._argv("-O", "exit"), check=False, timeout_seconds=CLOSE_SECONDS)
        self._sockets.cleanup()

    def _argv(self, *words: str) -> list[str]:
        shared = ["-o", "ControlMaster=auto", "-o", "ControlPersist=30"]
        shared += ["-o", ssh_option("ControlPath", self._sockets.name, "/%C")]
        return self.target.ssh_argv(*shared, *words)

    def command(
        self, text: str, *, input: str | None = None, timeout_seconds: float = ANSWER_SECONDS
    ) -> str:
        """Run a line of shell as root; return its output.

        SSH itself notices a lost connection. Raises Unreachable, TookTooLong, DeployError.
        """
        argv = [*self._argv(), "--", f"sudo -n sh -c {shlex.quote(text)}"]
        try:
            done = run(argv, input=input, check=False, timeout_seconds=timeout_seconds)
        except CommandTimeout as error:
            raise TookTooLong(
                f"{self.target.name}: `{text.splitlines()[0]}` did not end within "
                f"{timeout_seconds:g} s",
                "see what the host does: ./inv host.shell, then systemctl and journalctl",
            ) from error
        if done.status == SSH_FAILED:
            raise Unreachable(
                f"cannot reach {self.target.name} over SSH: {done.stderr.strip()}",
                f"try: {self.target.by_hand()}",
            )
        if done.status != 0:
            raise tool_error(self.target.name, text, done.stdout, done.stderr)
        return done.stdout

    def tool(
        self,
        *words: str,
        document: object = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        """Run a verb of the host tool; return its answer.

        Raises Unreachable, TookTooLong, DeployError.
        """
        text = " ".join(shlex.quote(word) for word in (TOOL, *words))
        input = None if document is None else json.dumps(document)
        found = json.loads(self.command(text, input=input, timeout_seconds=timeout_seconds))
        return found if isinstance(found, dict) else {"items": found}

    def restore_state(self, job: RestoreJob) -> dict[str, Any] | None:
        """Return the state of a restore; None if it was not started, or was interrupted.

        The host tool is not asked, since a restore may replace it.
        """
        file = shlex.quote(str(job.file(Paths())))
        found = self.command(
            f"systemctl is-active {shlex.quote(job.unit)} || true; cat {file} 2>/dev/null || true"
        )
        active, _, text = found.partition("\n")
        state: dict[str, Any] | None = json.loads(text) if text.strip() else None
        if state and state["state"] == RESTORE_RUNNING and active not in UNIT_RUNNING:
            return None
        return state

    def install_tool(self) -> None:
        """Install the host tool of this checkout, unless the host has it."""
        wanted = zipapp_bytes(Path(hosttool.__file__).parent)
        digest = hashlib.sha256(wanted).hexdigest()
        there = self.command(f"sha256sum {TOOL} 2>/dev/null || true")
        if there.startswith(digest):
            return
        self.command("command -v python3 >/dev/null || { echo no python3 >&2; exit 1; }")
        placed = file_upload(TOOL, wanted, mode="755")
        folders = f"install -d -m 755 {HOST_HOME} {HOST_TOOL.parent}"
        self.command(f"{folders} || exit\n{placed.command}", input=placed.input)

    def wait_until_back(self, seconds: float) -> None:
        """Wait until the host answers again. Raises Unreachable if it does not in time."""
        deadline = time.monotonic() + seconds
        while (error := self._unreachable()) is not None:
            if time.monotonic() > deadline:
                raise error
            time.sleep(1)

    def _unreachable(self) -> DeployError | None:
        try:
            self.command("true", timeout_seconds=15)
        except (Unreachable, TookTooLong) as error:
            return error
        return None


def tool_error(host: str, text: str, stdout: str, stderr: str) -> Error:
    try:
        said = json.loads(stdout.strip().splitlines()[-1]) if stdout.strip() else {}
    except ValueError:
        said = {}
    if not isinstance(said, dict) or "message" not in said:
        words = stderr.strip() or stdout.strip() or "no output"
        return DeployError(f"{host}: {text.split()[0]} failed: {words}")
    error = LockHeld if said.get("error") == "lock-held" else HostRefused
    return error(f"{host}: {said['message']}", said.get("hint"))
