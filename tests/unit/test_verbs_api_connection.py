"""Choice of the controller and the token that a verb uses, and of a session's user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.client import controller_api, lab_access, ssh_tunnel
from polydev.errors import ConfigError
from verbs import api_connection, sessions
from verbs.paths_and_help import LAB_INVENTORY, lab_name

LAB, LAB_TOKEN = "http://192.0.2.1:4000", "lab's"
THERE = "http://there:4000"
USER = "05889db4-0000-4000-8000-000000000001"


class Reached:
    """The requests, and the connection that they used."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.hosts: list[tuple[str, str]] = []
        self.tunnels = 0
        self.host_name = "prod"

    @contextmanager
    def api(self, url: str, token: str, *, through_ssh: bool = False) -> Iterator[str]:
        assert through_ssh == (url == "http://127.0.0.1:5000")
        self.asked.append((url, token))
        yield "api"

    @contextmanager
    def tunnel(self, target: object, url: str) -> Iterator[str]:
        assert (target, url) == ("target", "http://127.0.0.1:4000")
        self.tunnels += 1
        yield "http://127.0.0.1:5000"
        self.tunnels -= 1

    def described(self, inventory: str, host: str) -> Any:
        self.hosts.append((inventory, host))
        found = SimpleNamespace(
            name=self.host_name, target="target", controller="http://127.0.0.1:4000"
        )
        return None, found


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    made = Reached()
    for name in ("POLYDEV_URL", "POLYDEV_TOKEN", "POLYDEV_LAB"):
        monkeypatch.delenv(name, raising=False)
    lab = SimpleNamespace(address="192.0.2.1", folder="folder")
    stored = SimpleNamespace(
        operator=SimpleNamespace(token=LAB_TOKEN), demo=SimpleNamespace(user_id="demo's")
    )
    monkeypatch.setattr(controller_api, "ControllerApi", made.api)
    monkeypatch.setattr(ssh_tunnel, "tunnel", made.tunnel)
    monkeypatch.setattr(api_connection, "described_host", made.described)
    monkeypatch.setattr("polydev.lab.find", lambda *_: lab)
    monkeypatch.setattr(lab_access, "stored_access", lambda folder: stored)
    return made


