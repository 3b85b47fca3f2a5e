"""Holders of stored credentials: a session that holds them has them alone until its VM is gone.

A provider whose refresh tokens work once treats a second use as theft and revokes them all. So
such credentials are held by one session from its start.
"""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.entities import Session, Vm
from polydev.controller.store import tables
from polydev.controller.store.credential_log import log_session_event
from polydev.errors import (
    CredentialsInUse,
    CredentialsNotFound,
    CredentialsSealed,
    NoCredentialsKey,
)

_kept, _sessions, _vms = tables.credentials.c, tables.sessions.c, tables.vms.c
_lives = sa.exists().where(
    _sessions.id == _kept.holder_id,
    _vms.id == _sessions.vm_id,
    _vms.released_at.is_(None),
)
# A restored database may name a session that ended long ago: it holds nothing any more.
HOLDER = sa.case((_lives, _kept.holder_id), else_=None).label("holder_id")
MAY_BE_STALE = sa.or_(_kept.may_be_stale, sa.and_(_kept.holder_id.is_not(None), ~_lives)).label(
    "may_be_stale"
)


def in_use(provider: str, holder_id: str) -> CredentialsInUse:
    return CredentialsInUse(
        f"session {holder_id} uses the credentials of {provider}; only one session may at a time",
        "end that session first: its credentials are stored again then",
    )


def only_recipient_opens(provider: str) -> CredentialsSealed:
    return CredentialsSealed(
        f"the credentials of {provider} are sealed to your own key, so no session can start with "
        "them",
        "start a session without stored credentials, or store them again without a recipient",
    )


def no_key() -> NoCredentialsKey:
    return NoCredentialsKey(
        "this host cannot store credentials: it has no key to seal them with",
        "an operator makes a key with ./inv credentials.key, adds its file as credentials-key to "
        "the inventory's secrets, and deploys",
    )


def none_stored(provider: str) -> CredentialsNotFound:
    return CredentialsNotFound(f"you have no stored credentials of {provider}")


def of_user(user_id: str, provider: str) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for a user's row of a provider."""
    return _kept.user_id == user_id, _kept.provider == provider


async def hold_credentials(
    connection: AsyncConnection, user_id: str, provider: str, session_id: str, *, alone: bool
) -> None:
    """Let a session use a user's stored credentials; `alone`: no other session may meanwhile.

    This can be repeated. The user must be locked. Raises CredentialsNotFound, CredentialsSealed
    and CredentialsInUse.
    """
    row_of_it = of_user(user_id, provider)
    asked = sa.select(_kept.recipient, HOLDER).where(*row_of_it)
    row = (await connection.execute(asked)).one_or_none()
    if row is None:
        raise none_stored(provider)
    if row.recipient is not None:
        raise only_recipient_opens(provider)
    if row.holder_id not in (None, session_id):
        raise in_use(provider, row.holder_id)
    if alone:
        values = {"holder_id": session_id, "may_be_stale": MAY_BE_STALE}
        await connection.execute(sa.update(tables.credentials).where(*row_of_it).values(values))


async def release_credentials(
    connection: AsyncConnection, session_id: str, *, stale: bool, **values: object
) -> bool:
    """Release the credentials that a session holds, and return whether it held any.

    stale   whether its VM may have used them, and its newer ones are lost
    values  of other columns: what was read back
    """
    held = sa.update(tables.credentials).where(_kept.holder_id == session_id)
    known: dict[str, object] = {"may_be_stale": True} if stale else {}
    done = await connection.execute(held.values(holder_id=None, **known, **values))
    return bool(done.rowcount)


async def release_with_vm(
    connection: AsyncConnection, vm: Vm, session: Session | None, at: datetime
) -> None:
    """Release what a session holds whose VM is gone; what was not read back is lost."""
    if session is None or session.stored_credentials is None:
        return
    if (
        await release_credentials(connection, session.id, stale=vm.ready_at is not None)
        and vm.ready_at
    ):
        await log_session_event(connection, at, "not_read_back", session)
