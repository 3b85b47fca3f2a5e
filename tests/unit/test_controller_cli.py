"""`master-controller user|token|database`: their output, effects and refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from polydev.controller.__main__ import main
from polydev.controller.cli.host_verbs import GROUPS
from polydev.controller.cli.verb import opened
from polydev.controller.database import DatabaseUnusable
from polydev.controller.store.users import Tokens
from tests.unit.command_line import CommandLine

USER = "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10"


def user_of(controller: CommandLine, token: str) -> str | None:
    async def look() -> str | None:
        async with opened(controller.url) as database:
            caller = await Tokens(database).caller_of(token)
        return caller.user_id if caller else None

    return asyncio.run(look())


def test_a_user_is_added_listed_and_given_another_role(controller: CommandLine) -> None:
    made = controller("user", "add", "--role", "user", "--name", "Ada", "--id", USER.upper())
    assert (made["id"], made["role"], made["name"]) == (USER, "user", "Ada")
    assert datetime.fromisoformat(made["createdAt"]).tzinfo is not None
    assert controller("user", "list") == [made]
    assert controller("user", "role", USER, "--role", "operator")["role"] == "operator"


@pytest.mark.parametrize("words", [("migrate",), ("health",), ("user", "list")], ids=" ".join)
def test_the_log_of_each_verb_masks_addresses_of_the_configured_network(
    controller: CommandLine, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with controller.config.open("a") as config:
        config.write("vm_network: 10.9.8.0/24\n")
    controller(*words)
    logging.getLogger("anybody").warning("http://10.9.8.7:8080 is silent")
    assert "http://10.9.8.x:8080 is silent" in capsys.readouterr().err


def test_user_without_an_id_gets_one(controller: CommandLine) -> None:
    made = controller("user", "add", "--role", "admin")
    assert str(uuid.UUID(made["id"])) == made["id"]
    assert made["name"] is None


def test_existing_user_is_not_added_again(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    assert USER in controller.refused("user", "add", "--role", "admin", "--id", USER)
    assert [user["role"] for user in controller("user", "list")] == ["user"]


def test_token_is_valid_until_it_is_revoked(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    made = controller("token", "create", "--user", USER, "--name", "tests")
    assert user_of(controller, made["token"]) == USER
    revoked = controller("token", "revoke", made["id"])
    assert revoked["revokedAt"] is not None
    assert user_of(controller, made["token"]) is None


def test_a_token_is_shown_once_and_not_stored(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    token = controller("token", "create", "--user", USER, "--name", "tests")["token"]
    listed = controller("token", "list", "--user", USER)
    assert [each["name"] for each in listed] == ["tests"]
    assert token not in json.dumps(listed)
    files = controller.database.parent.glob("controller.sqlite3*")
    assert all(token.encode() not in file.read_bytes() for file in files)


def test_a_token_can_expire(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    made = controller("token", "create", "--user", USER, "--name", "tests", "--days", "30")
    left = datetime.fromisoformat(made["expiresAt"]) - datetime.now(timezone.utc)
    assert timedelta(days=29) < left <= timedelta(days=30)


def test_token_expires_after_ninety_days_by_default(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    made = controller("token", "create", "--user", USER, "--name", "tests")
    left = datetime.fromisoformat(made["expiresAt"]) - datetime.now(timezone.utc)
    assert timedelta(days=89) < left <= timedelta(days=90)
    made = controller("token", "create", "--user", USER, "--name", "tests", "--never")
    assert made["expiresAt"] is None
    assert user_of(controller, made["token"]) == USER


@pytest.mark.parametrize("who", [USER, USER.upper(), USER[:4], USER[:8].upper(), "Ada"])
def test_user_is_found_by_id_abbreviated_id_or_name(controller: CommandLine, who: str) -> None:
    controller("user", "add", "--role", "user", "--name", "Ada", "--id", USER)
    controller("user", "add", "--role", "user", "--name", "Bob")
    assert controller("user", "show", who)["id"] == USER
    assert controller("user", "role", who, "--role", "admin")["id"] == USER
    assert controller("user", "rename", who, "Ada L.")["name"] == "Ada L."
    made = controller("token", "create", "--user", USER, "--name", "tests")
    assert controller("token", "list", "--user", "Ada L.")[0]["id"] == made["id"]
    assert controller("token", "list", "--user", "Bob") == []


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "\udcff", "\u202eevil", "a\u2028b"])
def test_name_that_is_not_one_line_of_text_is_refused(
    controller: CommandLine, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit):
        controller("user", "add", "--role", "user", "--name", name)
    assert "without control characters" in capsys.readouterr().err
    assert controller("user", "list") == []


def test_names_of_people_are_accepted(controller: CommandLine) -> None:
    for name in ("Zoë Müller-O'Neil", "山田 太郎", "na\u200cme", "👩\u200d💻"):
        assert controller("user", "add", "--role", "user", "--name", name)["name"] == name


def test_ambiguous_user_name_is_refused(controller: CommandLine) -> None:
    ids = [controller("user", "add", "--role", "user", "--name", "Ada")["id"] for _ in range(2)]
    said = controller.refused("token", "create", "--user", "Ada", "--name", "tests")
    assert all(each in said for each in ids)
    assert "there is no user 'Eve'" in controller.refused("user", "role", "Eve", "--role", "admin")
    # A text too short for the beginning of an id may still be a name.
    assert "there is no user" in controller.refused("user", "show", ids[0][:3])


def test_removing_a_user_removes_their_tokens(controller: CommandLine) -> None:
    controller("user", "add", "--role", "user", "--name", "Ada", "--id", USER)
    kept = controller("user", "add", "--role", "user", "--name", "Bob")
    token = controller("token", "create", "--user", "Ada", "--name", "tests")["token"]
    removed = controller("user", "remove", "Ada")
    assert (removed["id"], removed["tokens"], removed["sessions"]) == (USER, 1, 0)
    assert user_of(controller, token) is None
    assert controller("user", "list") == [kept]
    assert "there is no user" in controller.refused("user", "remove", "Ada")


def test_alert_test_needs_alert_urls(controller: CommandLine) -> None:
    said = controller.refused("alert", "test")
    assert "no alert-urls" in said


@pytest.mark.parametrize(
    "words",
    [
        ["user", "role", USER, "--role", "admin"],
        ["token", "create", "--user", USER, "--name", "tests"],
        ["token", "revoke", USER],
    ],
    ids=" ".join,
)
def test_unknown_users_and_tokens_are_refused(controller: CommandLine, words: list[str]) -> None:
    assert USER in controller.refused(*words)


def test_backup_and_restore_return_the_rows(controller: CommandLine, tmp_path: Path) -> None:
    was = controller("user", "add", "--role", "user", "--id", USER)
    copy = tmp_path / "copy"
    made = controller("database", "backup", str(copy))
    assert (made["file"], made["bytes"]) == (str(copy), copy.stat().st_size)
    controller("user", "add", "--role", "admin")
    done = controller("database", "restore", str(copy))
    assert done["rows"]["users"] == 1
    assert controller("user", "list") == [was]


def test_backup_does_not_overwrite_a_file(controller: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    file.write_text("dear")
    assert str(file) in controller.refused("database", "backup", str(file))
    assert file.read_text() == "dear"


def test_restore_refuses_a_file_that_is_not_a_backup(
    controller: CommandLine, tmp_path: Path
) -> None:
    controller("user", "add", "--role", "user", "--id", USER)
    file = tmp_path / "copy"
    file.write_text("no database")
    assert str(file) in controller.refused("database", "restore", str(file))
    assert len(controller("user", "list")) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["user", "add", "--role", "king"],
        ["user", "add", "--role", "user", "--id", "17"],
        ["user", "add", "--role", "user", "--name", ""],
        pytest.param(["user", "add", "--role", "user", "--name", "x" * 201], id="a name too long"),
        ["user", "add"],
        ["token", "create", "--user", USER, "--name", "t", "--days", "0"],
        ["token", "create", "--user", USER, "--name", "t", "--days", "soon"],
        ["token", "create", "--user", USER, "--name", "t", "--days", "1e9"],
        ["token", "revoke"],
        ["database", "backup"],
        ["user"],
    ],
    ids=" ".join,
)
def test_invalid_arguments_exit_with_status_2(controller: CommandLine, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--config", str(controller.config)])
    assert ended.value.code == 2


def test_unmigrated_database_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    controller = CommandLine(tmp_path, capsys)
    controller.database.touch()
    said = controller.refused("user", "list")
    assert "never migrated" in said
    assert "master-controller migrate" in said


def test_missing_database_is_not_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = CommandLine(tmp_path, capsys)
    assert "there is no database" in controller.refused("user", "list")
    assert not controller.database.exists()


def test_damaged_database_is_reported_without_traceback(controller: CommandLine) -> None:
    controller.database.write_bytes(b"not a database" * 1000)
    assert "cannot use the database" in controller.refused("user", "list")


def test_error_closes_the_database_connection(controller: CommandLine) -> None:
    async def fail() -> None:
        async with opened(controller.url) as database, database.reading():
            raise DatabaseUnusable("on purpose")

    with pytest.raises(DatabaseUnusable, match="on purpose"):
        asyncio.run(fail())


def test_templates_build_does_nothing_if_disabled(controller: CommandLine) -> None:
    with controller.config.open("a") as config:
        config.write("templates: false\n")
    assert controller("templates", "build") == {"made": False, "enabled": False}


def test_templates_build_needs_a_golden_image(controller: CommandLine, tmp_path: Path) -> None:
    with controller.config.open("a") as config:
        config.write(f"templates: true\nimage_store: {tmp_path}\n")
    assert "golden" in controller.refused("templates", "build")


@pytest.mark.parametrize(
    "words", [[group, verb] for group, (_, verbs) in GROUPS.items() for verb in verbs], ids=" ".join
)
def test_every_verb_has_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    assert "--config FILE" in capsys.readouterr().out
