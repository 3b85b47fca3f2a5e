"""The tables for SQLAlchemy. Migrations create them; a test compares the two."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Dialect

metadata = sa.MetaData()


class UtcDateTime(sa.TypeDecorator[datetime]):
    """A time in UTC. SQLite drops the time zone, PostgreSQL returns that of the connection."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        given: datetime = value
        if given.tzinfo is None:
            return given.replace(tzinfo=timezone.utc)
        return given.astimezone(timezone.utc)


def _id(name: str = "id", *parts: sa.ForeignKey, **words: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(36), *parts, **words)


def _goes_with(column: str) -> tuple[sa.ForeignKey]:
    return (sa.ForeignKey(column, ondelete="CASCADE"),)


users = sa.Table(
    "users",
    metadata,
    _id(primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("name", sa.String(200)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.CheckConstraint("role IN ('admin', 'operator', 'user')", name="users_role"),
)

tokens = sa.Table(
    "tokens",
    metadata,
    _id(primary_key=True),
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime),
    sa.Column("revoked_at", UtcDateTime),
    sa.Column("used_at", UtcDateTime),
)

slots = sa.Table(
    "slots",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("vm_ip", sa.String(15), nullable=False, unique=True),
    # The inventory may remove a slot while a VM still holds it.
    sa.Column("declared", sa.Boolean, nullable=False),
)

vms = sa.Table(
    "vms",
    metadata,
    _id(primary_key=True),
    sa.Column("slot", sa.Integer, sa.ForeignKey("slots.number"), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("stage_at", UtcDateTime, nullable=False),
    sa.Column("image_digest", sa.String(64), nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("started_at", UtcDateTime),
    sa.Column("ready_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("released_at", UtcDateTime),
    sa.Column("reason", sa.Text),
    sa.Column("failed_units", sa.JSON, nullable=False),
    sa.Column("serial_tail", sa.Text),
    sa.Column("failed_checks", sa.Integer, nullable=False),
    sa.Column("timings", sa.JSON, nullable=False),
    sa.Column("template", sa.String(64)),
    sa.Column("boots_because", sa.Text),
    sa.Column("receipt", sa.JSON(none_as_null=True)),
    sa.Column("pooled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("used_at", UtcDateTime),
    sa.Column("paused_at", UtcDateTime),
    sa.CheckConstraint(
        "state IN ('creating', 'starting', 'ready', 'stopping', 'ended', 'failed')",
        name="vms_state",
    ),
)
# A slot has one VM at a time; this index enforces it.
sa.Index(
    "vms_slot_held",
    vms.c.slot,
    unique=True,
    sqlite_where=vms.c.released_at.is_(None),
    postgresql_where=vms.c.released_at.is_(None),
)
sa.Index("vms_created", vms.c.created_at)
sa.Index(
    "vms_failed",
    vms.c.ended_at,
    sqlite_where=vms.c.reason.is_not(None),
    postgresql_where=vms.c.reason.is_not(None),
)

sessions = sa.Table(
    "sessions",
    metadata,
    _id(primary_key=True),
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("vm_id", sa.String(36), sa.ForeignKey("vms.id"), nullable=False, unique=True),
    sa.Column("idempotency_key", sa.String(200)),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("changed_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("heartbeat_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    # The state of the tool's login in the newest news, and its detail.
    sa.Column("login", sa.String(16)),
    sa.Column("login_detail", sa.Text),
    # The age recipient that credentials are sealed to.
    sa.Column("recipient", sa.String(128)),
    sa.Column("stored_credentials", sa.String(16)),
    sa.Column("credentials_sha256", sa.String(64)),
    sa.Column("credentials_at", UtcDateTime),
    sa.Column("wiped_at", UtcDateTime),
    sa.Column("completes_at", UtcDateTime),
    sa.UniqueConstraint("user_id", "idempotency_key", name="sessions_idempotency"),
    sa.CheckConstraint(
        "state IN ('vm_creating', 'vm_starting', 'vm_created', 'oauth_pending', 'authenticated',"
        " 'completed', 'failed', 'expired', 'terminated')",
        name="sessions_state",
    ),
)
sa.Index("sessions_created", sessions.c.created_at)
sa.Index("sessions_of_user", sessions.c.user_id, sessions.c.created_at)
# Live sessions are few and read all the time.
sa.Index(
    "sessions_live",
    sessions.c.expires_at,
    sqlite_where=sessions.c.ended_at.is_(None),
    postgresql_where=sessions.c.ended_at.is_(None),
)

session_news = sa.Table(
    "session_news",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index("session_news_of_session", session_news.c.session_id, session_news.c.number)
sa.Index("session_news_at", session_news.c.at)

credentials = sa.Table(
    "credentials",
    metadata,
    sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), primary_key=True),
    sa.Column("provider", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(16), nullable=False),
    # Encrypted with a key that is not in the database.
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id", ondelete="SET NULL")),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("updated_at", UtcDateTime, nullable=False),
    sa.Column("recipient", sa.String(128)),
    # The session whose VM has them, where only one place may. No foreign key: it may be deleted.
    sa.Column("holder_id", sa.String(36)),
    sa.Column("may_be_stale", sa.Boolean, nullable=False, server_default=sa.false()),
)
# For the foreign key, when sessions are deleted.
sa.Index("credentials_of_session", credentials.c.session_id)

# Log of credentials: actions and actors. No foreign key, since sessions are deleted sooner.
credential_events = sa.Table(
    "credential_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at", UtcDateTime, nullable=False),
    _id("user_id", *_goes_with("users.id"), nullable=False),
    sa.Column("provider", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("by", sa.String(16), nullable=False),
    _id("actor_id"),
    _id("session_id"),
    sqlite_autoincrement=True,
)
sa.Index("credential_events_of_user", credential_events.c.user_id, credential_events.c.id)
sa.Index("credential_events_at", credential_events.c.at)

# Signed-in browsers, and pages that show one session only.
sign_ins = sa.Table(
    "sign_ins",
    metadata,
    _id(primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    _id("user_id", *_goes_with("users.id"), nullable=False),
    _id("token_id", *_goes_with("tokens.id")),
    _id("session_id", *_goes_with("sessions.id")),
    # The sign-in whose ticket a page's key came from. No foreign key: rows are copied in any order.
    _id("parent_id"),
    sa.Column("view_only", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("used_at", UtcDateTime),
)

sa.Index("sign_ins_expire", sign_ins.c.expires_at)

# Tickets for one use. `caller_until` is when the right of the ticket's maker ends.
tickets = sa.Table(
    "tickets",
    metadata,
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("purpose", sa.String(16), nullable=False),
    _id("user_id", *_goes_with("users.id"), nullable=False),
    _id("token_id", *_goes_with("tokens.id")),
    _id("sign_in_id", *_goes_with("sign_ins.id")),
    _id("session_id", *_goes_with("sessions.id")),
    sa.Column("view_only", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("expires_at", UtcDateTime, nullable=False),
    sa.Column("caller_until", UtcDateTime),
    sa.CheckConstraint("purpose IN ('viewer', 'page', 'sign-in')", name="tickets_purpose"),
)
sa.Index("tickets_expire", tickets.c.expires_at)

usage = sa.Table(
    "usage",
    metadata,
    _id("user_id", *_goes_with("users.id"), primary_key=True),
    # In UTC.
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("vm_seconds", sa.Float, nullable=False),
    sa.Column("cpu_seconds", sa.Float, nullable=False),
    sa.Column("received_bytes", sa.BigInteger, nullable=False),
    sa.Column("sent_bytes", sa.BigInteger, nullable=False),
    sa.Column("sessions", sa.Integer, nullable=False),
)
sa.Index("usage_day", usage.c.day)

# The last counted reading of each VM, whose counters only grow.
usage_readings = sa.Table(
    "usage_readings",
    metadata,
    _id("vm_id", *_goes_with("vms.id"), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("paused", sa.Boolean, nullable=False),
    sa.Column("cpu_seconds", sa.Float),
    sa.Column("received_bytes", sa.BigInteger),
    sa.Column("sent_bytes", sa.BigInteger),
)

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("at", UtcDateTime, primary_key=True),
    sa.Column("figures", sa.JSON, nullable=False),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("rule", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(200), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("value", sa.Float),
    sa.Column("raised_at", UtcDateTime, nullable=False),
    sa.Column("cleared_at", UtcDateTime),
    sqlite_autoincrement=True,
)
# One alert of a rule and subject stands at a time.
sa.Index(
    "alerts_standing",
    alerts.c.rule,
    alerts.c.subject,
    unique=True,
    sqlite_where=alerts.c.cleared_at.is_(None),
    postgresql_where=alerts.c.cleared_at.is_(None),
)
sa.Index("alerts_raised", alerts.c.raised_at)

# Events for endpoints. `queued_at`: when their deliveries were made.
webhook_events = sa.Table(
    "webhook_events",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    _id(nullable=False, unique=True),
    sa.Column("type", sa.String(64), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("queued_at", UtcDateTime),
    sqlite_autoincrement=True,
)
sa.Index(
    "webhook_events_unqueued",
    webhook_events.c.number,
    sqlite_where=webhook_events.c.queued_at.is_(None),
    postgresql_where=webhook_events.c.queued_at.is_(None),
)
sa.Index("webhook_events_at", webhook_events.c.at)

# One for each event and endpoint. A delivery waits as long as it has `due_at`, which is also its
# claim: a process that sends it first moves `due_at` on, so that no other does before then.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("event_number", sa.Integer, *_goes_with("webhook_events.number"), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", UtcDateTime),
    sa.Column("attempted_at", UtcDateTime),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("status", sa.Integer),
    sa.Column("problem", sa.Text),
    sa.UniqueConstraint("event_number", "endpoint", name="webhook_deliveries_once"),
    sa.CheckConstraint(
        "state IN ('waiting', 'delivered', 'failed')", name="webhook_deliveries_state"
    ),
    sqlite_autoincrement=True,
)
sa.Index(
    "webhook_deliveries_due",
    webhook_deliveries.c.endpoint,
    webhook_deliveries.c.due_at,
    sqlite_where=webhook_deliveries.c.due_at.is_not(None),
    postgresql_where=webhook_deliveries.c.due_at.is_not(None),
)
sa.Index("webhook_deliveries_ended", webhook_deliveries.c.state, webhook_deliveries.c.ended_at)

# Endpoints that answered 410 Gone, and the URL at which they did.
webhook_gone = sa.Table(
    "webhook_gone",
    metadata,
    sa.Column("endpoint", sa.String(64), primary_key=True),
    sa.Column("url_sha256", sa.String(64), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
)

# In PostgreSQL this comment marks our tables for other releases (see `postgres_access`).
MARK = "polydev"
for _table in metadata.tables.values():
    _table.comment = MARK
