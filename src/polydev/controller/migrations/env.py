"""Alembic's entry: brings the connection that it is given to the revision that is asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from polydev.controller.migrations import HEAD
from polydev.controller.store.postgres_access import close_access
from polydev.controller.store.schema_check import repair_schema

# Any number, the same in all processes: the key of a lock in PostgreSQL.
LOCK = 0x6D696772

connection = context.config.attributes["connection"]
# All revisions in one transaction, so a failing one leaves the schema as it was. Alembic thinks
# that SQLite cannot do this; with our own BEGIN it can.
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        # Of two that migrate at once, the second waits and finds all done.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    context.run_migrations()
    if context.get_context().get_current_revision() == HEAD:
        # Even where there was nothing to migrate: somebody may have changed something since.
        repair_schema(connection)
    close_access(connection)
