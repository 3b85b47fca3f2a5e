"""Failures of a deployment: the previous release continues, and the record says why.

Each fault is a change of the checkout that is deployed from, or something done to the host or
to the operator's process half-way. Afterwards the host is listed to be exactly as before.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from polydev.controller.migrations import HEAD
from polydev.deployment_records import Record
from polydev.errors import DeployError
from polydev.host_setup import units
from polydev.processes import Process, end_group, spawn
from tests.hosts import ROOT, TOOL, DeployedHost, variant

AWAIT_SECONDS = 600.0
SLOW_UNIT = "polydev-dns.service"


def replaced(root: Path, path: str, old: str, new: str) -> None:
    file = root / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def controller_that_exits(root: Path) -> None:
    server = root / "src/polydev/controller/server.py"
    server.write_text(
        f"{server.read_text()}\n\ndef serve(*_: object, **__: object) -> int:\n"
        '    raise SystemExit("the new release has a bug")\n'
    )


def controller_that_answers_503(root: Path) -> None:
    replaced(root, "src/polydev/controller/health.py", "if any(", "if True or any(")


def controller_that_becomes_unhealthy(root: Path) -> None:
    """A controller that is healthy during the handover and unhealthy once it serves alone."""
    health = root / "src/polydev/controller/health.py"
    replaced(root, "src/polydev/controller/health.py", "if any(", "if ALONE or any(")
    health.write_text(
        health.read_text().replace(
            "import asyncio\n",
            'import asyncio\nimport sys\n\nALONE = "--only-if-healthy" not in sys.argv\n',
        )
    )


def socket_that_cannot_listen(root: Path) -> None:
    """Put an invalid address into the socket template, where planning does not check it."""
    template = "templates/etc/systemd/system/master-controller.socket.j2"
    replaced(root, template, "ListenStream={{ listen }}", "ListenStream=localhost:4000")


def failing_operation(root: Path) -> None:
    dns = root / "templates/etc/polydev/dns.conf.j2"
    dns.write_text(f"{dns.read_text()}no-such-option\n")


def failing_migration(root: Path, after: str = HEAD) -> None:
    migrations = root / "src/polydev/controller/migrations"
    (migrations / "versions/half.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n\n"
        f'revision = "half"\ndown_revision = "{after}"\n\n\n'
        "def upgrade() -> None:\n"
        '    op.create_table("half", sa.Column("id", sa.Text, primary_key=True))\n'
        '    raise RuntimeError("half of the migration is done")\n'
    )
    replaced(root, "src/polydev/controller/migrations/__init__.py", f'"{after}"', '"half"')


def slow_operation(root: Path) -> None:
    """An endless operation after files, slots and firewall were changed."""
    replaced(
        root,
        f"templates/etc/systemd/system/{SLOW_UNIT}.j2",
        "ExecStartPre={{ stamp }}",
        "ExecStartPre={{ stamp }}\nTimeoutStartSec=infinity\nExecStartPre=/bin/sleep infinity",
    )
    replaced(root, "inventory/group_data/lab.py", "slots = 8", "slots = 9")


AT_WORK = "/run/an-operation-at-work"
IS_AT_WORK = "an-operation-at-[w]ork"  # not the shell that looks for it


def operation_that_ignores_signals(root: Path) -> None:
    """An operation outside of any unit that keeps writing and ignores signals."""
    deploy = root / "deploy.py"
    loop = f"trap '' HUP TERM PIPE; while :; do date >>{AT_WORK}; sleep 0.2; done"
    deploy.write_text(
        f"{deploy.read_text()}\nfrom pyinfra.operations import server\n\n"
        f'server.shell(name="does not let go", commands=["{loop}"])\n'
    )
    replaced(root, "inventory/group_data/lab.py", "slots = 8", "slots = 9")


def shut_out(root: Path) -> None:
    replaced(
        root,
        "templates/etc/polydev/firewall.nft.j2",
        'iifname "{{ bridge }}" jump from_vm_to_host',
        'tcp dport 22 ct state new drop\n\t\tiifname "{{ bridge }}" jump from_vm_to_host',
    )


@dataclass(frozen=True)
class Fault:
    """A change of the checkout, and what the failure must say."""

    name: str
    change: Callable[[Path], None]
    words: tuple[str, ...]


FAULTS = (
    Fault("controller-exits", controller_that_exits, ("handover", "the new release has a bug")),
    Fault("controller-answers-503", controller_that_answers_503, ("handover", "unhealthy")),
    Fault(
        "controller-falls-ill", controller_that_becomes_unhealthy, ("failed the health gate", "503")
    ),
    Fault("socket-cannot-listen", socket_that_cannot_listen, ("master-controller.socket",)),
    Fault("operation-fails", failing_operation, (SLOW_UNIT, "bad option at line")),
    Fault("migration-fails", failing_migration, ("migrat", "half of the migration is done")),
)


@dataclass(frozen=True)
class Former:
    """The previous state of the host."""

    release: str
    listing: list[dict[str, object]]


@pytest.fixture
def former(deployed: DeployedHost) -> Former:
    return Former(deployed.release(), deployed.listing())


def require_former_state(host: DeployedHost, former: Former, record: Record, status: str) -> None:
    """Check that the former release serves, the gate passes, and the record says so."""
    assert record.status == status
    assert record.undone
    assert record.undone["gate"]["ok"]
    assert host.release() == former.release
    gate = host.gate()
    assert gate["ok"], gate
    assert host.listing() == former.listing
    assert not host.plan().changing


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_failed_deployment_restores_the_host(
    fault: Fault, deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    with pytest.raises(DeployError) as failure:
        variant(deployed, tmp_path, fault.change).deploy()
    for word in fault.words:
        assert word in failure.value.message
    record = deployed.records()[0]
    assert record.reason
    assert record.reason in failure.value.message
    require_former_state(deployed, former, record, "rolled-back")
    log_file = deployed.logs / f"deployment-{record.id}.log"
    events = [json.loads(line)["event"] for line in log_file.read_text().splitlines()]
    assert {"plan", "start", "failed", "restore", "gate", "record"} <= set(events)


# It exits before journald has read what it wrote, more often than not, and systemd starts it again.
EXITS_AT_ONCE = """
cat >/run/systemd/system/exits-at-once.service <<'FILE'
[Service]
Type=notify
ExecStart=/bin/sh -c 'echo "start $(cat /run/starts): the reason" >&2; exit 1'
Restart=on-failure
RestartSec=100ms
StartLimitBurst=100
FILE
systemctl daemon-reload
"""
RESTART_BY_THE_HOST_TOOL = f"""
cat >/run/restart.py <<'FILE'
import pathlib, sys
from polydev.hosttool.release_handover import Handover, StartError
from polydev.hosttool.systemd import RealSystemd, UnitTimeouts
try:
    Handover(RealSystemd(), pathlib.Path("/"), UnitTimeouts())._start("exits-at-once.service")
