"""Names of deployments: one form, here and on the host."""

from __future__ import annotations

import re

import pytest

from polydev import deployment_id
from polydev.deployment_id import PATTERN, new_deployment_id
from polydev.hosttool.paths import DEPLOYMENT_ID
from polydev.run import Completed


@pytest.mark.parametrize(
    "name",
    ["20250131_120000-abcd", "20250131_120000-0123456789abcdef", "20250131_120000-0000-dirty"],
)
def test_taken(name: str) -> None:
    assert PATTERN.fullmatch(name)


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
def test_refused(name: str) -> None:
    assert not PATTERN.fullmatch(name)


def test_the_host_has_the_same_idea_of_it() -> None:
    assert DEPLOYMENT_ID.pattern == PATTERN.pattern


@pytest.mark.parametrize(
    ("head", "status", "changes", "end"),
    [
        ("abcd1234\n", 0, "", "abcd1234"),
        ("abcd1234\n", 0, " M a.py\n", "abcd1234-dirty"),
        ("", 128, "", "0000"),
    ],
)
def test_a_new_one_says_when_and_what(
    monkeypatch: pytest.MonkeyPatch, head: str, status: int, changes: str, end: str
) -> None:
    def run(argv: list[object], **_: object) -> Completed:
        if "status" in argv:
            return answered(argv, changes, 0)
        return answered(argv, head, status)

    monkeypatch.setattr(deployment_id, "run", run)
    name = new_deployment_id()
    assert PATTERN.fullmatch(name)
    assert re.fullmatch(rf"\d{{8}}_\d{{6}}-{end}", name)


def answered(argv: list[object], stdout: str, status: int) -> Completed:
    return Completed(tuple(map(str, argv)), status, stdout, "", 0.0)
