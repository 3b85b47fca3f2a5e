"""A controller that moves to PostgreSQL with all its data, is upgraded there, and moved back.

A real server on this machine serves it, at the lab's gateway and for the lab's address only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote

import httpx
import pytest

from polydev.client.controller_cli import HostController
from polydev.client.credentials_key import FILE
from polydev.controller.migrations import HEAD
from polydev.deployment import deploy_and_rollback
from polydev.deployment.deploy_and_rollback import move_options
from polydev.errors import DeployError
from polydev.progress import Steps
from tests.databases import PostgresServer, running_server
from tests.hosts import DATABASE, DeployedHost, variant
from tests.integration.second_host.test_deploy_faults import failing_migration
from tests.integration.test_rollback import with_new_controller

PASSWORD = "s3cret-that-nobody-sees"
TARGET = "master-controller"
CHANGED_BY_HAND = (
    "GRANT SELECT ON users TO PUBLIC",
    "ALTER TABLE tokens DISABLE ROW LEVEL SECURITY",
    "DROP INDEX vms_slot_held",
    "CREATE RULE silence AS ON INSERT TO alerts DO INSTEAD NOTHING",
)
NAMED = (
    "- PUBLIC may SELECT on users",
    "+ table tokens: row level security",
    "+ index vms_slot_held",
    "- rule silence on alerts",
)


@pytest.fixture
def server(deployed: DeployedHost) -> Iterator[PostgresServer]:
    lab = deployed.lab
    hba = f"local all all trust\nhost all owner {lab.address}/32 scram-sha-256\n"
    with running_server(lab.gateway, hba) as server:
        server.do(f"ALTER ROLE owner PASSWORD '{PASSWORD}'")
        yield server


def with_failing_migration(root: Path) -> None:
    """The release after `with_new_controller`, with a migration that fails half-way."""
    with_new_controller(root)
    failing_migration(root, after="things")


def with_database(host: DeployedHost, server: PostgresServer, file: Path, url: str) -> DeployedHost:
    """The same host whose controller has the database at this address, as its secret says."""
    file.write_text(f"{url}\n")
    secrets = {FILE: str(host.lab.folder / FILE), "database-url": str(file)}
    return replace(host, data={"secrets": secrets})


def add_long_user_name_in_sqlite(host: DeployedHost, user: str, name: str) -> None:
    """Name a user in the host's SQLite, which takes longer names than PostgreSQL."""
    change = f"UPDATE users SET name = '{name}' WHERE id = '{user}'"
    connect = f'import sqlite3; c = sqlite3.connect("{DATABASE}", timeout=60)'
    code = f'{connect}; c.execute("{change}"); c.commit()'
    host.inside(f"python3 -c {quote(code)}")