except StartError as error:
    print(error.log)
FILE
PYTHONPATH={TOOL} python3 /run/restart.py
"""


def test_failed_start_shows_log_of_process_that_exits_at_once(
    deployed: DeployedHost,
) -> None:
    restart = f"{{ {units._with_journal('restart', 'exits-at-once.service')}; }} 2>&1"
    deployed.inside(EXITS_AT_ONCE)
    for start in range(10):
        # Else journald might read the end of the former run after this start.
        deployed.inside(
            f"systemctl stop exits-at-once.service; journalctl --sync; echo {start} >/run/starts"
        )
        by_operation = deployed.inside(restart, check=False)
        assert f"start {start}: the reason" in by_operation
        assert f"start {start - 1}:" not in by_operation
        by_tool = deployed.inside(RESTART_BY_THE_HOST_TOOL)
        assert set(by_tool.splitlines()) == {f"start {start}: the reason"}
    deployed.inside(
        "systemctl stop exits-at-once.service; rm /run/systemd/system/exits-at-once.service; "
        "systemctl daemon-reload"
    )


# The unit's file is broken for a moment, and the service has to listen by itself.
LOSE_SOCKET = """
file=/etc/systemd/system/master-controller.socket
cp -a $file /root/socket && sed -i 's/^ListenStream=.*/ListenStream=localhost:4000/' $file
systemctl daemon-reload && cp -a /root/socket $file && systemctl daemon-reload
systemctl restart master-controller.service
"""


def test_lost_socket_fails_the_gate_and_is_repaired_by_deploy(deployed: DeployedHost) -> None:
    deployed.inside(LOSE_SOCKET)
    assert deployed.inside("systemctl is-active master-controller.socket") == "active"
    wrong = {check["name"] for check in deployed.gate()["checks"] if not check["ok"]}
    assert wrong == {"socket"}
    assert [operation.name for operation in deployed.plan().changing] == ["Controller | socket"]

    deployed.deploy()

    assert deployed.gate()["ok"]
    assert not deployed.plan().changing


def test_deadman_timer_restores_ssh_access(
    deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    data = {"deadman_seconds": 30}
    other = replace(variant(deployed, tmp_path, shut_out), data=data)
    with pytest.raises(DeployError, match="new connection"):
        other.deploy()
    fired = json.loads(deployed.inside("cat /opt/polydev-ai/deadman.json"))
    assert fired["fired"]
    require_former_state(deployed, former, deployed.records()[0], "rolled-back")


@contextmanager
def full(host: DeployedHost, folder: str) -> Iterator[None]:
    """Fill a folder's filesystem for the block; its files stay visible."""
    host.inside(
        f"mkdir -p /run/full && mount -t tmpfs -o size=2m,mode=755 tmpfs /run/full && "
        f"mkdir /run/full/upper /run/full/work && mount -t overlay overlay "
        f"-o lowerdir={folder},upperdir=/run/full/upper,workdir=/run/full/work {folder} && "
        f"head -c 3M /dev/zero >{folder}/filler 2>/dev/null; true"
    )
    try:
        yield
    finally:
        host.inside(f"umount {folder}; umount /run/full")


