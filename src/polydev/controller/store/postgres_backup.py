"""Backup and restore of PostgreSQL with pg_dump and pg_restore; a restore is one transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from polydev.controller.database import (
    APPLICATION_NAME,
    BUSY_TIMEOUT_MS,
    CONNECT_TIMEOUT_SECONDS,
)
from polydev.controller.store.backup_error import STOP_HINT, BackupError
from polydev.controller.store.postgres_access import CLOSE, DROP, VERSION_TABLE, known_tables
from polydev.errors import CommandError, ConfigError
from polydev.processes import run

SECRETS = ("password", "sslpassword")
# Errors that pass: a running controller may hold a lock for a moment, in another order.
PASSING = ("lock timeout", "deadlock detected")
TRIES = 5
# Only servers from 17 on know it, but pg_restore writes it for older ones too.
_TOO_NEW = "SET transaction_timeout = "
CLIENT_HINT = (
    "install postgresql-client in the server's version or newer; if Debian's is older, use "
    "https://apt.postgresql.org"
)
PROGRAMS = Path("/usr/lib/postgresql")
# Connections of a controller to this database, except this one.
OTHERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = :name AND pid <> pg_backend_pid()"
).bindparams(name=APPLICATION_NAME)
_REVISION = re.compile(rf"^COPY \S*\b{VERSION_TABLE} .*\n(\S+)$", re.MULTILINE)


def copy_to(url: str, file: Path) -> None:
    """Write an archive of our tables. Raises BackupError."""
    named = [f"--table={name}" for name in known_tables()]
    plain = ["--format=custom", "--no-owner", "--no-acl", "--no-password"]
    _do(["pg_dump", *plain, *named, f"--file={file}", f"--dbname={libpq_url(url)}"], url)


def script_of(file: Path, folder: Path) -> Path:
    """Return the SQL of an archive, read completely. Raises BackupError if it is damaged."""
    script, written = folder / "restore.sql", folder / "written.sql"
    _do(["pg_restore", "--no-owner", "--no-acl", f"--file={written}", str(file)])
    with written.open("rb") as lines, script.open("wb") as kept:
        kept.writelines(line for line in lines if not line.startswith(_TOO_NEW.encode()))
    written.unlink()
    return script


def revision_in(script: Path) -> str | None:
    """Return the revision of a script's tables; None if it has none of ours."""
    before = ""
    with script.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _REVISION.search(before + line.rstrip("\n"))
            if found:
                return found[1]
            before = line
    return None


def put_back(url: str, script: Path) -> None:
    """Replace our tables by those of the script, in one transaction. Raises BackupError.

    Tables of a newer release are dropped too. If other transactions hold locks, it tries again a
    few times.
    """
    drop, close = script.with_name("drop.sql"), script.with_name("close.sql")
    drop.write_text(drop_statements())
    close.write_text(close_statements())
    files = [f"--file={each}" for each in (drop, script, close)]
    checks = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    words = ["psql", *checks, "--single-transaction", *files, f"--dbname={libpq_url(url)}"]
    for tries_left in reversed(range(TRIES)):
        try:
            _do(words, url)
            break
        except BackupError as error:
            if not tries_left or not any(word in error.message for word in PASSING):
                raise


def drop_statements() -> str:
    return f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS};\n{DROP}\n"


def close_statements() -> str:
    # The script changes settings of the session, which a pooler would hand to the next client.
    return f"RESET ALL;\n{CLOSE}\n"


def libpq_url(url: str) -> str:
    """Return the URL for PostgreSQL's tools, without password: other users can see arguments."""
    parts = make_url(url).difference_update_query(SECRETS)
    plain = parts._replace(drivername="postgresql", password=None).render_as_string()
    address, mark, query = plain.partition("?")
    # A blank is + in SQLAlchemy's URLs, and %20 in those of libpq.
    return address + mark + query.replace("+", "%20")


def secrets_of(url: str) -> Mapping[str, str]:
    """Return the environment that passes the password to PostgreSQL's tools."""
    parts = make_url(url)
    password = parts.password or parts.query.get("password")
    return {"PGPASSWORD": str(password)} if password else {}


def program(name: str) -> str:
    """Return the newest version of a program from Debian's packages, else the one on the path."""
    found = sorted(PROGRAMS.glob(f"*/bin/{name}"), key=lambda path: _number(path.parts[-3]))
    return str(found[-1]) if found else name


def tool_version(name: str) -> int:
    """Return the major version of a tool of PostgreSQL. Raises BackupError if it is missing."""
    try:
        said = run([program(name), "--version"]).stdout
    except ConfigError as error:
        raise BackupError(f"{name} is not installed", CLIENT_HINT) from error
    found = re.search(r"\b(\d+)", said)
    return int(found[1]) if found else 0


def _number(version: str) -> float:
    try:
        return float(version)
    except ValueError:
        return 0.0


def _do(words: Sequence[str], url: str | None = None) -> None:
    tool, *rest = words
    # `run` sets an English locale: `_copy_error` reads the messages.
    env = {"PGCONNECT_TIMEOUT": str(CONNECT_TIMEOUT_SECONDS)}
    try:
        run([program(tool), *rest], env={**env, **(secrets_of(url) if url else {})})
    except ConfigError as error:
        raise BackupError(f"{tool} is not installed", CLIENT_HINT) from error
    except CommandError as error:
        raise _copy_error(tool, error.stderr_tail) from error


def _copy_error(tool: str, said: str) -> BackupError:
    if "server version mismatch" in said or "unsupported version" in said:
        return BackupError(f"{tool} is older than the database or the backup: {said}", CLIENT_HINT)
    if "lock timeout" in said:
        return BackupError(f"another process is using the database: {said}", STOP_HINT)
    return BackupError(f"{tool} failed: {said}")
