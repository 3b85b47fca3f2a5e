"""What an operator does on the host itself: users, tokens, credentials, copies of the database.

Each verb is a line of `GROUPS`: its words, its options, and a coroutine that answers what is
printed as JSON. They work on the database, whether the service runs or not.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from polydev.controller.model import Role, Token, User, now
from polydev.errors import Error

if TYPE_CHECKING:
    from polydev.controller.settings import Settings
    from polydev.controller.store.transactions import Database

Run = Callable[["Settings", argparse.Namespace], Awaitable[object]]
NAME_LENGTH = 200
MIGRATE_HINT = "master-controller migrate --config FILE"


class DatabaseUnusable(Error):
    """The database cannot be reached, or has another schema than this release."""

    code = "database"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """The database at this release's schema, closed again. Raises DatabaseUnusable."""
    from sqlalchemy.exc import SQLAlchemyError

    from polydev.controller.database import create_engine, schema_revision
    from polydev.controller.migrations import HEAD
    from polydev.controller.store.transactions import Database

    _require_file(url)
    database = Database(create_engine(url))
    try:
        revision = await schema_revision(database.engine)
        if revision != HEAD:
            found = f"is at revision {revision}" if revision else "was never migrated"
            raise DatabaseUnusable(f"the database {found}, this release needs {HEAD}", MIGRATE_HINT)
        yield database
    except (SQLAlchemyError, OSError) as error:
        # Only the driver's own words: SQLAlchemy's would quote the statement.
        cause = getattr(error, "orig", None) or error
        raise DatabaseUnusable(f"the database cannot be used: {cause}") from error
    finally:
        await database.close()


def _require_file(url: str) -> None:
    from sqlalchemy.engine import make_url

    parts = make_url(url)
    # SQLite would make an empty one.
    if parts.get_backend_name() == "sqlite" and not Path(parts.database or "").is_file():
        raise DatabaseUnusable(f"there is no database {parts.database}", MIGRATE_HINT)


def user_fields(user: User) -> dict[str, object]:
    return {
        "id": user.id,
        "role": user.role,
        "name": user.name,
        "createdAt": user.created_at.isoformat(),
    }


def token_fields(token: Token) -> dict[str, object]:
    times = {
        "createdAt": token.created_at,
        "expiresAt": token.expires_at,
        "revokedAt": token.revoked_at,
        "usedAt": token.used_at,
    }
    said = {name: time.isoformat() if time else None for name, time in times.items()}
    return {"id": token.id, "userId": token.user_id, "name": token.name, **said}


