"""A tool's credentials file, in a home whose user may have replaced it by anything."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from polydev.agent import credentials_client, credentials_file
from polydev.agent.errors import CheckFailed
from polydev.agent.login_state import login_reply
from polydev.agent.reply_types import LoginStatus
from polydev.agent.settings import AgentSettings
from tests.guest_tools import CREDENTIALS, FILE, kept_by, provider

KEPT = kept_by(provider())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "home/.tool").mkdir(parents=True)
    return tmp_path / "home" / FILE


def read(file: Path) -> dict[str, object] | None:
    return credentials_file.read(str(file.parents[1]), KEPT)


def test_credentials_are_written_read_and_removed(tmp_path: Path) -> None:
    home = str(tmp_path)
    assert credentials_file.read(home, KEPT) is None
    credentials_file.write(home, KEPT, CREDENTIALS)
    credentials_file.write(home, KEPT, {**CREDENTIALS, "expires": 13})
    assert credentials_file.read(home, KEPT) == {**CREDENTIALS, "expires": 13}
    beside = tmp_path / ".tool/more/settings.json"
    assert json.loads(beside.read_text()) == {"theme": "dark"}
    assert (tmp_path / FILE).stat().st_mode & 0o777 == beside.stat().st_mode & 0o777 == 0o600
    credentials_file.remove(home, KEPT)
    credentials_file.remove(home, KEPT)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


LARGE = json.dumps({**CREDENTIALS, "more": "x" * credentials_file.MAX_BYTES})
PUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (lambda file: file.symlink_to("/etc/passwd"), "a link"),
    "a fifo": (lambda file: os.mkfifo(file), "not a regular file of its user"),
    "a folder": (lambda file: file.mkdir(), "Is a directory"),
    "too much": (lambda file: file.write_text(LARGE), "more than 65536 bytes"),
    "no json": (lambda file: file.write_text("{"), "not JSON"),
    "no utf-8": (lambda file: file.write_bytes(b'{"a": "\xff"}'), "not JSON"),
    "deep json": (lambda file: file.write_text("[" * 60000), "not JSON"),
    "not a number": (lambda file: file.write_text('{"a": NaN}'), "not JSON"),
    "no object": (lambda file: file.write_text("[]"), "not a JSON object"),
    "no keys": (lambda file: file.write_text('{"token": {"access": ""}}'), "lacks token.access"),
}


@pytest.mark.parametrize("put", PUT)
def test_anything_but_a_regular_json_file_is_refused(file: Path, put: str) -> None:
    action, words = PUT[put]
    action(file)
    with pytest.raises(CheckFailed, match=words):
        read(file)


def test_linked_folder_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "credentials.json").write_text(json.dumps(CREDENTIALS))
    home = tmp_path / "home"
    home.mkdir()
    (home / ".tool").symlink_to(elsewhere)
    actions: list[Callable[[], object]] = [
        lambda: credentials_file.read(str(home), KEPT),
        lambda: credentials_file.write(str(home), KEPT, CREDENTIALS),
        lambda: credentials_file.remove(str(home), KEPT),
    ]
    for action in actions:
        with pytest.raises(CheckFailed, match="a link"):
            action()
    assert [path.name for path in elsewhere.iterdir()] == ["credentials.json"]


def test_linked_file_is_replaced_and_not_written_through(file: Path) -> None:
    target = file.parents[2] / "target"
    target.write_text("mine")
    file.symlink_to(target)
    file.with_name("credentials.json.new").symlink_to(target)
    credentials_file.write(str(file.parents[1]), KEPT, CREDENTIALS)
    assert target.read_text() == "mine"
    assert read(file) == CREDENTIALS


def test_folder_in_place_of_the_file_is_reported(file: Path) -> None:
    file.mkdir()
    home = str(file.parents[1])
    with pytest.raises(CheckFailed, match="cannot write"):
        credentials_file.write(home, KEPT, CREDENTIALS)
    with pytest.raises(CheckFailed, match="cannot remove"):
        credentials_file.remove(home, KEPT)


def test_credentials_without_required_keys_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"lacks token\.refresh"):
        credentials_file.write(str(tmp_path), KEPT, {"token": {"access": "a"}})
    assert list(tmp_path.iterdir()) == []


def test_concurrent_injections_write_the_credentials_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first caller may have been killed, and the tool may have used the refresh token."""
    tool = provider()
    status: list[LoginStatus] = ["none"]
    written: list[object] = []
    is_asked, is_asked_again = Event(), Event()

    def current_login(name: str, _: AgentSettings) -> Any:
        if is_asked.is_set():
            is_asked_again.set()
        return login_reply(name, status[0])

    def check_status(*_: object) -> None:
        is_asked.set()
        assert is_asked_again.wait(60)
        status[0] = "done"

    monkeypatch.setattr(credentials_client, "current_login", current_login)
    monkeypatch.setattr(credentials_client, "_stop_login", lambda *_: None)
    monkeypatch.setattr(credentials_client, "_check_status", check_status)
    monkeypatch.setattr(credentials_client, "_asked", lambda *asked: written.append(asked[3]))

    def inject() -> None:
        credentials_client.inject(tool, CREDENTIALS, AgentSettings())

    first = Thread(target=inject)
    first.start()
    assert is_asked.wait(60)
    inject()
    first.join()
    assert written == [CREDENTIALS]