@pytest.mark.parametrize(
    ("url", "token", "environment", "asked"),
    [
        ("", "", {}, (LAB, LAB_TOKEN)),
        ("", "", {"POLYDEV_LAB": "", "POLYDEV_URL": ""}, (LAB, LAB_TOKEN)),
        ("", "mine", {}, (LAB, "mine")),
        ("", "", {"POLYDEV_TOKEN": "mine"}, (LAB, "mine")),
        ("", "mine", {"POLYDEV_TOKEN": "another"}, (LAB, "mine")),
        (THERE, "mine", {"POLYDEV_URL": "http://other"}, (THERE, "mine")),
        ("", "mine", {"POLYDEV_URL": THERE}, (THERE, "mine")),
        # A lab's own token is sent only to the lab.
        (THERE, "", {}, None),
        ("", "", {"POLYDEV_URL": THERE}, None),
    ],
)
def test_connect_by_url(
    url: str,
    token: str,
    environment: dict[str, str],
    asked: tuple[str, str] | None,
    reached: Reached,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if asked is None:
        with pytest.raises(ConfigError, match=f"no token for {THERE}") as told:
            api_connection.connect(url, token).__enter__()
        assert "--inventory FILE" in str(told.value.hint)
    else:
        with api_connection.connect(url, token) as found:
            assert str(found) == "api"
    assert reached.asked == ([asked] if asked else [])
    assert reached.hosts == []


@pytest.mark.parametrize(
    ("inventory", "host", "hosts"),
    [
        ("file.py", "", ("file.py", "")),
        ("", "prod", (LAB_INVENTORY, "prod")),
        ("file.py", "prod", ("file.py", "prod")),
    ],
)
@pytest.mark.parametrize(
    ("name", "token", "sent"),
    [("prod", "mine", "mine"), ("prod", "", None), ("lab-dev", "", LAB_TOKEN), ("lab-x", "", None)],
)
def test_connect_by_host(
    inventory: str,
    host: str,
    hosts: tuple[str, str],
    name: str,
    token: str,
    sent: str | None,
    reached: Reached,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLYDEV_URL", THERE)  # ignored if a host is named
    reached.host_name = name
    if sent is None:
        with pytest.raises(ConfigError, match=f"no token for {name}"):
            api_connection.connect("", token, inventory, host).__enter__()
    else:
        with api_connection.connect("", token, inventory, host):
            assert reached.tunnels == 1
        assert reached.asked == [("http://127.0.0.1:5000", sent)]
    assert reached.tunnels == 0
    assert reached.hosts == [hosts]


def test_url_and_inventory_together_are_refused(reached: Reached) -> None:
    with pytest.raises(ConfigError, match="--url names one controller"):
        api_connection.connect(THERE, "mine", "file.py").__enter__()
    assert reached.asked == []


@pytest.mark.parametrize("find", [api_connection._lab_operator, api_connection.lab_demo_user])
def test_missing_lab_is_reported(
    find: Any, reached: Reached, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polydev.lab.find", lambda *_: None)
    with pytest.raises(ConfigError, match="lab"):
        find()


def test_lab_without_users_is_reported(reached: Reached, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_access, "stored_access", lambda _: None)
    assert api_connection._lab_operator() == (LAB, "")
    with pytest.raises(ConfigError, match="has no demo user"):
        api_connection.lab_demo_user()


class TestSessionUser:
    @pytest.fixture(autouse=True)
    def host(self, reached: Reached, monkeypatch: pytest.MonkeyPatch) -> list[object]:
        asked: list[object] = []

        def controller(*place: str) -> Any:
            def ask(*words: str) -> dict[str, str]:
                asked.append((place, words))
                return {"id": USER}

            return SimpleNamespace(ask=ask)

        monkeypatch.setattr(sessions, "host_controller", controller)
        return asked

    def test_user_id_is_used_without_asking_the_host(self, host: list[object]) -> None:
        assert sessions.session_user(USER.upper(), THERE, "", "") == USER
        assert host == []

    @pytest.mark.parametrize(
        ("user", "url", "of_environment", "inventory"),
        [
            ("ada", THERE, "", ""),
            ("ada", "", THERE, ""),
            ("", THERE, "", ""),
            ("", "", THERE, ""),
            ("", "", "", "file.py"),
            ("", "", THERE, "file.py"),
        ],
    )
    def test_missing_or_unresolvable_user_is_refused(
        self,
        user: str,
        url: str,
        of_environment: str,
        inventory: str,
        host: list[object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("POLYDEV_URL", of_environment)
        with pytest.raises(ConfigError, match=r"not the id of a user|no user is named"):
            sessions.session_user(user, url, inventory, "")
        assert host == []

    def test_default_user_of_a_lab_is_the_demo_user(self) -> None:
        assert sessions.session_user("", "", "", "") == "demo's"

    @pytest.mark.parametrize("of_environment", ["", THERE])
    def test_user_name_is_resolved_on_the_host(
        self, of_environment: str, host: list[object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("POLYDEV_URL", of_environment)
        assert sessions.session_user("ada", "", "file.py", "prod") == USER
        assert host == [(("file.py", "prod"), ("user", "show", "ada"))]

    def test_user_name_is_resolved_in_the_lab(self, host: list[object]) -> None:
        assert sessions.session_user("ada", "", "", "") == USER
        assert host == [((LAB_INVENTORY, ""), ("user", "show", "ada"))]


@pytest.mark.parametrize(("value", "name"), [(None, "dev"), ("", "dev"), ("mine", "mine")])
def test_the_lab_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, value: str | None, name: str
) -> None:
    monkeypatch.delenv("POLYDEV_LAB", raising=False)
    if value is not None:
        monkeypatch.setenv("POLYDEV_LAB", value)
    assert lab_name() == name
