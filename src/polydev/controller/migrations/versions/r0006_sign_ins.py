"""Sign-ins of browsers, and tickets for one use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

TIME = sa.DateTime(timezone=True)


def _goes_with(name: str, column: str, *, nullable: bool = True) -> sa.Column[str]:
    key = sa.ForeignKey(column, ondelete="CASCADE")
    return sa.Column(name, sa.String(36), key, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "sign_ins",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        _goes_with("user_id", "users.id", nullable=False),
        _goes_with("token_id", "tokens.id"),
        _goes_with("session_id", "sessions.id"),
        sa.Column("parent_id", sa.String(36)),
        sa.Column("view_only", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("used_at", TIME),
    )
    op.create_table(
        "tickets",
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("purpose", sa.String(16), nullable=False),
        _goes_with("user_id", "users.id", nullable=False),
        _goes_with("token_id", "tokens.id"),
        _goes_with("sign_in_id", "sign_ins.id"),
        _goes_with("session_id", "sessions.id"),
        sa.Column("view_only", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("caller_until", TIME),
        sa.CheckConstraint("purpose IN ('viewer', 'page', 'sign-in')", name="tickets_purpose"),
    )
    for table in ("sign_ins", "tickets"):
        op.create_index(f"{table}_expire", table, ["expires_at"])


def downgrade() -> None:
    for table in ("tickets", "sign_ins"):
        op.drop_table(table)