def test_move_to_postgresql_upgrade_and_rollback(
    deployed: DeployedHost, server: PostgresServer, tmp_path: Path
) -> None:
    before, former = deployed.records()[0].state, deployed.release()
    name = server.create()
    words = f"PostgreSQL, {name} at {server.address} as owner"
    url = f"postgresql+psycopg://owner:{PASSWORD}@{server.address}/{name}"

    # An unusable database is reported while the deployment is planned.
    records = len(deployed.records())
    wrong = with_database(deployed, server, tmp_path / "wrong", url.replace(PASSWORD, "wr0ng"))
    for action in (wrong.plan, wrong.deploy):
        with pytest.raises(DeployError, match="password authentication failed") as failure:
            action(target=TARGET)
        assert "wr0ng" not in failure.value.message
    assert len(deployed.records()) == records

    # A deployment of the secret alone would begin with an empty database, which the plan says.
    other = with_database(deployed, server, tmp_path / "url", url)
    planned = other.plan(target=TARGET)
    assert any("database.move --to postgresql takes them along" in w for w in planned.warnings)
    (said,) = [each.name for each in planned.changing if "database: " in each.name]
    assert f"{words} instead of SQLite, nothing is copied" in said

    # A move copies all rows.
    there = HostController(deployed.host.target)
    user = there.ask("user", "add", "--role", "admin")["id"]
    token = there.ask("token", "create", "--user", user, "--name", "old", "--never")["token"]
    users = {each["id"] for each in there.ask("user", "list")}
    moving = move_options(replace_rows=False)
    moving = replace(moving, data={**other.data, **moving.data})
    arguments = (other.project, other.host, moving, Steps(), other.logs)

    # A move whose copy fails leaves the host with SQLite and all rows written meanwhile.
    add_long_user_name_in_sqlite(deployed, user, "x" * 300)
    with pytest.raises(DeployError, match="rejects a row of users"):
        deploy_and_rollback.move_database(*arguments)
    assert deployed.records()[0].status == "rolled-back"
    assert {each["id"] for each in there.ask("user", "list")} == users
    assert not deployed.plan(target=TARGET).changing
    add_long_user_name_in_sqlite(deployed, user, "Ada")

    record, moved = deploy_and_rollback.move_database(*arguments)
    assert other.release() == former
    (said,) = [each for each in record.operations if "database: " in each]
    assert f"{words} instead of SQLite, copied while the controller is stopped" in said
    assert moved["users"] == len(users)
    assert set(server.rows(name, "SELECT id FROM users")) == {(each,) for each in users}
    assert deployed.gate()["ok"]
    sessions = f"http://{deployed.lab.address}:4000/api/auth/sessions"
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(sessions, headers=headers, timeout=60).status_code == 200
    assert not other.plan(target=TARGET).changing
    later_user = there.ask("user", "add", "--role", "user")["id"]
    both = {(each,) for each in (*users, later_user)}

    # A manual change of the schema is drift, and repaired.
    for statement in CHANGED_BY_HAND:
        server.do(statement, name)
    (found,) = other.plan(target=TARGET).changing
    assert found.name == "Controller | database"
    assert set(NAMED) <= {line.strip() for line in found.diff}
    assert other.deploy(target=TARGET).operations == [found.name]
    assert not other.plan(target=TARGET).changing
    server.do("UPDATE alembic_version SET version_num = '9999'", name)
    (found,) = other.plan(target=TARGET).changing
    assert any("revision 9999, which this release does not know" in line for line in found.diff)
    server.do(f"UPDATE alembic_version SET version_num = '{HEAD}'", name)

    # A later release upgrades the schema.
    later = variant(other, tmp_path / "later", with_new_controller)
    upgraded = later.deploy(target=TARGET)
    assert later.release() == upgraded.id
    assert server.rows(name, "SELECT version_num FROM alembic_version") == [("things",)]
    assert server.rows(name, "SELECT count(*) FROM things") == [(0,)]

    # A release whose migration fails changes nothing.
    failing = variant(other, tmp_path / "failing", with_failing_migration)
    with pytest.raises(DeployError, match="half of the migration is done") as broken:
        failing.deploy(target=TARGET)
    assert PASSWORD not in broken.value.message
    assert deployed.records()[0].status == "rolled-back"
    assert later.release() == upgraded.id
    assert set(server.rows(name, "SELECT id FROM users")) == both
    assert deployed.gate()["ok"]

    # Back to the former release with PostgreSQL, and to SQLite as it was when it was left.
    back = deployed.rollback(to=record.id)
    assert back.state == record.id
    assert server.rows(name, "SELECT version_num FROM alembic_version") == [(HEAD,)]
    assert server.rows(name, "SELECT to_regclass('things')") == [(None,)]
    assert set(server.rows(name, "SELECT id FROM users")) == both
    deployed.rollback(to=before)
    assert {each["id"] for each in there.ask("user", "list")} == users
    assert there.ask("user", "remove", user)["tokens"] == 1
    assert not deployed.plan().changing

    # The rows left in PostgreSQL prevent another move.
    with pytest.raises(DeployError, match=r"has rows in .*users") as refused:
        deploy_and_rollback.move_database(*arguments)
    assert "--replace" in str(refused.value.hint)

    logs = "".join(file.read_text() for file in deployed.logs.glob("*.log"))
    journal = deployed.journal()
    assert PASSWORD not in logs
    assert PASSWORD not in journal
    kept = deployed.inside("grep -l -r s3cret-that /opt/polydev-ai /run /tmp /var/tmp", check=False)
    assert all("/backups/" in each for each in kept.splitlines()), "in backups, which are root's"
