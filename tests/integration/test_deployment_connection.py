"""Commands for a host over a fake ssh, which runs them on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from polydev.deployment import connection as connections
from polydev.deployment import history as histories
from polydev.deployment import lock
from polydev.deployment.connection import HostConnection, HostRefused, Unreachable
from polydev.deployment.lock import HostLock
from polydev.errors import DeployError, LockHeld
from polydev.host_setup import deadman
from polydev.processes import LineProcess
from polydev.ssh import SshTarget

TARGET = SshTarget("browsers", "198.51.100.2")
Tool = Callable[[str], None]


@pytest.fixture
def connection(programs: Path) -> Iterator[HostConnection]:
    made = HostConnection(TARGET)
    yield made
    made.close()


@pytest.fixture
def tool(programs: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """Install this shell script as the host tool."""
    file = programs / "polydev-host"
    for module in (connections, histories, lock, deadman):
        monkeypatch.setattr(module, "TOOL", str(file))

    def write(text: str) -> None:
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    return write


def test_command_runs_as_one_shell_line(connection: HostConnection) -> None:
    text = "cat; printf '%s\\n' \"it's $((1 + 1))\" '$HOME'"
    assert connection.command(text, input="in\n") == "in\nit's 2\n$HOME\n"


def test_failed_command_is_reported_with_its_output(connection: HostConnection) -> None:
    with pytest.raises(DeployError, match=r"browsers: sh failed: no room$") as told:
        connection.command("sh -c 'echo no room >&2; exit 3'")
    assert not isinstance(told.value, Unreachable | HostRefused)
    with pytest.raises(DeployError, match=r"browsers: sh failed: no room$"):
        connection.command("sh -c 'echo no room; exit 3'")
    with pytest.raises(DeployError, match=r"browsers: sh failed: no output$"):
        connection.command("sh -c 'exit 3'")


def test_unreachable_host_raises_unreachable(connection: HostConnection, programs: Path) -> None:
    (programs / "ssh.cut").touch()
    with pytest.raises(Unreachable, match="cannot reach browsers over SSH: connection refused"):
        connection.command("true")
    with pytest.raises(Unreachable):
        connection.wait_until_back(0)
    (programs / "ssh.cut").unlink()
    connection.wait_until_back(0)


def test_host_tool_gets_arguments_and_document(connection: HostConnection, tool: Tool) -> None:
    tool("""printf '{"words": "%s", "document": %s}' "$*" "$(cat)" """)
    assert connection.tool("look", "a b", document={"x": 1}) == {
        "words": "look a b",
        "document": {"x": 1},
    }
    tool("echo '[1, 2]'")
    assert connection.tool("list") == {"items": [1, 2]}
    tool("""echo '{"error": "backup-damaged", "message": "no", "hint": "other"}'; exit 1""")
    with pytest.raises(HostRefused, match="browsers: no"):
        connection.tool("restore")


def test_closing_does_not_wait_for_ssh_that_stands_still(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.1)
    made = HostConnection(TARGET)
    (programs / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
    made.close()
    assert not Path(made._sockets.name).exists()


class TestLock:
    GIVEN = '{"lock": {"id": "1-a", "since": "2026-11-21T10:00:00+00:00"}, "stale": {"id": "0-b"}}'

    def test_lock_is_held_until_released(self, tool: Tool, tmp_path: Path) -> None:
        heard = tmp_path / "heard"
        tool(f"echo \"$*\" >{heard}; echo '{self.GIVEN}'; head -n 1 >>{heard}")
        lock = HostLock(TARGET, "1-a", "ada", "deploy", again=True)
        assert lock.is_held
        assert lock.stale == {"id": "0-b"}
        assert lock.clock_offset_seconds != 0
        lock.release()
        assert not lock.is_held
        words = "lock hold --id 1-a --owner ada --purpose deploy --seconds 120 --again"
        assert heard.read_text() == f"{words}\nrelease\n"

    def test_lock_is_renewed_until_it_is_released(
        self, tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lock, "RENEW_SECONDS", 0.01)
        heard = tmp_path / "heard"
        os.mkfifo(heard)
        tool(f"echo '{self.GIVEN}'; timeout 60 head -n 2 >{heard}")
        held = HostLock(TARGET, "1-a", "ada", "deploy")
        assert heard.read_text() == "renew\nrenew\n"
        held.release()

    def test_refused_lock_leaves_no_process(
        self, tool: Tool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[LineProcess] = []

        class NotedProcess(LineProcess):
            def __init__(self, argv: Sequence[str | Path]) -> None:
                super().__init__(argv)
                made.append(self)

        monkeypatch.setattr(lock, "LineProcess", NotedProcess)
        refusal = """{"error": "lock-held", "message": "bob has it"}"""
        tool(f"echo '{refusal}'; exec sleep 600")
        with pytest.raises(LockHeld):
            HostLock(TARGET, "1-a", "ada", "deploy")
        assert [each.is_running for each in made] == [False]

    def test_lock_of_another_operator_is_refused(self, tool: Tool) -> None:
        tool("""echo '{"error": "lock-held", "message": "bob has it"}'; exit 1""")
        with pytest.raises(LockHeld, match="browsers: bob has it"):
            HostLock(TARGET, "1-a", "ada", "deploy")

    def test_unreachable_host_raises_unreachable(self, programs: Path) -> None:
        (programs / "ssh.cut").touch()
        with pytest.raises(Unreachable, match="cannot lock browsers: connection refused"):
            HostLock(TARGET, "1-a", "ada", "deploy")


def test_only_record_of_lock_owner_is_running(connection: HostConnection, tool: Tool) -> None:
    assert histories.history(connection) == [], "a host without the tool"
    ids = ["before", "between", "broken-off"]
    records = [{"id": each, "startedAt": "2026-11-21T10:00:00Z"} for each in ids]
    tool(f"""
