"""VMs that wait in the pool for a session, and VMs that are paused while they are unused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("vms", sa.Column("pooled", sa.Boolean, nullable=False, server_default=sa.false()))
    for name in ("used_at", "paused_at"):
        op.add_column("vms", sa.Column(name, sa.DateTime(timezone=True)))


def downgrade() -> None:
    for name in ("paused_at", "used_at", "pooled"):
        op.drop_column("vms", name)
