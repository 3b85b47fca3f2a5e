"""The database's schema, revision by revision; Alembic reads this folder."""

# The newest revision. Asking Alembic would cost the service's start more than all else it does.
HEAD = "0009"