case "$1 $2" in
"record list") echo '{json.dumps({"records": [*records, {"id": "of an older tool"}]})}';;
*)  [ -e "$0.asked" ] && id=between || id=before
    echo '{{"held": true, "lock": {{"id": "'$id'"}}}}'; touch "$0.asked";;
esac""")
    found = {record.id: record.status for record in histories.history(connection)}
    assert found == {"before": "running", "between": "running", "broken-off": "interrupted"}
    tool(f"""
[ "$1" = lock ] || echo '{json.dumps({"records": records})}'
[ "$1" != lock ] || echo '{{"held": false, "lock": {{"id": "before"}}}}'""")
    assert {record.status for record in histories.history(connection)} == {"interrupted"}


def test_deadman_confirm_is_retried_until_host_answers(tool: Tool, tmp_path: Path) -> None:
    tried = tmp_path / "tried"
    tool(f"""echo "$*" >>{tried}; [ "$(wc -l <{tried})" -gt 1 ]""")
    deadman.confirm_over_new_connection(TARGET, 60)
    assert tried.read_text() == "deadman confirm\n" * 2


def test_deadman_confirm_hears_of_a_revert_that_takes_a_while(tool: Tool, tmp_path: Path) -> None:
    """The time to confirm is over, and a busy host has yet to let its operator in again."""
    tried = tmp_path / "tried"
    tool(f"""echo again >>{tried}
[ "$(wc -l <{tried})" -gt 2 ] && echo deadman-fired >&2 || echo no route >&2
exit 1""")
    with pytest.raises(DeployError, match=r"deadman-fired$"):
        deadman.confirm_over_new_connection(TARGET, 0)
    assert tried.read_text() == "again\n" * 3


@pytest.mark.parametrize(("said", "seconds"), [("no route", 0), ("deadman-fired", 2)])
def test_deadman_confirm_reports_why_host_cannot_be_reached(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, seconds: int
) -> None:
    monkeypatch.setattr(deadman, "REVERT_SECONDS", 0)
    tried = tmp_path / "tried"
    tool(f"echo again >>{tried}; echo {said} >&2; exit 1")
    with pytest.raises(DeployError, match=rf"cannot reach browsers (.|\n)*{said}$"):
        deadman.confirm_over_new_connection(TARGET, seconds)
    assert tried.read_text() == "again\n"
