"""The address of the controller's database, and which one it is in words without its password."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

SQLITE = "sqlite"
POSTGRESQL = "postgresql"
# Parted as SQLAlchemy does: a password may hold any character but @.
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
    """`sqlite` or `postgresql`; None for neither."""
    return SCHEMES.get(url.partition("://")[0])


def describe_url(url: str) -> str:
    """The database for a person: `PostgreSQL, NAME at HOST:PORT as USER`."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return "a database whose address cannot be read"
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
    """Every form of a password in an address, the longest first."""
    parts = _PARTS.fullmatch(url)
    if parts is None:
        return [url]
    found = {parts["password"] or "", unquote(parts["password"] or "")}
    found |= {value for key, value in parse_qsl(parts["query"] or "") if key in PASSWORDS}
    return sorted(filter(None, found), key=len, reverse=True)
