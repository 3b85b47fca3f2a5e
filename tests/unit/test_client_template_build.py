"""A template made on a host for the operator: the commands, and how their result is judged."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from polydev.client import template_build
from polydev.client.template_build import FOLDER, FOLLOW, build_template
from polydev.errors import CommandError, ConfigError, DeployError
from polydev.ssh import SshTarget

TARGET = SshTarget("prod", "prod.example")


def report(made_at: float | None, state: str = "built", **words: Any) -> dict[str, Any]:
    found = [{"key": "other", "madeAt": 1.0}]
    found += [{"key": "k", "madeAt": made_at}] if made_at is not None else []
    build = {"state": state, "detail": words.pop("detail", "")}
    plain = {"enabled": True, "wanted": "k", "goldenImage": "a" * 64}
    return {**plain, "templates": found, "build": build, **words}


class Made:
    def __init__(self, patch: pytest.MonkeyPatch, *reports: dict[str, Any]) -> None:
        self.left, self.scripts = list(reports), list[str]()
        self.fails = False
        self.said: list[str] = []
        patch.setattr(template_build, "HostController", lambda _: SimpleNamespace(ask=self.ask))
        patch.setattr(template_build, "follow", self.follow)

    def ask(self, *words: str) -> dict[str, Any]:
        assert words == ("templates", "report")
        return self.left.pop(0)

    def follow(
        self, target: SshTarget, words: tuple[str, ...], on_line: Callable[[str], None]
    ) -> None:
        self.scripts.append(words[-1])
        for line in ("it boots", "", '{"for": "programs"}'):
            on_line(line)
        if self.fails:
            raise CommandError(["ssh"], 1, "it failed")


@pytest.mark.parametrize(
    ("before", "after", "is_made"), [(None, 5.0, True), (4.0, 5.0, True), (5.0, 5.0, False)]
)
@pytest.mark.parametrize("again", [True, False])
def test_made_is_true_only_for_a_new_template(
    before: float | None, after: float, is_made: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(monkeypatch, report(before), report(after))
    found = build_template(TARGET, made.said.append, again=again)
    assert found == {"made": is_made, "key": "k", "madeAt": after}
    assert made.said == ["it boots"]
    assert made.scripts == [f"touch {FOLDER}/.again\n{FOLLOW}" if again else FOLLOW]


def test_disabled_templates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(monkeypatch, report(None, enabled=False))
    with pytest.raises(ConfigError, match="templates are off on prod"):
        build_template(TARGET, print)
    assert made.scripts == []


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (report(None, detail="no room"), "no room"),
        (report(None), "polydev-template.service ended without one"),
        (report(4.0, "failed", detail="no room"), "no room"),
    ],
)
def test_missing_template_is_reported_with_its_reason(
    after: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(monkeypatch, report(4.0), after)
    made.fails = True
    with pytest.raises(
        DeployError, match=f"cannot make the template of image aaaaaaaaaaaa: {why}$"
    ):
        build_template(TARGET, print)
