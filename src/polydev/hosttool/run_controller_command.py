"""The command line of a release of the controller, run as the controller's user with its secrets.

The service gets its secrets from systemd, as credentials. A verb gets the secrets that it needs in
its environment, since other users can see the arguments of a process, but not its environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polydev.hosttool.database_url import POSTGRESQL, describe_url, kind_of, passwords_of
from polydev.hosttool.errors import HostError
from polydev.hosttool.file_metadata import entry_of, gid_of, uid_of
from polydev.hosttool.paths import Paths
from polydev.hosttool.release_files import PROGRAM

VARIABLE_PREFIX = "POLYDEV_CONTROLLER_"
DATABASE_URL = "database-url"
# The secrets that its verbs use; a wrong secret that they do not use must not stop them.
NEEDED = (DATABASE_URL, "credentials-key")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o077
SAID_CHARACTERS = 2000


@dataclass(frozen=True)
class ControllerProgram:
    """`master-controller` of one release, which is given by its folder.

    It runs as the owner of the controller's home, unless `as_user` names another user.
    """

    paths: Paths
    release: Path
    as_user: str | None = None

    @property
    def file(self) -> Path:
        return self.release / PROGRAM

    @property
    def user(self) -> str:
        return self.as_user or entry_of(self.paths.controller_home).owner

    def argv(self, *words: str) -> list[str]:
        user = self.user
        # Its memory has secrets, which must reach no core dump.
        become = ["prlimit", "--core=0:0", "setpriv", f"--reuid={user}", f"--regid={user}"]
        become += ["--clear-groups", "--no-new-privs", "--pdeathsig=TERM"]
        config = self.paths.controller_config / "config.yaml"
        return [*become, str(self.file), *words, "--config", str(config)]

    def environment(self, database_url: str | None = None) -> dict[str, str]:
        """Return its environment with the secrets; `database_url` replaces the one on the host."""
        known = secrets_of(self.paths)
        secrets = {variable_of(name): known[name] for name in NEEDED if name in known}
        if database_url is not None:
            secrets[variable_of(DATABASE_URL)] = database_url
        user, home = self.user, str(self.paths.controller_home)
        plain = {"PATH": SEARCH_PATH, "HOME": home, "USER": user, "LOGNAME": user}
        return {**plain, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **secrets}

    def ask(
        self, *words: str, code: str = "controller-failed", database_url: str | None = None
    ) -> dict[str, object]:
        """Run one verb and return its JSON answer. Raises HostError, without secrets."""
        import subprocess

        environment = self.environment(database_url)
        done = subprocess.run(
            self.argv(*words),
            env=environment,
            cwd="/",
            umask=UMASK,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        message, hint = error_in(done.stderr)
        message = message or f"{self.file.name} exited with status {done.returncode}"
        raise HostError(code, without_secrets(message, environment), hint or None)

    def own(self, path: Path) -> None:
        """Make the program's user the owner of a file or folder."""
        user = entry_of(self.paths.controller_home)
        os.chown(path, uid_of(user.owner), gid_of(user.group))

    def run_through(self, words: Sequence[str]) -> int:
        """Run one verb with this process's input and output; return its exit status."""
        import subprocess

        argv = self.argv(*words)
        done = subprocess.run(argv, env=self.environment(), cwd="/", umask=UMASK, check=False)
        return done.returncode


def error_in(stderr: str) -> tuple[str, str]:
    """Return message and hint of an error of `master-controller`; else its last line."""
    _, found, told = f"\n{stderr}".rpartition("\nerror: ")
    if found:
        message, _, hint = told.partition("\nnext:  ")
        return message.strip()[-SAID_CHARACTERS:], hint.strip()
    lines = stderr.strip().splitlines()
    return (lines[-1][-SAID_CHARACTERS:], "") if lines else ("", "")


def secrets_of(paths: Paths) -> dict[str, str]:
    """Return the secrets of the host by name, as the controller reads them."""
    folder = paths.controller_config / "secrets"
    if not folder.is_dir():
        return {}
    # The names of files that are not finished begin with a dot.
    files = [path for path in sorted(folder.iterdir()) if path.name[0] != "." and path.is_file()]
    return {path.name: path.read_text("utf-8", "surrogateescape").strip() for path in files}


def variable_of(secret: str) -> str:
    return VARIABLE_PREFIX + secret.upper().replace("-", "_")


def without_secrets(text: str, environment: Mapping[str, str]) -> str:
    url = environment.get(variable_of(DATABASE_URL), "")
    for secret in [url, *passwords_of(url)] if url else []:
        text = text.replace(secret, "***")
    return text


def uses_postgresql(paths: Paths) -> bool:
    return kind_of(secrets_of(paths).get(DATABASE_URL, "")) == POSTGRESQL


def database_in_words(paths: Paths) -> str:
    """Describe the database that the host's files name."""
    url = secrets_of(paths).get(DATABASE_URL)
    return describe_url(url) if url else "SQLite"


def current_program(paths: Paths) -> ControllerProgram:
    return ControllerProgram(paths, Path(os.path.realpath(paths.controller / "current")))
