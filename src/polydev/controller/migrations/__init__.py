"""Migrations of the database's schema; Alembic reads this folder."""

# The newest revision. Asking Alembic would take longer than the rest of the service's start.
HEAD = "0009"
