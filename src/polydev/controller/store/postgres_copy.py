"""Copies of PostgreSQL, by its own pg_dump and pg_restore; put back in one transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from polydev.controller.database import APPLICATION_NAME, BUSY_TIMEOUT_MS
from polydev.controller.store import tables
from polydev.controller.store.copying import STOP_HINT, CopyError
from polydev.errors import CommandError, ConfigError
from polydev.run import run

VERSION_TABLE = "alembic_version"
# Connections of a controller to this database, this one aside.
OTHERS = sa.text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = :name AND pid <> pg_backend_pid()"
).bindparams(name=APPLICATION_NAME)
_REVISION = re.compile(rf"^COPY \S*\b{VERSION_TABLE} .*\n(\S+)$", re.MULTILINE)


def copy_to(url: str, file: Path) -> None:
    """Write an archive of our tables. Raises CopyError."""
    named = [f"--table={name}" for name in our_tables()]
    plain = ["--format=custom", "--no-owner", "--no-acl", "--no-password"]
    _do(["pg_dump", *plain, *named, f"--file={file}", f"--dbname={libpq_url(url)}"], url)


def script_of(file: Path, folder: Path) -> Path:
    """The SQL of an archive, all of it read. Raises CopyError if it is damaged."""
    script = folder / "restore.sql"
    _do(["pg_restore", "--no-owner", "--no-acl", f"--file={script}", str(file)])
    return script


def revision_in(script: Path) -> str | None:
    """The revision of what a script makes; None if it has none of our tables."""
    before = ""
    with script.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            found = _REVISION.search(before + line.rstrip("\n"))
            if found:
                return found[1]
            before = line
    return None


def put_back(url: str, script: Path) -> None:
    """Replace our tables by those of the script, in one transaction. Raises CopyError."""
    drop = script.with_name("drop.sql")
    drop.write_text(drop_statements())
    files = [f"--file={each}" for each in (drop, script)]
    checks = ["--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    words = ["psql", *checks, "--single-transaction", *files, f"--dbname={libpq_url(url)}"]
    _do(words, url)


def our_tables() -> list[str]:
    """Those that others refer to come last."""
    return [VERSION_TABLE, *(table.name for table in reversed(tables.metadata.sorted_tables))]


def drop_statements() -> str:
    dropped = [f"DROP TABLE IF EXISTS {name};" for name in our_tables()]
    return "\n".join((f"SET LOCAL lock_timeout = {BUSY_TIMEOUT_MS};", *dropped, ""))


def libpq_url(url: str) -> str:
    """The URL as PostgreSQL's own tools take it, without the password: others see arguments."""
    parts = make_url(url).difference_update_query(["password"])
    return parts._replace(drivername="postgresql", password=None).render_as_string()


def secrets_of(url: str) -> Mapping[str, str]:
    """The environment that says the password to PostgreSQL's own tools."""
    parts = make_url(url)
    password = parts.password or parts.query.get("password")
    return {"PGPASSWORD": str(password)} if password else {}


def _do(words: Sequence[str], url: str | None = None) -> None:
    try:
        run(words, env=secrets_of(url) if url else None)
    except ConfigError as error:
        raise CopyError(
            f"{words[0]} is not installed", "install it: apt-get install postgresql-client"
        ) from error
    except CommandError as error:
        raise _copy_error(words[0], error.stderr_tail) from error


def _copy_error(tool: str, said: str) -> CopyError:
    if "server version mismatch" in said or "unsupported version" in said:
        return CopyError(
            f"{tool} is older than the database or the copy: {said}",
            "install the postgresql-client of the server's version",
        )
    if "lock timeout" in said:
        return CopyError("another process uses the database", STOP_HINT)
    return CopyError(f"{tool} failed: {said}")
