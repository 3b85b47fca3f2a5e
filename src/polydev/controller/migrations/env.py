"""Alembic's entry point: migrates the given connection's database to a revision."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from polydev.controller.migrations import HEAD
from polydev.controller.store.postgres_access import close_access
from polydev.controller.store.schema_check import repair_schema

# The key of an advisory lock in PostgreSQL: any number, the same in all processes.
LOCK = 0x6D696772

connection = context.config.attributes["connection"]
# All revisions in one transaction, so that a failure leaves the schema unchanged. Alembic assumes
# that SQLite cannot do this; with our own BEGIN it can.
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    if connection.dialect.name == "postgresql":
        # If two processes migrate at once, the second one waits and finds everything done.
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    context.run_migrations()
    if context.get_context().get_current_revision() == HEAD:
        # Even if there was nothing to migrate: the schema may have been changed by hand.
        repair_schema(connection)
    close_access(connection)