async def add_user(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        made = await Users(database).add(arguments.role, arguments.name, arguments.id)
    return user_fields(made)


async def list_users(settings: Settings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        return [user_fields(user) for user in await Users(database).list()]


async def change_role(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        return user_fields(await Users(database).set_role(arguments.user, arguments.role))


async def create_token(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens

    days = arguments.days
    expires_at = now() + timedelta(days=days) if days is not None else None
    async with opened(settings.database_url) as database:
        made, plain = await Tokens(database).create(arguments.user, arguments.name, expires_at)
    return {**token_fields(made), "token": plain}


async def list_tokens(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens

    async with opened(settings.database_url) as database:
        return [token_fields(token) for token in await Tokens(database).list(arguments.user)]


async def revoke_token(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens

    async with opened(settings.database_url) as database:
        return token_fields(await Tokens(database).revoke(arguments.token))


async def rotate_credentials(settings: Settings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.sealing import keyring_of
    from polydev.controller.store.credentials import Credentials

    keys = keyring_of(settings.credentials_key)
    async with opened(settings.database_url) as database:
        return vars(await Credentials(database, keys).seal_anew())


async def back_up_database(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.backup import backup

    return await backup(settings.database_url, arguments.file)


async def restore_database(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.backup import restore

    return await restore(settings.database_url, arguments.file, in_use=arguments.in_use)


async def check_database(settings: Settings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.usable import check

    return await check(settings.database_url, with_tools=not arguments.no_tools)


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UUID") from None


def _name(text: str) -> str:
    if not text.strip() or len(text) > NAME_LENGTH:
        raise argparse.ArgumentTypeError(f"a name has 1 to {NAME_LENGTH} characters")
    return text


def _days(text: str) -> float:
    try:
        days = float(text)
        timedelta(days=days)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days") from None
    if not 0 < days <= 36500:
        raise argparse.ArgumentTypeError("days are more than 0, and a hundred years at most")
    return days


@dataclass(frozen=True)
class Verb:
    """One verb of a group; `options` are what `add_argument` takes."""

    help: str
    run: Run
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


ROLE = {"choices": get_args(Role), "required": True, "help": "what the user may do"}
USER = {"type": _uuid, "metavar": "ID", "help": "id of a user"}
FILE = {"type": Path, "metavar": "FILE"}
GROUPS: dict[str, tuple[str, dict[str, Verb]]] = {
    "user": (
        "who may ask for sessions, and as what",
        {
            "add": Verb(
                "add a user and print them as JSON",
                add_user,
                {
                    "--role": ROLE,
                    "--name": {"type": _name, "help": "what people call them"},
                    "--id": {
                        "type": _uuid,
                        "metavar": "UUID",
                        "help": "their id elsewhere, such as a JWT's `sub` (default: a new one)",
                    },
                },
            ),
            "list": Verb("print all users as JSON", list_users),
            "role": Verb("give a user another role", change_role, {"user": USER, "--role": ROLE}),
        },
    ),
    "token": (
        "tokens that stand for a user; only their hashes are stored",
        {
            "create": Verb(
                "make a token and print it as JSON, this once",
                create_token,
                {
                    "--user": {**USER, "required": True},
                    "--name": {"type": _name, "required": True, "help": "what it is for"},
                    "--days": {
                        "type": _days,
                        "metavar": "N",
                        "help": "days until it expires (default: it does not)",
                    },
                },
            ),
            "list": Verb(
                "print tokens as JSON, without the tokens themselves",
                list_tokens,
                {"--user": {**USER, "help": "only those of this user"}},
            ),
            "revoke": Verb(
                "end a token; it counts no more from its next use",
                revoke_token,
                {"token": {"type": _uuid, "metavar": "ID", "help": "id of the token"}},
            ),
        },
    ),
    "credentials": (
        "credentials of users, sealed by the keys of the host",
        {
            "rotate": Verb(
                "seal with the first key what another one seals; print how many as JSON",
                rotate_credentials,
            ),
        },
    ),
    "database": (
        "copies of the database, and back from one",
        {
            "backup": Verb(
                "copy the database to a new file while it is in use",
                back_up_database,
                {"file": {**FILE, "help": "where to; it must not exist"}},
            ),
            "restore": Verb(
                "replace the database by a copy, whole or not at all; the service must be stopped",
                restore_database,
                {
                    "file": {**FILE, "help": "what `database backup` wrote"},
                    "--in-use": {
                        "action": "store_true",
                        "help": "the service may go on meanwhile; PostgreSQL only",
                    },
                },
            ),
            "check": Verb(
                "see that the database can be used, and print what it is as JSON",
                check_database,
                {
                    "--no-tools": {
                        "action": "store_true",
                        "help": "do not look for PostgreSQL's own tools, which copies need",
                    },
                },
            ),
        },
    ),
}


def add_groups(verbs: Any, add_config: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add every group to the subparsers `verbs`; the chosen verb is `arguments.command`."""
    for group, (text, members) in GROUPS.items():
        parser = verbs.add_parser(group, help=text, description=f"{text}.")
        inner = parser.add_subparsers(required=True, metavar="VERB")
        for name, verb in members.items():
            added = inner.add_parser(name, help=verb.help, description=f"{verb.help}.")
            for option, words in verb.options.items():
                added.add_argument(option, **words)
            add_config(added)
            added.set_defaults(command=verb.run)