@pytest.mark.parametrize(
    ("folder", "status"),
    [("/opt/master-controller/wheels", "rolled-back"), ("/opt/polydev-ai/backups", "failed")],
    ids=["half-way", "before-anything"],
)
def test_deployment_to_full_disk_is_rolled_back(
    folder: str, status: str, deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    def new_release(root: Path) -> None:
        module = root / "src/polydev/controller/__init__.py"
        module.write_text(f"{module.read_text()}# another release\n")

    other = variant(deployed, tmp_path, new_release)
    with full(deployed, folder), pytest.raises(DeployError) as failure:
        other.deploy()
    said = failure.value.message.lower()
    assert any(words in said for words in ("no space left", "no-space", "free")), said
    record = deployed.records()[0]
    assert record.status == status
    assert deployed.release() == former.release
    assert deployed.gate()["ok"]
    assert deployed.listing() == former.listing


OPERATOR = """\
import sys
from pathlib import Path
from polydev.progress import Steps
from polydev.deployment import deploy_and_rollback
from polydev.deployment.pyinfra_process import Project, describe
root, logs = map(Path, sys.argv[1:])
project = Project(root, root / "inventory/lab.py")
options = deploy_and_rollback.DeployOptions()
deploy_and_rollback.deploy(project, describe(project)[0], options, Steps(), logs)
"""


def operator(host: DeployedHost) -> Process:
    """Start a deployment in a process of its own."""
    return spawn([sys.executable, "-c", OPERATOR, host.project.root, host.logs], cwd=ROOT)


def await_slow_operation(host: DeployedHost) -> None:
    deadline = time.monotonic() + AWAIT_SECONDS
    question = (
        f"systemctl show -P ActiveState {SLOW_UNIT}; systemctl show -P ControlPID {SLOW_UNIT}"
    )
    while True:
        state, pid = host.inside(question).split()
        if state == "activating" and pid != "0":
            return
        assert time.monotonic() < deadline, f"{SLOW_UNIT} is {state}"
        time.sleep(0.2)


def await_operation_at_work(host: DeployedHost) -> None:
    host.inside(f"timeout {AWAIT_SECONDS:g} sh -c 'until test -s {AT_WORK}; do sleep 0.2; done'")


def require_nothing_at_work(host: DeployedHost) -> None:
    """Check that no process of a deployment is left, the writing one included."""
    assert host.inside(f"pgrep --full '{IS_AT_WORK}'; true") == ""
    host.inside(f"rm {AT_WORK}")


def test_deployment_of_killed_operator_is_rolled_back_by_the_next(
    deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    process = operator(variant(deployed, tmp_path, operation_that_ignores_signals))
    try:
        await_operation_at_work(deployed)
        died = deployed.records()[0]
        assert died.status == "running"
        with pytest.raises(DeployError, match=died.id):
            deployed.deploy()  # while he lives, the lock is his
        os.kill(process.pid, signal.SIGKILL)
    finally:
        end_group(process)
    assert deployed.inside(f"pgrep --full '{IS_AT_WORK}'"), "it ends with the connection"

    # The host lets go of the lock when the dead operator's connection has ended, a moment later.
    record = deployed.deploy(wait_seconds=AWAIT_SECONDS)

    require_nothing_at_work(deployed)
    assert record.status == "succeeded"
    assert record.changes == 0
    recovered = next(each for each in deployed.records() if each.id == died.id)
    assert recovered.reason
    assert record.id in recovered.reason
    require_former_state(deployed, former, recovered, "interrupted")


KILL = "pkill -KILL -u deploy"
# Nothing tells either side that nothing arrives any more.
CUT = (
    "nft 'table inet cut { chain input { type filter hook input priority -100; "
    "tcp dport 22 drop; }; }'"
)
MEND = "nft delete table inet cut"


@pytest.mark.parametrize(("lose", "mend"), [(KILL, "true"), (CUT, MEND)], ids=["closed", "cut"])
def test_lost_connection_rolls_back_the_deployment(
    lose: str, mend: str, deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    process = operator(variant(deployed, tmp_path, slow_operation))
    try:
        await_slow_operation(deployed)
        log_file = max(deployed.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
        deployed.inside(lose)
        await_text(log_file, '"event": "failed"')
        deployed.inside(mend)
        assert process.wait(AWAIT_SECONDS) != 0
    finally:
        end_group(process)
    require_former_state(deployed, former, deployed.records()[0], "rolled-back")


def await_text(file: Path, text: str) -> None:
    deadline = time.monotonic() + AWAIT_SECONDS
    while text not in file.read_text():
        assert time.monotonic() < deadline, file.read_text()[-2000:]
        time.sleep(0.2)


def test_interrupted_deployment_is_rolled_back(
    deployed: DeployedHost, former: Former, tmp_path: Path
) -> None:
    process = operator(variant(deployed, tmp_path, slow_operation))
    try:
        await_slow_operation(deployed)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(AWAIT_SECONDS) != 0
    finally:
        end_group(process)
    require_former_state(deployed, former, deployed.records()[0], "rolled-back")
