"""Compares a database's schema with the one that migrations make, and repairs it.

Alembic compares tables, columns, keys and indexes with `tables.metadata`. This module also compares
the conditions of partial indexes, primary keys, checks, triggers and, in PostgreSQL, access (see
`postgres_access`). Tables that are not ours do not count.

It repairs what can be made again without data: indexes, access, and constraints in PostgreSQL. It
leaves columns and tables alone: a dropped column comes back from a backup only, and an added column
may hold data that nobody has a copy of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import produce_migrations
from alembic.operations import Operations, ops
from alembic.runtime.migration import MigrationContext

from polydev.controller.store import tables
from polydev.controller.store.postgres_access import (
    VERSION_TABLE,
    access_differences,
    close_access,
    owner_differences,
)
from polydev.errors import Error

POSTGRESQL = "postgresql"
HINT = (
    "restore missing columns and tables from a backup with ./inv rollback or "
    "./inv database.restore; drop what was added by hand with SQL"
)


class SchemaError(Error):
    """The schema differs from what migrations make, and cannot be repaired automatically."""

    code = "schema"


@dataclass(frozen=True)
class SchemaDifference:
    """A difference, as lines with `-` for what is there and `+` for what should be; its repair."""

    lines: tuple[str, ...]
    repair: Callable[[], object] | None = None


def differences(connection: sa.Connection) -> list[SchemaDifference]:
    """Return the differences of a database at this release's revision."""
    context = MigrationContext.configure(
        connection,
        opts={"compare_type": True, "compare_server_default": True, "include_name": _is_ours},
    )
    do = Operations(context)
    inspector = sa.inspect(connection)
    there = set(inspector.get_table_names())
    close = partial(close_access, connection)
    ours = [table for table in tables.metadata.sorted_tables if table.name in there]
    return [
        *_compared(context, do),
        *_partial_indexes(inspector, ours, do),
        *_primary_keys(inspector, ours),
        *_checks(inspector, ours, do),
        *_triggers(connection),
        *(SchemaDifference((line,), close) for line in access_differences(connection)),
        *(SchemaDifference((line,)) for line in owner_differences(connection)),
    ]


def repair_schema(connection: sa.Connection) -> None:
    """Repair what can be repaired. Raises SchemaError, which names the rest."""
    for each in differences(connection):
        if each.repair:
            each.repair()
    if left := lines_of(differences(connection)):
        raise SchemaError(
            f"the database's schema differs from the expected one: {'; '.join(left)}", HINT
        )


def lines_of(found: Iterable[SchemaDifference]) -> list[str]:
    return [line for each in found for line in each.lines]


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in tables.metadata.tables


def _compared(context: MigrationContext, do: Operations) -> Iterator[SchemaDifference]:
    found = produce_migrations(context, tables.metadata).upgrade_ops
    assert found is not None
    can_alter = context.dialect.name == POSTGRESQL
    for each in _flat(found.ops):
        lines = tuple(_lines(each))
        is_index = isinstance(each, ops.CreateIndexOp | ops.DropIndexOp)
        is_altered = isinstance(
            each, ops.AlterColumnOp | ops.AddConstraintOp | ops.DropConstraintOp
        )
        if lines:
            can_be_repaired = is_index or (is_altered and can_alter)
            yield SchemaDifference(lines, partial(do.invoke, each) if can_be_repaired else None)


def _lines(found: ops.MigrateOperation) -> Iterator[str]:
    """Yield the lines that describe one of Alembic's operations."""
    match found:
        case ops.CreateTableOp():
            yield f"+ table {found.table_name}"
        case ops.AddColumnOp():
            yield f"+ column {found.table_name}.{found.column.name}"
        case ops.DropColumnOp():
            yield f"- column {found.table_name}.{found.column_name}"
        case ops.CreateIndexOp():
            yield f"+ index {found.index_name}"
        case ops.DropIndexOp():
            yield f"- index {found.index_name}"
        case ops.AlterColumnOp():
            yield from _altered(found)
        case ops.AddConstraintOp():
            yield f"+ constraint {_constraint(found)}"
        case ops.DropConstraintOp():
            yield f"- constraint {_constraint(found)}"
        # Comments on tables are our mark, which `postgres_access.CLOSE` sets.


def _flat(found: Iterable[ops.MigrateOperation]) -> Iterator[ops.MigrateOperation]:
    for each in found:
        if isinstance(each, ops.OpContainer):
            yield from _flat(each.ops)
        else:
            yield each


