"""A lab's users: made once, reused while they are valid, repaired when they are not."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from polydev.client.lab_access import LabAccess, LabUser, ensure_access, store_access, stored_access


class FakeHost:
    """The command line of a host and its controller, as `ask` and `is_valid`."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []

    def ask(self, *words: str) -> Any:
        self.asked.append(words)
        options = dict(zip(words[2::2], words[3::2], strict=False))
        if words[:2] == ("user", "list"):
            return [{"id": user, "role": role} for user, role in self.users.items()]
        if words[:2] == ("user", "add"):
            user = options.get("--id", f"user-{len(self.users)}")
            assert user not in self.users
            self.users[user] = options["--role"]
            return {"id": user}
        assert words[:2] == ("token", "create")
        token = f"pdt_{len(self.tokens)}"
        self.tokens[token] = options["--user"]
        return {"token": token}

    def is_valid(self, token: str) -> bool:
        return token in self.tokens


def test_a_new_lab_gets_a_user_and_an_admin(tmp_path: Path) -> None:
    host = FakeHost()
    access = ensure_access(tmp_path, host.ask, host.is_valid)
    assert host.users[access.demo.user_id] == "user"
    assert host.users[access.operator.user_id] == "admin"
    assert stored_access(tmp_path) == access
    assert stat.S_IMODE((tmp_path / "access.json").stat().st_mode) == 0o600


def test_valid_access_is_reused_without_asking_the_host(tmp_path: Path) -> None:
    host = FakeHost()
    access = ensure_access(tmp_path, host.ask, host.is_valid)
    host.asked.clear()
    assert ensure_access(tmp_path, host.ask, host.is_valid) == access
    assert host.asked == []


def test_revoked_token_is_replaced_for_the_same_user(tmp_path: Path) -> None:
    host = FakeHost()
    was = ensure_access(tmp_path, host.ask, host.is_valid)
    del host.tokens[was.demo.token]
    access = ensure_access(tmp_path, host.ask, host.is_valid)
    assert access.demo.user_id == was.demo.user_id
    assert access.demo.token != was.demo.token
    assert access.operator == was.operator
    assert len(host.users) == 2


def test_users_removed_by_a_rollback_get_their_ids_back(tmp_path: Path) -> None:
    host = FakeHost()
    was = ensure_access(tmp_path, host.ask, host.is_valid)
    host.users.clear()
    host.tokens.clear()
    access = ensure_access(tmp_path, host.ask, host.is_valid)
    assert access.demo.user_id == was.demo.user_id
    assert access.operator.user_id == was.operator.user_id
    assert host.is_valid(access.demo.token)


def test_unreadable_access_file_is_ignored(tmp_path: Path) -> None:
    assert stored_access(tmp_path) is None
    (tmp_path / "access.json").write_text("{")
    assert stored_access(tmp_path) is None
    account = LabUser(user_id="u", token="t")
    store_access(tmp_path, LabAccess(demo=account, operator=account))
    found = stored_access(tmp_path)
    assert found is not None
    assert found.demo == account
