"""A real OpenID provider on this machine: npm's `oidc-provider`, run by provider.mjs beside this.

with provider(oidc_packages, tmp_path) as made:
    run([TOOL, "login"], env={"TESTTOOL_ISSUER": made.issuer})
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polydev.host_setup.atomic_folder import atomic_folder
from polydev.http_client import HttpSession
from polydev.npm import LOCK, clean_install, npm_argv
from polydev.processes import LineProcess
from polydev.progress import Steps

HERE = Path(__file__).parent
PROGRAM = HERE / "provider.mjs"
TOOL = HERE / "testtool.py"
# The tool's file of credentials, below its user's home.
CREDENTIALS = ".testtool/credentials.json"
ACCOUNTS = {"ada": "correct horse", "grace": "battery staple"}
# Until Node on a busy machine counts as hung.
START_SECONDS = 120.0


def oidc_packages(cache: Path, steps: Steps) -> Path:
    """The folder `node_modules` of what the lock beside this names, kept in the cache."""
    digest = hashlib.sha256((HERE / LOCK).read_bytes()).hexdigest()
    made = cache / "tests" / "oidc" / digest
    if not made.is_dir():
        with steps.step("OpenID provider of the tests") as step, atomic_folder(made) as scratch:
            clean_install(HERE, scratch, step.say)
    return made / "node_modules"


@dataclass(frozen=True)
class Provider:
    """A provider that runs, with the accounts `ACCOUNTS`."""

    issuer: str
    process: LineProcess

    def userinfo(self, access_token: str) -> dict[str, Any]:
        """Return the provider's answer about the user of this token."""
        headers = {"Authorization": f"Bearer {access_token}"}
        with HttpSession(self.issuer) as http:
            answer = http.get("/me", headers=headers)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def provider_argv(
    packages: Path, folder: Path, *, host: str = "127.0.0.1", port: int = 0
) -> list[str]:
    """The command line of a provider; its program lies in `folder`, beside its packages."""
    shutil.copy(PROGRAM, folder)
    (folder / "node_modules").symlink_to(packages)
    settings = json.dumps({"host": host, "port": port, "accounts": ACCOUNTS})
    return [npm_argv()[0], str(folder / PROGRAM.name), settings]


def issuer_of(process: LineProcess) -> str:
    """The first line of a provider that starts: its issuer."""
    line = process.first_line(START_SECONDS).decode().strip()
    assert line, process.last_words()
    return line


@contextmanager
def provider(packages: Path, folder: Path) -> Iterator[Provider]:
    """Run a provider on this machine's loopback for the block."""
    folder.mkdir(exist_ok=True)
    process = LineProcess(provider_argv(packages, folder))
    try:
        yield Provider(issuer_of(process), process)
    finally:
        process.end()