def _altered(found: ops.AlterColumnOp) -> Iterator[str]:
    name = f"column {found.table_name}.{found.column_name}"
    if found.modify_type is not None:
        yield f"- {name}: type {found.existing_type}"
        yield f"+ {name}: type {found.modify_type}"
    if found.modify_nullable is not None:
        yield f"- {name}: {'NULL' if found.existing_nullable else 'NOT NULL'}"
        yield f"+ {name}: {'NULL' if found.modify_nullable else 'NOT NULL'}"
    if found.modify_server_default is not False:
        was = getattr(found.existing_server_default, "arg", None)
        yield f"- {name}: default {was}"


def _constraint(found: ops.AddConstraintOp | ops.DropConstraintOp) -> str:
    """Return a constraint's name, or its columns where it has no name."""
    constraint: Any = found.to_constraint()
    columns = ", ".join(column.name for column in constraint.columns)
    return f"{constraint.name or f'of {columns}'} on {constraint.table.name}"


def _partial_indexes(
    inspector: sa.Inspector, ours: list[sa.Table], do: Operations
) -> Iterator[SchemaDifference]:
    """Yield partial indexes with another condition; Alembic compares their columns only."""
    word = f"{inspector.dialect.name}_where"
    for table in ours:
        live = {each["name"]: each for each in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if (there := live.get(str(index.name))) is None:
                continue
            was = _rows(there.get("dialect_options", {}).get(word))
            wanted = _rows(index.dialect_options[inspector.dialect.name]["where"])
            if was != wanted:
                lines = (f"- index {index.name}: of {was}", f"+ index {index.name}: of {wanted}")
                yield SchemaDifference(lines, _made_anew(index, do))


def _rows(condition: object) -> str:
    """Return a condition without parentheses and table names, which databases add or leave out."""
    if condition is None:
        return "all rows"
    return re.sub(r"[()]|\b\w+\.", "", str(condition))


def _made_anew(index: sa.Index, do: Operations) -> Callable[[], object]:
    def make() -> None:
        do.invoke(ops.DropIndexOp.from_index(index))
        do.invoke(ops.CreateIndexOp.from_index(index))

    return make


def _primary_keys(inspector: sa.Inspector, ours: list[sa.Table]) -> Iterator[SchemaDifference]:
    for table in ours:
        was = inspector.get_pk_constraint(table.name)["constrained_columns"]
        wanted = [column.name for column in table.primary_key]
        if was != wanted:
            name = f"primary key of {table.name}"
            lines = (f"- {name}: {', '.join(was) or 'none'}", f"+ {name}: {', '.join(wanted)}")
            yield SchemaDifference(lines)


def _checks(
    inspector: sa.Inspector, ours: list[sa.Table], do: Operations
) -> Iterator[SchemaDifference]:
    """Compare checks by the values that they name: databases rewrite the rest."""
    can_alter = inspector.dialect.name == POSTGRESQL
    for table in ours:
        live = {
            str(each["name"]): str(each["sqltext"])
            for each in inspector.get_check_constraints(table.name)
        }
        wanted = {
            str(each.name): str(each.sqltext)
            for each in table.constraints
            if isinstance(each, sa.CheckConstraint)
        }
        for name in sorted(live.keys() | wanted.keys()):
            was, text = live.get(name), wanted.get(name)
            if was and text and _values(was) == _values(text):
                continue
            lines = [f"- check {name} on {table.name}: {was}"] if was else []
            lines += [f"+ check {name} on {table.name}: {text}"] if text else []
            repair = _set_check(do, table.name, name, was, text) if can_alter else None
            yield SchemaDifference(tuple(lines), repair)


def _values(condition: str) -> list[str]:
    return sorted(re.findall(r"'([^']*)'", condition))


def _set_check(
    do: Operations, table: str, name: str, was: str | None, wanted: str | None
) -> Callable[[], object]:
    def make() -> None:
        if was:
            do.drop_constraint(name, table, type_="check")
        if wanted:
            do.create_check_constraint(name, table, sa.text(wanted))

    return make


def _triggers(connection: sa.Connection) -> Iterator[SchemaDifference]:
    """Yield triggers in SQLite; `postgres_access` has those of PostgreSQL."""
    if connection.dialect.name != "sqlite":
        return
    quoted = connection.dialect.identifier_preparer.quote
    asked = "SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
    for name, table in connection.exec_driver_sql(asked).all():
        if table in (*tables.metadata.tables, VERSION_TABLE):
            drop = f"DROP TRIGGER {quoted(name)}"
            yield SchemaDifference(
                (f"- trigger {name} on {table}",), partial(connection.exec_driver_sql, drop)
            )
