"""Access to our tables in PostgreSQL: their owner may use them, and no other role.

A database may grant roles privileges on every new table, as Supabase does for `anon`, which is
everybody. So each migration and each restore ends, in its own transaction, with `CLOSE`: it
enables row level security, revokes all privileges of other roles on tables, columns and sequences,
and drops triggers, rules and policies that are not ours. It also marks our tables with a comment,
by which a restore by an older release finds tables that it does not know. The tables stay in their
schema, since the release before still uses them.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from polydev.controller.store import tables

VERSION_TABLE = "alembic_version"


def known_tables() -> list[str]:
    """Return the names of this release's tables."""
    return [VERSION_TABLE, *(table.name for table in tables.metadata.sorted_tables)]


# Ours: the tables of this release and the marked ones, in the schema of the version's table.
_OURS = f"""
    SELECT c.oid, c.relname, c.relowner, c.relacl, c.relrowsecurity, c.relforcerowsecurity
    FROM pg_catalog.pg_class c
    WHERE c.relkind IN ('r', 'p')
        AND c.relnamespace = (
            SELECT v.relnamespace FROM pg_catalog.pg_class v
            WHERE v.oid = pg_catalog.to_regclass('{VERSION_TABLE}')
        )
        AND (
            c.relname = ANY ('{{{",".join(known_tables())}}}')
            OR pg_catalog.obj_description(c.oid, 'pg_class') = '{tables.MARK}'
        )"""
# Also tables made in this transaction: a migration may make some that this release does not know.
_MADE_NOW = "c.xmin::text::bigint = pg_catalog.txid_current() & 4294967295"
_OURS_OR_NEW = _OURS.replace("OR pg_catalog.obj", f"OR {_MADE_NOW}\n            OR pg_catalog.obj")


def _granted(ours: str) -> str:
    """Return SQL for the privileges of roles other than the owner."""
    return f"""
    WITH ours AS ({ours}
    ), relations AS (
        SELECT oid, relname AS within, relowner, relacl, 'TABLE' AS kind FROM ours
        UNION ALL
        SELECT s.oid, ours.relname, s.relowner, s.relacl, 'SEQUENCE'
        FROM pg_catalog.pg_class s
        JOIN pg_catalog.pg_depend d ON d.objid = s.oid AND d.deptype IN ('a', 'i')
            AND d.classid = 'pg_catalog.pg_class'::regclass
            AND d.refclassid = 'pg_catalog.pg_class'::regclass
        JOIN ours ON ours.oid = d.refobjid
        WHERE s.relkind = 'S'
    ), grants AS (
        SELECT r.oid, r.kind, r.within, r.relowner, g.grantee, g.privilege_type
        FROM relations r CROSS JOIN LATERAL pg_catalog.aclexplode(r.relacl) g
        UNION
        SELECT r.oid, r.kind, r.within, r.relowner, g.grantee, g.privilege_type
        FROM relations r
        JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid
        CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) g
    )
    SELECT grants.oid, kind, within, privilege_type,
        CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.pg_get_userbyid(grantee) END AS role,
        CASE WHEN grantee = 0 THEN 'PUBLIC'
            ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END AS quoted
    FROM grants WHERE grantee <> relowner"""


def _added(ours: str) -> str:
    """Return SQL for triggers, rules and policies on our tables, and how to drop each."""
    return f"""
    WITH ours AS ({ours}
    )
    SELECT 'trigger' AS kind, t.tgname AS name, ours.relname AS within,
        pg_catalog.format('DROP TRIGGER %I ON %s', t.tgname, ours.oid::regclass) AS drop
    FROM pg_catalog.pg_trigger t JOIN ours ON ours.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', r.rulename, ours.relname,
        pg_catalog.format('DROP RULE %I ON %s', r.rulename, ours.oid::regclass)
    FROM pg_catalog.pg_rewrite r JOIN ours ON ours.oid = r.ev_class
    UNION ALL
    SELECT 'policy', p.polname, ours.relname,
        pg_catalog.format('DROP POLICY %I ON %s', p.polname, ours.oid::regclass)
    FROM pg_catalog.pg_policy p JOIN ours ON ours.oid = p.polrelid"""


