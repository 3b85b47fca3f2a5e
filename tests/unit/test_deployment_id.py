"""Ids of deployments: one form, here and on the host."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from polydev import deployment_id
from polydev.deployment_id import commit_of, new_deployment_id, require_commit
from polydev.errors import ConfigError
from polydev.host_layout import DEPLOYMENT_ID
from polydev.processes import Completed, run


@pytest.mark.parametrize(
    "name",
    ["20250131_120000-abcd", "20250131_120000-0123456789abcdef", "20250131_120000-0000-dirty"],
)
def test_valid_ids_match(name: str) -> None:
    assert DEPLOYMENT_ID.fullmatch(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "20250131_120000",
        "20250131_120000-",
        "20250131_120000-abc",
        "20250131_120000-ABCD",
        "2025013_120000-abcd",
        "20250131-120000-abcd",
        "20250131_120000-abcd-clean",
        "20250131_120000-abcd/..",
        "../20250131_120000-abcd",
        "20250131_120000-abcd\n",
    ],
)
def test_invalid_ids_do_not_match(name: str) -> None:
    assert not DEPLOYMENT_ID.fullmatch(name)


@pytest.mark.parametrize(
    ("head", "status", "changes", "end"),
    [
        ("abcd1234\n", 0, "", "abcd1234"),
        ("abcd1234\n", 0, " M a.py\n", "abcd1234-dirty"),
        ("\nabcd1234\n", 0, "", "abcd1234"),
        ("part/\nabcd1234\n", 0, "", "0000"),  # paths of the surrounding repository
        ("", 128, "", "0000"),
    ],
)
def test_new_id_contains_time_and_commit(
    monkeypatch: pytest.MonkeyPatch, head: str, status: int, changes: str, end: str
) -> None:
    def run(argv: list[object], **_: object) -> Completed:
        if "status" in argv:
            return answered(argv, changes, 0)
        return answered(argv, head, status)

    monkeypatch.setattr(deployment_id, "run", run)
    name = new_deployment_id()
    assert DEPLOYMENT_ID.fullmatch(name)
    assert re.fullmatch(rf"\d{{8}}_\d{{6}}-{end}", name)


def answered(argv: list[object], stdout: str, status: int) -> Completed:
    return Completed(tuple(map(str, argv)), status, stdout, "", 0.0)


class TestCheckout:
    @pytest.fixture
    def checkout(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        root = tmp_path / "checkout"
        root.mkdir()
        (root / "file").write_text("1\n")
        for words in (
            ["init", "-q"],
            ["add", "."],
            ["-c", "user.name=A", "-c", "user.email=a@x", "commit", "-q", "-m", "first"],
        ):
            run(["git", "-C", root, *words])
        return root

    def head(self, root: Path) -> str:
        return run(["git", "-C", root, "rev-parse", "--short=8", "HEAD"]).stdout.strip()

    def test_commit_of_marks_uncommitted_changes_as_dirty(self, checkout: Path) -> None:
        head = self.head(checkout)
        assert commit_of(checkout) == head
        require_commit(checkout)
        (checkout / "new").touch()
        assert commit_of(checkout) == f"{head}-dirty"

    @pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
    def test_commit_of_a_checkout_owned_by_another_user(self, checkout: Path) -> None:
        head = self.head(checkout)
        (checkout / "file").write_text("2\n")
        for path in (checkout, *checkout.rglob("*")):
            os.chown(path, 12345, 12345)
        assert commit_of(checkout) == f"{head}-dirty"

    def test_commit_of_ignores_git_dir_variable(
        self, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head = self.head(checkout)
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
        assert commit_of(checkout) == head

    def test_checkout_without_a_commit_is_refused(self, checkout: Path) -> None:
        inside = checkout / "unpacked"
        inside.mkdir()
        empty = checkout.parent / "empty"
        run(["git", "init", "-q", empty])
        for folder in (inside, empty, checkout.parent):
            assert commit_of(folder) is None
            with pytest.raises(ConfigError, match="not a git checkout") as refused:
                require_commit(folder)
            assert "git init" in str(refused.value.hint)
