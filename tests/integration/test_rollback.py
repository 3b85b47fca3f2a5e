"""Rollback restores everything, and neither it nor a deployment loses a request."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

from polydev.controller.migrations import HEAD
from polydev.errors import DeployError
from polydev.image.store import ImageStore
from polydev.image_record import (
    ImageRecord,
)
from tests.hosts import DeployedHost, variant
from tests.images import add_image
from tests.load import under_load

DATABASE = "/var/lib/master-controller/controller.sqlite3"
NEW_MIGRATION = f'''\
"""A table that only the test's release knows."""

from alembic import op
import sqlalchemy as sa

revision = "things"
down_revision = "{HEAD}"


def upgrade() -> None:
    op.create_table("things", sa.Column("id", sa.Text, primary_key=True))
'''


def with_new_controller(root: Path) -> None:
    """A release with other code and another database schema."""
    package = root / "src/polydev/controller"
    migrations = package / "migrations"
    (migrations / "versions/things.py").write_text(NEW_MIGRATION)
    head = migrations / "__init__.py"
    head.write_text(head.read_text().replace(f'HEAD = "{HEAD}"', 'HEAD = "things"'))


def with_more_slots(root: Path) -> None:
    data = root / "inventory/group_data/lab.py"
    data.write_text(data.read_text().replace("slots = 8", "slots = 9"))


def with_other_dns_file(root: Path) -> None:
    dns = root / "templates/etc/polydev/dns.conf.j2"
    dns.write_text(f"{dns.read_text()}# another file\n")


def with_all_changed(root: Path) -> None:
    with_new_controller(root)
    with_more_slots(root)


def rows(host: DeployedHost, query: str) -> list[list[object]]:
    program = (
        "import json, sqlite3, sys; "
        f"connection = sqlite3.connect('{DATABASE}', timeout=60); "
        "print(json.dumps(connection.execute(sys.argv[1]).fetchall()))"
    )
    found: list[list[object]] = json.loads(host.inside(f'python3 -c "{program}" "{query}"'))
    return found


def run_sql(host: DeployedHost, statement: str) -> None:
    program = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], timeout=60); "
        "connection.execute(sys.argv[2]); connection.commit()"
    )
    host.inside(f'python3 -c "{program}" {DATABASE} "{statement}"')


@pytest.fixture
def other_image(tmp_path: Path) -> ImageRecord:
    """A small image in its own store, which is never booted."""
    store = ImageStore(tmp_path / "store")
    return add_image(store, "another image", datetime.now(timezone.utc), verified=True)


@pytest.fixture
def changed(
    deployed: DeployedHost, tmp_path: Path, other_image: ImageRecord
) -> Callable[[Callable[[Path], None]], DeployedHost]:
    """The same host from a changed checkout, and with another image."""

    def make(change: Callable[[Path], None]) -> DeployedHost:
        data = {"store": str(tmp_path / "store"), "image": other_image.digest}
        return replace(variant(deployed, tmp_path, change), data=data)

    return make


def test_rollback_restores_everything(
    deployed: DeployedHost, changed: Callable[[Callable[[Path], None]], DeployedHost]
) -> None:
    run_sql(
        deployed, "insert into users (id, role, created_at) values ('kept', 'user', '2026-01-01')"
    )
    before, former = deployed.listing(), deployed.release()

    other = changed(with_all_changed)
    record = other.deploy()
    assert other.release() == record.id != former
    run_sql(deployed, "insert into things values ('lost')")
    assert deployed.inside("ip netns list | grep -c slot-") == "9"
    assert other.listing() != before

    back = deployed.rollback()

    assert back.status == "succeeded"
    assert back.state == record.previous
    assert back.gate
    assert back.gate["ok"]
    assert deployed.listing() == before
    assert deployed.release() == former
    assert deployed.inside("ip netns list | grep -c slot-") == "8"
    assert rows(deployed, "select id from users where id = 'kept'") == [["kept"]]
    assert rows(deployed, "select count(*) from sqlite_master where name = 'things'") == [[0]]
    run_sql(deployed, "delete from users where id = 'kept'")
    assert not deployed.plan().changing


def test_deploy_and_rollback_under_load_lose_no_request(
    deployed: DeployedHost, tmp_path: Path
) -> None:
    other = variant(deployed, tmp_path, with_new_controller)
    former = deployed.release()
    with under_load(deployed.lab.address, 4000) as load:
        record = other.deploy(target="master-controller")
        deployed.rollback()
    assert load.failures == []
    assert set(load.answers) == {former, record.id}
    # Requests of all clients came before, between and after both handovers, however fast.
    assert min(load.answers.values()) >= 40


def test_rollback_to_failed_deployment_is_refused(deployed: DeployedHost, tmp_path: Path) -> None:
    def broken(root: Path) -> None:
        dns = root / "templates/etc/polydev/dns.conf.j2"
        dns.write_text(dns.read_text() + "no-such-option\n")

    with pytest.raises(DeployError):
        variant(deployed, tmp_path, broken).deploy()
    failed = deployed.records()[0]
    assert failed.status == "rolled-back"
    with pytest.raises(DeployError, match=f"{failed.id} is rolled-back"):
        deployed.rollback(to=failed.id)
    with pytest.raises(DeployError, match="no deployment 20200101_000000-abcd"):
        deployed.rollback(to="20200101_000000-abcd")


def test_rollback_from_damaged_backup_is_refused_with_alternative(
    deployed: DeployedHost, tmp_path: Path
) -> None:
    first = deployed.records()[0].state
    second = variant(deployed, tmp_path / "2", with_other_dns_file).deploy()
    # Its backup is what a rollback to `first` takes; the next one has that to `second`.
    third = deployed.deploy()
    before = deployed.listing()
    saved = deployed.inside(f"ls /opt/polydev-ai/backups/{third.id}/files/* | head -1")
    deployed.inside(f"cp -a {saved} /root/saved && echo damage >>{saved}")

    with pytest.raises(DeployError, match="damaged") as refused:
        deployed.rollback()

    assert refused.value.hint
    assert f"--to {first}" in refused.value.hint
    assert deployed.records()[0].id == third.id
    assert deployed.listing() == before
    deployed.inside(f"cp -a /root/saved {saved}")
    assert deployed.rollback().state == second.id
    deployed.deploy()
    shutil.rmtree(tmp_path / "2")


def test_rollback_to_damaged_release_is_refused(deployed: DeployedHost, tmp_path: Path) -> None:
    former = deployed.release()
    variant(deployed, tmp_path, with_new_controller).deploy(target="master-controller")
    program = f"/opt/master-controller/releases/{former}/venv/bin/master-controller"
    deployed.inside(f"cp -a {program} /root/program && echo '# damage' >>{program}")
    with pytest.raises(DeployError, match="master-controller"):
        deployed.rollback()
    deployed.inside(f"cp -a /root/program {program}")
    deployed.rollback()
    assert deployed.release() == former
