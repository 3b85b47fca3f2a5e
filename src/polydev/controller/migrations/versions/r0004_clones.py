"""VMs that were resumed from a template, or why they were not."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("vms", sa.Column("template", sa.String(64)))
    op.add_column("vms", sa.Column("boots_because", sa.Text))
    op.add_column("vms", sa.Column("receipt", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    for name in ("receipt", "boots_because", "template"):
        op.drop_column("vms", name)
