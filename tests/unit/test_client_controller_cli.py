"""The controller's command line over SSH: how its failures are reported here."""

from __future__ import annotations

from pathlib import Path

import pytest

from polydev.client.controller_cli import HostController, _new_file, refusal
from polydev.errors import ConfigError, DeployError
from polydev.ssh import SshTarget

TARGET = SshTarget("lab-dev", "192.0.2.1", user="deploy")


def test_controller_error_keeps_message_and_hint() -> None:
    said = '{"event": "a line of the log"}\nerror: there is a user 1\nnext:  choose another\n'
    error = refusal(TARGET, 1, said)
    assert (error.message, error.hint) == ("lab-dev: there is a user 1", "choose another")


def test_controller_error_without_a_hint() -> None:
    error = refusal(TARGET, 1, "error: no\n")
    assert (error.message, error.hint) == ("lab-dev: no", None)


def test_usage_error_keeps_the_message_of_argparse() -> None:
    said = "usage: master-controller user add\nmaster-controller user add: error: --id: no UUID\n"
    error = refusal(TARGET, 2, said)
    assert error.message == "lab-dev: --id: no UUID"
    assert "--help" in str(error.hint)


def test_ssh_failure_is_reported_as_unreachable() -> None:
    error = refusal(TARGET, 255, "Permission denied (publickey).\n")
    assert "cannot reach lab-dev over SSH: Permission denied" in error.message
    assert "ssh deploy@192.0.2.1" in str(error.hint)


def test_failure_without_output_is_reported() -> None:
    assert refusal(TARGET, 137, "").message == "lab-dev: master-controller failed: no output"


def test_host_tool_error_keeps_message_and_hint() -> None:
    said = '{"error": "lock-held", "message": "ada deploys", "hint": "wait for it"}\n'
    error = refusal(TARGET, 1, "polydev-host: lock-held: ada deploys\n", said)
    assert (error.message, error.hint) == ("lab-dev: ada deploys", "wait for it")


def test_host_tool_without_the_verb_is_reported_as_old() -> None:
    said = '{"error": "usage", "message": "polydev-host: invalid choice", "hint": null}\n'
    error = refusal(TARGET, 1, "", said)
    assert error.message == "lab-dev: its host tool is older than this checkout"
    assert "./inv deploy" in str(error.hint)


def test_host_without_a_host_tool_is_reported() -> None:
    error = refusal(TARGET, 1, "sudo: /opt/polydev-ai/bin/polydev-host: command not found\n")
    assert error.message == "lab-dev: no controller is deployed there"


def test_backup_file_is_private_and_named_when_complete(tmp_path: Path) -> None:
    file, part = tmp_path / "copy", tmp_path / "copy.part"
    part.write_text("of a run that was killed")
    part.chmod(0o644)
    with pytest.raises(ZeroDivisionError), _new_file(file) as copy:
        copy.write(b"half")
        assert part.stat().st_mode & 0o777 == 0o600
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with _new_file(file) as copy:
        copy.write(b"all")
        assert not file.exists()
    assert file.read_bytes() == b"all"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_unwritable_target_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(ConfigError, match=r"cannot write .*: Not a directory")
    with refused, _new_file(tmp_path / "file" / "copy"):
        pass


def test_existing_backup_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("as it was")
    with pytest.raises(ConfigError, match="already exists"):
        HostController(TARGET).back_up(tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "as it was"


@pytest.mark.parametrize(
    ("stop", "hint", "shown"),
    [
        (False, "stop the service", "./inv database.restore 'a copy' --stop"),
        (True, "stop the service", "stop the service"),
        (False, "run it again", "run it again"),
    ],
)
def test_restore_error_names_the_local_file(
    stop: bool, hint: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a copy").touch()

    def refuse(*_: object, **__: object) -> None:
        raise DeployError("/opt/polydev-ai/exchange/dump is no copy", hint)

    monkeypatch.setattr(HostController, "_exchange", refuse)
    with pytest.raises(DeployError) as told:
        HostController(TARGET).restore(Path("a copy"), stop=stop)
    assert (told.value.message, told.value.hint) == ("a copy is no copy", shown)
    with pytest.raises(ConfigError, match=r"cannot read .*none: No such file"):
        HostController(TARGET).restore(Path("none"), stop=stop)
