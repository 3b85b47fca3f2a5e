"""Logins of sessions, holders of credentials, and the log of credentials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

TIME = sa.DateTime(timezone=True)
OF_SESSIONS = (
    ("login", sa.String(16)),
    ("login_detail", sa.Text),
    ("recipient", sa.String(128)),
    ("stored_credentials", sa.String(16)),
    ("credentials_sha256", sa.String(64)),
    ("credentials_at", TIME),
    ("wiped_at", TIME),
    ("completes_at", TIME),
)


def upgrade() -> None:
    for name, kind in OF_SESSIONS:
        op.add_column("sessions", sa.Column(name, kind))
    op.add_column("credentials", sa.Column("recipient", sa.String(128)))
    op.add_column("credentials", sa.Column("holder_id", sa.String(36)))
    op.add_column(
        "credentials",
        sa.Column("may_be_stale", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "credential_events",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at", TIME, nullable=False),
        sa.Column("user_id", sa.String(36), nullable=False),
        sa.Column("provider", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("by", sa.String(16), nullable=False),
        sa.Column("actor_id", sa.String(36)),
        sa.Column("session_id", sa.String(36)),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], ondelete="CASCADE"),
        sqlite_autoincrement=True,
    )
    op.create_index("credential_events_of_user", "credential_events", ["user_id", "id"])
    op.create_index("credential_events_at", "credential_events", ["at"])


def downgrade() -> None:
    op.drop_table("credential_events")
    for name in ("may_be_stale", "holder_id", "recipient"):
        op.drop_column("credentials", name)
    for name, _kind in reversed(OF_SESSIONS):
        op.drop_column("sessions", name)
