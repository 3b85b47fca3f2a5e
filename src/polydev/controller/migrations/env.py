"""Alembic's entry: brings the connection that it is given to the revision that is asked for."""

from __future__ import annotations

from alembic import context

connection = context.config.attributes["connection"]
# All revisions in one transaction, so a failing one leaves the schema as it was. Alembic thinks
# that SQLite cannot do this; with our own BEGIN it can.
context.configure(connection=connection, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
