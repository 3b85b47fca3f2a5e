"""Webhooks: events, their deliveries to endpoints, and endpoints that answered 410 Gone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True)),
        sqlite_autoincrement=True,
    )
    unqueued = sa.text("queued_at IS NULL")
    op.create_index(
        "webhook_events_unqueued",
        "webhook_events",
        ["number"],
        sqlite_where=unqueued,
        postgresql_where=unqueued,
    )
    op.create_index("webhook_events_at", "webhook_events", ["at"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("event_number", sa.Integer, nullable=False),
        sa.Column("endpoint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("attempted_at", sa.DateTime(timezone=True)),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("status", sa.Integer),
        sa.Column("problem", sa.Text),
        sa.ForeignKeyConstraint(["event_number"], ["webhook_events.number"], ondelete="CASCADE"),
        sa.UniqueConstraint("event_number", "endpoint", name="webhook_deliveries_once"),
        sa.CheckConstraint(
            "state IN ('waiting', 'delivered', 'failed')", name="webhook_deliveries_state"
        ),
        sqlite_autoincrement=True,
    )
    waiting = sa.text("due_at IS NOT NULL")
    op.create_index(
        "webhook_deliveries_due",
        "webhook_deliveries",
        ["endpoint", "due_at"],
        sqlite_where=waiting,
        postgresql_where=waiting,
    )
    op.create_index("webhook_deliveries_ended", "webhook_deliveries", ["state", "ended_at"])
    op.create_table(
        "webhook_gone",
        sa.Column("endpoint", sa.String(64), primary_key=True),
        sa.Column("url_sha256", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    for table in ("webhook_gone", "webhook_deliveries", "webhook_events"):
        op.drop_table(table)
