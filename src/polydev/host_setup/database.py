"""Whether a deployment changes the controller's database, and how: moved with its rows, or empty.

secret and facts → DatabaseChange, or an error before anything changes
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pyinfra.context import host

from polydev.errors import ConfigError, DeployError
from polydev.host_layout import CONTROLLER_ROOT
from polydev.host_setup.facts import DatabaseCheck, FileState, JsonFile
from polydev.host_setup.host_files_and_units import TOOL
from polydev.host_setup.inventory_values import HostData
from polydev.host_setup.pyinfra_types import warn
from polydev.host_setup.secret_files import SECRETS, secret_text
from polydev.hosttool.database_url import POSTGRESQL, describe_url, kind_of
from polydev.hosttool.database_verbs import REPLACE_HINT
from polydev.hosttool.run_controller_command import DATABASE_URL

CURRENT_RELEASE = str(CONTROLLER_ROOT / "current/release.json")
SQLITE_WORDS = "SQLite"
NOTHING_COPIED = "nothing is copied: users, tokens and sessions stay where they are"
ALL_COPIED = "copied while the controller is stopped: users, tokens, sessions, all there is"
MOVE_VERB = "./inv database.move --to postgresql"


@dataclass(frozen=True)
class DatabaseChange:
    """The present and the future database, in words.

    `changed` lists what somebody changed in the schema of the one in use.
    """

    was: str
    to: str
    changed: tuple[str, ...] = ()
    is_move: bool = False
    replaces: bool = False

    @property
    def is_postgresql(self) -> bool:
        return self.to != SQLITE_WORDS

    @property
    def operation(self) -> str:
        if self.was == self.to:
            return "database"
        return f"database: {self.to} instead of {self.was}, {self._copied}"

    @property
    def _copied(self) -> str:
        return ALL_COPIED if self.is_move else NOTHING_COPIED

    def differences(self, release: str) -> list[str]:
        """Return the lines of a plan that migrates, changes or moves the database."""
        if self.was == self.to:
            return [f"  database: {self.to}, at the schema of release {release}", *self.changed]
        return [
            f"- database: {self.was}",
            f"+ database: {self.to}",
            f"  {self._copied}",
            *(["- rows that it has of ours, without a backup of them"] if self.replaces else []),
        ]

    def move_words(self, deployment_id: str) -> str:
        """Return the arguments of `database move` on the host; empty if nothing is moved."""
        if not self.is_move:
            return ""
        return f"--backup {deployment_id}" + (" --replace" if self.replaces else "")


def database_change(site: HostData, now: dict[str, Any]) -> DatabaseChange:
    """Compare the host's database with the inventory's. Raises ConfigError, DeployError.

    `now` is the host tool's report of the one in use. Changes to its schema do not matter if the
    host gets another one.
    """
    url = database_url(site)
    was = str(now.get("database", SQLITE_WORDS))
    usable = require_usable(url) if url else {}
    is_move = site.move_database != "no"
    if is_move:
        require_movable(site, url, was, usable)
    to = describe_url(url) if url else SQLITE_WORDS
    if was != to and not is_move:
        warn_of_another(was, to)
    changed = tuple(now.get("differences", [])) if was == to else ()
    return DatabaseChange(was, to, changed, is_move, site.move_database == "replace")


def database_url(site: HostData) -> str | None:
    """Return the URL of the database in its secret. Raises ConfigError, which does not quote it."""
    file = site.secrets.get(DATABASE_URL)
    if file is None:
        return None
    url = secret_text(DATABASE_URL, file).strip()
    if kind_of(url) != POSTGRESQL:
        raise ConfigError(
            f"inventory: secrets.{DATABASE_URL}: {file}: not the URL of a PostgreSQL database",
            "correct it, or remove the secret: then the host uses its own SQLite database",
        )
    return url


def require_usable(url: str) -> dict[str, Any]:
    """Let the host try a database that it does not use yet, before anything changes.

    Return its report; it is empty for the database in use, and on a host without a release, which
    cannot try one before its first migration. Raises DeployError.
    """
    text = f"{url}\n"
    now = host.get_fact(FileState, path=f"{SECRETS}/{DATABASE_URL}")
    if now.sha256 in (hashlib.sha256(each.encode()).hexdigest() for each in (url, text)):
        return {}
    question = json.dumps({"databaseUrl": url})
    found: dict[str, Any] = host.get_fact(DatabaseCheck, tool=TOOL, _stdin=question)
    if found.get("error") == "database-unusable":
        raise DeployError(
            f"{host.name}: cannot use the database of secrets.{DATABASE_URL}: "
            f"{found.get('message')}",
            found.get("hint"),
        )
    return found


def require_movable(site: HostData, url: str | None, was: str, found: dict[str, Any]) -> None:
    """Return if the host's database can be moved to the PostgreSQL of the secret.

    `found` is the host's report of that one. Raises ConfigError, DeployError.
    """
    if url is None:
        raise ConfigError(
            f"inventory: {host.name}: secrets.{DATABASE_URL} is missing: it names the PostgreSQL",
            "write its address, postgresql+psycopg://USER:PASSWORD@HOST/NAME, into a file that "
            "`secrets` names; docs/controller.md has more",
        )
    if not found.get("checked", was != SQLITE_WORDS):
        raise DeployError(
            f"{host.name}: no controller is deployed there: there is nothing to move",
            "./inv deploy begins with the database of the inventory",
        )
    if was != SQLITE_WORDS:
        raise DeployError(
            f"{host.name}: the controller uses {was} already",
            "to change to another PostgreSQL: ./inv database.backup FILE, change the secret, "
            "./inv deploy, ./inv database.restore FILE --stop",
        )
    occupied = found.get("occupied")
    if occupied and site.move_database != "replace":
        raise DeployError(
            f"{host.name}: {describe_url(url)} has rows in {', '.join(occupied)} already",
            REPLACE_HINT,
        )


def warn_of_another(was: str, to: str) -> None:
    """Warn the operator if a host that is in use gets another database."""
    if not host.get_fact(JsonFile, path=CURRENT_RELEASE):
        return
    along = f": {MOVE_VERB} takes them along" if was == SQLITE_WORDS else ""
    warn(
        f"the controller's database changes from {was} to {to}. Nothing is copied: users, tokens "
        f"and sessions stay behind{along}. VMs of those sessions are ended"
    )
