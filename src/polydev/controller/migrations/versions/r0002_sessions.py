"""Sessions on VMs: slots, VMs, sessions and their news, tokens, samples, alerts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("users", sa.Column("name", sa.String(200)))
    _tokens()
    _slots_and_vms()
    _sessions()
    _samples_and_alerts()


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("used_at", TIME),
    )


def _slots_and_vms() -> None:
    op.create_table(
        "slots",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("vm_ip", sa.String(15), nullable=False, unique=True),
        sa.Column("declared", sa.Boolean, nullable=False),
    )
    op.create_table(
        "vms",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("slot", sa.Integer, sa.ForeignKey("slots.number"), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("stage_at", TIME, nullable=False),
        sa.Column("image_digest", sa.String(64), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME),
        sa.Column("ready_at", TIME),
        sa.Column("ended_at", TIME),
        sa.Column("released_at", TIME),
        sa.Column("reason", sa.Text),
        sa.Column("failed_units", sa.JSON, nullable=False),
        sa.Column("serial_tail", sa.Text),
        sa.Column("failed_checks", sa.Integer, nullable=False),
        sa.Column("timings", sa.JSON, nullable=False),
        sa.CheckConstraint(
            "state IN ('creating', 'starting', 'ready', 'stopping', 'ended', 'failed')",
            name="vms_state",
        ),
    )
    _partial_index("vms_slot_held", "vms", ["slot"], "released_at IS NULL", unique=True)
    op.create_index("vms_created", "vms", ["created_at"])
    _partial_index("vms_failed", "vms", ["ended_at"], "reason IS NOT NULL")


def _sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("user_id", sa.String(36), sa.ForeignKey("users.id"), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("vm_id", sa.String(36), sa.ForeignKey("vms.id"), nullable=False, unique=True),
        sa.Column("idempotency_key", sa.String(200)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("heartbeat_at", TIME),
        sa.Column("ended_at", TIME),
        sa.UniqueConstraint("user_id", "idempotency_key", name="sessions_idempotency"),
        sa.CheckConstraint(
            "state IN ('vm_creating', 'vm_starting', 'vm_created', 'oauth_pending',"
            " 'authenticated', 'completed', 'failed', 'expired', 'terminated')",
            name="sessions_state",
        ),
    )
    op.create_index("sessions_created", "sessions", ["created_at"])
    op.create_index("sessions_of_user", "sessions", ["user_id", "created_at"])
    _partial_index("sessions_live", "sessions", ["expires_at"], "ended_at IS NULL")
    op.create_table(
        "session_news",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String(36), sa.ForeignKey("sessions.id"), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("session_news_of_session", "session_news", ["session_id", "number"])
    op.create_index("session_news_at", "session_news", ["at"])


def _samples_and_alerts() -> None:
    op.create_table(
        "samples",
        sa.Column("at", TIME, primary_key=True),
        sa.Column("figures", sa.JSON, nullable=False),
    )
    op.create_table(
        "alerts",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(200), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("value", sa.Float),
        sa.Column("raised_at", TIME, nullable=False),
        sa.Column("cleared_at", TIME),
        sqlite_autoincrement=True,
    )
    _partial_index("alerts_standing", "alerts", ["rule", "subject"], "cleared_at IS NULL", True)
    op.create_index("alerts_raised", "alerts", ["raised_at"])


def _partial_index(
    name: str, table: str, columns: list[str], where: str, unique: bool = False
) -> None:
    clause = sa.text(where)
    op.create_index(
        name, table, columns, unique=unique, sqlite_where=clause, postgresql_where=clause
    )


def downgrade() -> None:
    for table in ("alerts", "samples", "session_news", "sessions", "vms", "slots", "tokens"):
        op.drop_table(table)
    op.drop_column("users", "name")
