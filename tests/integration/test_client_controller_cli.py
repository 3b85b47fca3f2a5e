"""A host's controller over a fake ssh: copies of its database."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.client import controller_cli
from polydev.client.controller_cli import HostController
from polydev.errors import ConfigError, DeployError
from polydev.ssh import SshTarget

HOST = HostController(SshTarget("browsers", "198.51.100.2"))
ANSWER = '{"database": "sqlite"}'


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> Path:
    """The host tool, which is a shell script of the test's."""
    file = programs / "polydev-host"
    monkeypatch.setattr(controller_cli, "TOOL", str(file))
    file.touch(0o755)
    return file


def test_database_backup_is_private_and_renamed_when_complete(tool: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "one.part").write_text("of one that was cut off, which is longer than the next")
    tool.write_text(
        f"#!/bin/sh\nls -A {copies} >{tmp_path}/seen\necho '{ANSWER}'; printf 'a\\nb'\n"
    )
    assert HOST.back_up(copies / "one") == {"database": "sqlite"}
    assert (copies / "one").read_bytes() == b"a\nb"
    assert (copies / "one").stat().st_mode & 0o777 == 0o600
    assert [each.name for each in copies.iterdir()] == ["one"]
    assert (tmp_path / "seen").read_text() == "one.part\n"


def test_failed_database_backup_leaves_no_file(tool: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{ANSWER}'; printf a; echo 'error: no room' >&2; exit 1\n")
    with pytest.raises(DeployError, match="browsers: no room"):
        HOST.back_up(copies / "one")
    assert list(copies.iterdir()) == []
    with pytest.raises(ConfigError, match="cannot write"):
        HOST.back_up(copies / "nowhere/one")


def test_database_backup_does_not_overwrite_a_file(tool: Path, tmp_path: Path) -> None:
    tool.write_text(f"#!/bin/sh\necho '{ANSWER}'; printf new\n")
    (tmp_path / "one").write_text("old")
    with pytest.raises(ConfigError, match="already exists"):
        HOST.back_up(tmp_path / "one")
    assert (tmp_path / "one").read_text() == "old"


@pytest.mark.parametrize("stop", [False, True])
def test_database_restore_sends_the_backup_to_the_host(
    tool: Path, tmp_path: Path, stop: bool
) -> None:
    tool.write_text(
        f"""#!/bin/sh\necho "$@" >{tmp_path}/words; cat >{tmp_path}/got; echo '{{}}'\n"""
    )
    (tmp_path / "one").write_bytes(b"a\nb")
    assert HOST.restore(tmp_path / "one", stop=stop) == {}
    assert (tmp_path / "got").read_bytes() == b"a\nb"
    assert (tmp_path / "words").read_text() == f"database restore{' --stop' * stop}\n"


def test_refused_restore_names_local_file_and_verb(tool: Path, tmp_path: Path) -> None:
    copy = tmp_path / "my copy"
    with pytest.raises(ConfigError, match=r"cannot read .*my copy: No such file"):
        HOST.restore(copy, stop=False)
    copy.touch()
    said = "error: /opt/x/exchange/dump is no copy\\nnext:  stop the service first"
    tool.write_text(f"#!/bin/sh\nprintf '{said}' >&2; exit 1\n")
    with pytest.raises(DeployError) as refused:
        HOST.restore(copy, stop=False)
    assert refused.value.message == f"browsers: {copy} is no copy"
    assert refused.value.hint == f"./inv database.restore '{copy}' --stop"
    with pytest.raises(DeployError) as refused:
        HOST.restore(copy, stop=True)
    assert refused.value.hint == "stop the service first"
