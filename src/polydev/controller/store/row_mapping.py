"""Mapping of rows to entities, and the selects that return such rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from polydev.controller.entities import CredentialEvent, Session, SessionNews, Token, User, Vm
from polydev.controller.store import tables

Row = Mapping[Any, Any]

USERS = sa.select(tables.users)
TOKENS = sa.select(*(column for column in tables.tokens.c if column.name != "sha256"))
SESSIONS = sa.select(*(column for column in tables.sessions.c if column.name != "idempotency_key"))
# A VM's address is that of its slot.
VMS = sa.select(tables.vms, tables.slots.c.vm_ip).join_from(
    tables.vms, tables.slots, tables.slots.c.number == tables.vms.c.slot
)
# Live sessions and held VMs are few and have an index of their own. `MATERIALIZED` finds them
# first: without statistics, SQLite would scan all rows in the requested order.
LIVE_SESSIONS = (
    SESSIONS.where(tables.sessions.c.ended_at.is_(None)).cte("live").prefix_with("MATERIALIZED")
)
HELD_VMS = VMS.where(tables.vms.c.released_at.is_(None)).cte("held").prefix_with("MATERIALIZED")
NEWS = sa.select(tables.session_news)
CREDENTIAL_EVENTS = sa.select(tables.credential_events)


def user_of(row: Row) -> User:
    return User(**_fields(row))


def token_of(row: Row) -> Token:
    return Token(**_fields(row))


def session_of(row: Row) -> Session:
    return Session(**_fields(row))


def vm_of(row: Row) -> Vm:
    return Vm(**{**_fields(row), "failed_units": tuple(row["failed_units"])})


def news_of(row: Row) -> SessionNews:
    return SessionNews(**_fields(row))


def credential_event_of(row: Row) -> CredentialEvent:
    return CredentialEvent(**_fields(row))


def _fields(row: Row) -> dict[str, Any]:
    # Columns and fields have the same names; checks of the tables reject unknown states and roles.
    return {str(name): value for name, value in row.items()}
