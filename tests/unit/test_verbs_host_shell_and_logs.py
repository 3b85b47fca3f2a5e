"""host.logs: the requested part of the journal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from invoke.context import Context

import polydev.processes
from polydev.processes import Completed
from verbs import host_shell_and_logs
from verbs.host_shell_and_logs import UNITS, journal_words


@pytest.mark.parametrize(
    ("unit", "units"),
    [
        ("", [f"--unit={each}" for each in UNITS]),
        ("all", []),
        ("ssh.service", ["--unit=ssh.service"]),
    ],
)
def test_journal_words_select_units(unit: str, units: list[str]) -> None:
    words = journal_words(unit, 5, follow=False)
    assert words == ["journalctl", "--no-pager", "--quiet", "--lines=5", *units]


def test_journal_words_can_follow() -> None:
    assert "--follow" in journal_words("", 5, follow=True)


def test_unit_without_log_entries_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = SimpleNamespace(argv=lambda *words: list(words))
    host = SimpleNamespace(name="browsers", target=target)
    monkeypatch.setattr(host_shell_and_logs, "described_host", lambda *_: (None, host))
    monkeypatch.setattr(polydev.processes, "run", lambda *_, **__: Completed((), 0, "", "", 0.1))
    host_shell_and_logs.logs.body(Context(), unit="shh.service")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "the journal of browsers has no entries of shh.service\n")
