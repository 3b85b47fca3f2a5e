"""Operators' verbs on a real host: its controller through SSH, its users, its journal."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from polydev.processes import run, spawn
from tests.hosts import ROOT, DeployedHost
from tests.operators import Operator


@pytest.fixture(scope="module")
def operator(deployed: DeployedHost) -> Iterator[Operator]:
    """An admin of the host, removed afterwards."""
    nobody = Operator(deployed)
    admin = nobody.answer("user.add", "--role", "admin", "--name", "op 1")["id"]
    token = nobody.answer("token.create", "--user", "op 1", "--name", "tests")["token"]
    yield Operator(deployed, token)
    assert nobody.answer("user.remove", admin)["tokens"] == 1


def test_verbs_reach_controller_through_ssh(operator: Operator) -> None:
    assert operator.answer("sessions") == []
    assert operator.answer("vms") == []
    assert isinstance(operator.answer("alerts", "--all"), list)
    refused = Operator(operator.host, "pdt_wrong")("sessions", in_json=False)
    assert refused.status == 1
    assert "./inv token.create --inventory inventory/lab.py --user" in refused.stderr


def test_usage_by_user_and_screenshot_of_unknown_vm(
    operator: Operator,
) -> None:
    found = operator.answer("usage", "--days", "2")
    admins = [each for each in found["users"] if each["name"] == "op 1"]
    assert [(each["role"], each["total"]["vmSeconds"]) for each in admins] == [("admin", 0)]
    assert operator.answer("usage", "--user", "op 1")["users"] == admins
    refused = operator("screenshot", "00000000", in_json=False)
    assert (refused.status, "there is no VM 00000000" in refused.stderr) == (1, True)


def test_template_verbs_report_that_templates_are_off(operator: Operator) -> None:
    refused = operator("template.build", in_json=False)
    assert refused.status == 1
    assert f"templates are off on {operator.host.host.name}" in refused.stderr
    found = operator.answer("templates")
    assert (found["enabled"], found["serving"]) == (False, None)
    assert found["goldenImage"] == operator.host.golden_image().name
    none = operator("template.show", in_json=False)
    assert (none.status, "no template serves: templates are off" in none.stderr) == (1, True)


def test_users_are_named_by_name_and_removed(operator: Operator) -> None:
    ada = operator.answer("user.add", "--role", "user", "--name", "Ada")["id"]
    made = operator.answer("token.create", "--user", "Ada", "--name", "laptop")
    assert made["userId"] == ada
    assert made["expiresAt"]
    assert operator.answer("user.rename", ada[:8], "Ada L.")["name"] == "Ada L."
    assert operator.answer("user.remove", "Ada L.")["tokens"] == 1
    assert ada not in [each["id"] for each in operator.answer("user.list")]


def test_alert_test_without_addresses_prints_next_step(operator: Operator) -> None:
    refused = operator("alert.test")
    assert refused.status == 1
    assert "alert-urls" in json.loads(refused.stdout)["message"]


def test_host_logs_and_host_shell(operator: Operator) -> None:
    lines = operator.answer("host.logs", "--lines", "5")["lines"]
    assert 0 < len(lines) <= 5
    argv = [sys.executable, "-m", "polydev", "--search-root", str(ROOT), "host.shell"]
    argv += ["--inventory", "inventory/lab.py"]
    shell = run(argv, cwd=ROOT, input="id -u\n(exit 3)\n", check=False)
    assert (shell.status, shell.stdout.strip()) == (3, "0"), "it ends with what was piped in"


def test_ctrl_c_ends_host_logs_follow_with_status_0(operator: Operator) -> None:
    argv = [sys.executable, "-m", "polydev", "--search-root", str(ROOT), "host.logs", "--follow"]
    argv += ["--lines", "1", "--inventory", "inventory/lab.py"]
    following = spawn(argv, cwd=ROOT, stdout=PIPE, stderr=PIPE)
    assert following.stdout
    assert following.stdout.readline(), "it shows what was said before"
    following.send_signal(signal.SIGINT)
    _, said = following.communicate()
    assert following.returncode == 0
    assert said == b""


def test_a_plan_without_changes_ends_with_status_0(operator: Operator) -> None:
    found = operator.answer("deploy", "--plan", "--detailed-exitcode")
    assert found == {"changes": 0, "operations": [], "warnings": []}


def test_database_move_without_url_is_refused(operator: Operator) -> None:
    refused = operator("database.move", "--to", "postgresql", "--plan")
    assert refused.status == 1
    assert "secrets.database-url is missing" in json.loads(refused.stdout)["message"]


def test_session_start_is_idempotent_by_key_and_session_end_ends_it(operator: Operator) -> None:
    ada = operator.answer("user.add", "--role", "user", "--name", "Ada")["id"]
    words = ("--user", "Ada", "--provider", "codex", "--key", "one")
    started = operator.answer("session.start", *words)
    assert (started["userId"], started["provider"]) == (ada, "codex")
    assert operator.answer("session.start", *words)["id"] == started["id"]
    assert [each["id"] for each in operator.answer("sessions")] == [started["id"]]
    # Before its VM has booted: that costs nothing, and other tests boot VMs to their end.
    assert operator.answer("session.end", started["id"][:8])["status"] == "terminated"
    assert operator.answer("user.remove", "Ada")["sessions"] == 1


def test_deployments_lists_all_or_shows_one(operator: Operator) -> None:
    newest, *_ = operator.answer("deployments", "--limit", "1")
    assert operator.answer("deployments", newest["id"]) == newest
    shown = operator("deployments", in_json=False).stdout
    assert newest["id"] in shown


def test_hints_repeat_the_inventory(operator: Operator, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    done = operator("database.backup", str(copy), in_json=False)
    assert done.status == 0, done.stderr
    # The lab's inventory is what the verbs take by themselves, so it need not be named.
    assert f"./inv database.restore {copy}" in done.stdout
