"""The URL of the controller's database, and its description without the password."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
# The parts that SQLAlchemy sees: a password may hold any character but @.
_PARTS = re.compile(
    r"(?P<scheme>[\w+]+)://"
    r"(?:(?P<user>[^:/]*)(?::(?P<password>[^@]*))?@)?"
    r"(?:\[(?P<address>[^/?\]]+)\]|(?P<host>[^/:?]*))?"
    r"(?::(?P<port>[^/?]*))?"
    r"(?:/(?P<name>[^?]*))?"
    r"(?:\?(?P<query>.*))?"
)
SCHEMES = {
    "sqlite+aiosqlite": SQLITE,
    "postgresql+psycopg": POSTGRESQL,
    "postgresql": POSTGRESQL,
    "postgres": POSTGRESQL,
}
PASSWORDS = ("password", "sslpassword")


def kind_of(url: str) -> str | None:
    """Return `sqlite` or `postgresql`; None for neither."""
    return SCHEMES.get(url.partition("://")[0])


def describe_url(url: str) -> str:
    """Describe the database: `PostgreSQL, NAME at HOST:PORT as USER`."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return "a database whose URL cannot be read"
    name = unquote(parts["name"] or "")
    if kind_of(url) == SQLITE:
        return f"SQLite in {name}"
    query = dict(parse_qsl(parts["query"] or ""))
    host = parts["address"] or parts["host"] or query.get("host") or "this machine"
    port = parts["port"] or query.get("port")
    user = unquote(parts["user"] or query.get("user", ""))
    where = f"{host}:{port}" if port else host
    return f"PostgreSQL, {name or 'its default database'} at {where}" + (
        f" as {user}" if user else ""
    )


def passwords_of(url: str) -> list[str]:
    """Return every form of a password in a URL, the longest first."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return [url]
    found = {parts["password"] or "", unquote(parts["password"] or "")}
    found |= {value for key, value in parse_qsl(parts["query"] or "") if key in PASSWORDS}
    return sorted(filter(None, found), key=len, reverse=True)