CLOSE = f"""DO $close$
DECLARE
    found record;
BEGIN
    FOR found IN {_OURS_OR_NEW}
    LOOP
        IF NOT found.relrowsecurity THEN
            EXECUTE pg_catalog.format(
                'ALTER TABLE %s ENABLE ROW LEVEL SECURITY', found.oid::regclass
            );
        END IF;
        IF found.relforcerowsecurity THEN
            EXECUTE pg_catalog.format(
                'ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', found.oid::regclass
            );
        END IF;
        IF pg_catalog.obj_description(found.oid, 'pg_class') IS DISTINCT FROM '{tables.MARK}' THEN
            EXECUTE pg_catalog.format(
                'COMMENT ON TABLE %s IS %L', found.oid::regclass, '{tables.MARK}'
            );
        END IF;
    END LOOP;
    FOR found IN SELECT DISTINCT oid, kind, quoted FROM ({_granted(_OURS)}) g
    LOOP
        EXECUTE pg_catalog.format(
            'REVOKE ALL ON %s %s FROM %s CASCADE', found.kind, found.oid::regclass, found.quoted
        );
    END LOOP;
    FOR found IN SELECT * FROM ({_added(_OURS)}) a
    LOOP
        EXECUTE found.drop;
    END LOOP;
END
$close$;"""
# PostgreSQL locks dropped tables in the order in which they are named. Transactions of a running
# service lock these tables in this order; another order could deadlock.
_LOCK_ORDER = (
    *("users", "tokens", "sign_ins", "tickets", "sessions"),
    *("vms", "slots", "credentials", "credential_events", "webhook_events", "session_news"),
    *("webhook_deliveries", "webhook_gone"),
)
_LOCKED = f"pg_catalog.array_position(ARRAY{list(_LOCK_ORDER)!r}, relname::text), relname"
DROP = f"""DO $drop$
DECLARE
    named text;
BEGIN
    SELECT pg_catalog.string_agg(oid::regclass::text, ', ' ORDER BY {_LOCKED}) INTO named
        FROM ({_OURS}) ours;
    IF named IS NOT NULL THEN
        EXECUTE 'DROP TABLE ' || named;
    END IF;
END
$drop$;"""
_EXPOSED = sa.text(
    "SELECT role, pg_catalog.string_agg(DISTINCT privilege_type, ', ') AS privileges,"
    " pg_catalog.string_agg(DISTINCT within::text, ', ') AS tables"
    f" FROM ({_granted(_OURS)}) g GROUP BY role ORDER BY role".replace(":", r"\:")
)
_LOOSE = sa.text(
    "SELECT relname, relrowsecurity, relforcerowsecurity,"
    " pg_catalog.pg_get_userbyid(relowner) AS owner, current_user AS role,"
    " pg_catalog.pg_has_role(current_user, relowner, 'USAGE') AS is_owner"
    f" FROM ({_OURS}) ours ORDER BY relname".replace(":", r"\:")
)
_ADDED = sa.text(
    f"SELECT * FROM ({_added(_OURS)}) a ORDER BY kind, within, name".replace(":", r"\:")
)


async def exposed_to(connection: AsyncConnection) -> dict[str, str]:
    """Return the roles besides the owner that may use our tables, with their privileges."""
    if connection.dialect.name != "postgresql":
        return {}
    rows = await connection.execute(_EXPOSED)
    return {row.role: f"{row.privileges} on {row.tables}" for row in rows}


def close_access(connection: sa.Connection) -> None:
    """Let only the owner use our tables, in the caller's transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(CLOSE, execution_options={"no_parameters": True})


def access_differences(connection: sa.Connection) -> Iterator[str]:
    """Yield what `CLOSE` would change: `-` what is there, `+` what should be."""
    if connection.dialect.name != "postgresql":
        return
    for row in connection.execute(_EXPOSED):
        yield f"- {row.role} may {row.privileges} on {row.tables}"
    for row in connection.execute(_LOOSE):
        if not row.relrowsecurity:
            yield f"+ table {row.relname}: row level security"
        if row.relforcerowsecurity:
            yield f"- table {row.relname}: row level security, forced on its owner too"
    for row in connection.execute(_ADDED):
        yield f"- {row.kind} {row.name} on {row.within}"


def owner_differences(connection: sa.Connection) -> Iterator[str]:
    """Yield the actual and the wanted owner of tables whose owner we may not act as."""
    if connection.dialect.name != "postgresql":
        return
    for row in connection.execute(_LOOSE):
        if not row.is_owner:
            yield f"- table {row.relname}: owner {row.owner}"
            yield f"+ table {row.relname}: owner {row.role}"
