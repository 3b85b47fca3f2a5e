"""Database URLs: shown without their passwords, and errors in them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from polydev.controller import database
from polydev.hosttool.database_url import describe_url, kind_of, passwords_of

SECRET = "s3:c/r?e#t"
URLS = (
    f"postgresql+psycopg://me:{SECRET}@db.example:6543/data?sslmode=require",
    f"postgresql://me:{SECRET}@[2001:db8::1]:6543/data",
    "postgres://me@/data?host=/run/postgresql&password=s3cret",
    "sqlite+aiosqlite:////var/lib/x.sqlite3",
)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (URLS[0], "PostgreSQL, data at db.example:6543 as me"),
        (URLS[1], "PostgreSQL, data at 2001:db8::1:6543 as me"),
        (URLS[2], "PostgreSQL, data at /run/postgresql as me"),
        (URLS[3], "SQLite in /var/lib/x.sqlite3"),
        ("postgresql://db/", "PostgreSQL, its default database at db"),
        ("postgresql://me%40x:p@db/a%20b", "PostgreSQL, a b at db as me@x"),
    ],
)
def test_describe_url_names_database_host_and_user(url: str, words: str) -> None:
    assert describe_url(url) == words
    assert database.described(database.checked_url(url)) == words, "the controller says the same"


@pytest.mark.parametrize("url", URLS)
def test_parts_match_those_of_the_driver(url: str) -> None:
    parts = sa.make_url(database.checked_url(url))
    assert parts.drivername in ("postgresql+psycopg", "sqlite+aiosqlite")
    assert parts.get_backend_name() == kind_of(url)
    assert str(parts.password or parts.query.get("password") or "") in ["", *passwords_of(url)]


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with"),
        ("mysql://db/data", "must begin with"),
        ("db.example/data", "must begin with"),
        ("postgresql://me:se@cret@db/data", "has an @ in its password"),
        ("postgresql://me:secret@db:abc/data", "has an invalid host or port"),
        ("postgresql://me:se cret@db/data", "a blank"),
        ("postgresql://me:secret@db/data\npostgresql://other", "a line break"),
    ],
)
def test_errors_do_not_quote_the_password(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        database.checked_url(url)
    assert "cret" not in str(refused.value)


def test_passwords_of_returns_encoded_and_decoded_forms() -> None:
    url = "postgresql://me:a%40b@db/x?sslpassword=key"
    assert set(passwords_of(url)) == {"a%40b", "a@b", "key"}
