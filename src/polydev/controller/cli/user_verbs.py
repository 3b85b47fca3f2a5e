"""Verbs for users and tokens. A user is named by id, the beginning of the id, or name."""

from __future__ import annotations

import argparse
import unicodedata
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, get_args

from polydev.controller.cli.verb import ControllerVerb, opened
from polydev.controller.entities import Role, Token, User, now

if TYPE_CHECKING:
    from polydev.controller.settings import ControllerSettings

NAME_LENGTH = 200
# Control characters, bytes that are no text, and separators of lines.
UNSHOWN = ("Cc", "Cs", "Zl", "Zp")
# They would change the order of what is shown beside the name.
BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
TOKEN_DAYS = 90.0


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


async def add_user(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        made = await Users(database).add(arguments.role, arguments.name, arguments.id)
    return user_fields(made)


async def list_users(settings: ControllerSettings, _arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        return [user_fields(user) for user in await Users(database).list()]


async def change_role(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        users = Users(database)
        user = await users.named(arguments.user)
        return user_fields(await users.set_role(user.id, arguments.role))


async def rename_user(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        users = Users(database)
        user = await users.named(arguments.user)
        return user_fields(await users.rename(user.id, arguments.name))


async def show_user(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        return user_fields(await Users(database).named(arguments.user))


async def remove_user(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.user_removal import remove_user
    from polydev.controller.store.users import Users

    async with opened(settings.database_url) as database:
        user = await Users(database).named(arguments.user)
        removed = await remove_user(database, user.id)
    return {**user_fields(user), **vars(removed)}


async def create_token(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens, Users

    expires_at = None if arguments.never else now() + timedelta(days=arguments.days)
    async with opened(settings.database_url) as database:
        user = await Users(database).named(arguments.user)
        made, plain = await Tokens(database).create(user.id, arguments.name, expires_at)
    return {**token_fields(made), "token": plain}


async def list_tokens(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens, Users

    async with opened(settings.database_url) as database:
        of_user = (await Users(database).named(arguments.user)).id if arguments.user else None
        return [token_fields(token) for token in await Tokens(database).list(of_user)]


async def revoke_token(settings: ControllerSettings, arguments: argparse.Namespace) -> object:
    from polydev.controller.store.users import Tokens

    async with opened(settings.database_url) as database:
        return token_fields(await Tokens(database).revoke(arguments.token))


def _uuid(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID") from None


def _name(text: str) -> str:
    if not text.strip() or len(text) > NAME_LENGTH:
        raise argparse.ArgumentTypeError(f"a name must have 1 to {NAME_LENGTH} characters")
    if any(unicodedata.category(each) in UNSHOWN or each in BIDIRECTIONAL for each in text):
        raise argparse.ArgumentTypeError(
            "a name must be one line of text without control characters"
        )
    return text


def _days(text: str) -> float:
    try:
        days = float(text)
        timedelta(days=days)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days") from None
    if not 0 < days <= 36500:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 36500 days")
    return days


ROLE = {"choices": get_args(Role), "required": True, "help": "the role of the user"}
USER = {
    "metavar": "USER",
    "help": "id of a user, at least 4 characters of its beginning, or the user's name",
}
USER_GROUPS: dict[str, tuple[str, dict[str, ControllerVerb]]] = {
    "user": (
        "users and their roles",
        {
            "add": ControllerVerb(
                "add a user and print it as JSON",
                add_user,
                {
                    "--role": ROLE,
                    "--name": {"type": _name, "help": "name of the user"},
                    "--id": {
                        "type": _uuid,
                        "metavar": "UUID",
                        "help": "id of the user, such as a JWT's `sub` (default: a new one)",
                    },
                },
            ),
            "list": ControllerVerb("print all users as JSON", list_users),
            "role": ControllerVerb(
                "change the role of a user", change_role, {"user": USER, "--role": ROLE}
            ),
            "rename": ControllerVerb(
                "rename a user",
                rename_user,
                {"user": USER, "name": {"type": _name, "help": "the new name"}},
            ),
            "show": ControllerVerb("print one user as JSON", show_user, {"user": USER}),
            "remove": ControllerVerb(
                "remove a user with all sessions, tokens and credentials; print the counts",
                remove_user,
                {"user": USER},
            ),
        },
    ),
    "token": (
        "tokens of users, of which only hashes are stored",
        {
            "create": ControllerVerb(
                "create a token and print it as JSON, this one time",
                create_token,
                {
                    "--user": {**USER, "required": True},
                    "--name": {"type": _name, "required": True, "help": "purpose of the token"},
                    "--days": {
                        "type": _days,
                        "metavar": "N",
                        "default": TOKEN_DAYS,
                        "help": f"days until it expires (default: {TOKEN_DAYS:g})",
                    },
                    "--never": {
                        "action": "store_true",
                        "help": "create a token that does not expire",
                    },
                },
            ),
            "list": ControllerVerb(
                "print tokens as JSON, without the tokens themselves",
                list_tokens,
                {"--user": {**USER, "help": "only those of this user"}},
            ),
            "revoke": ControllerVerb(
                "revoke a token: its next use is refused",
                revoke_token,
                {"token": {"type": _uuid, "metavar": "ID", "help": "id of the token"}},
            ),
        },
    ),
}
