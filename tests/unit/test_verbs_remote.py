"""host.logs: which part of the journal is asked for."""

from __future__ import annotations

import pytest

from verbs.remote import UNITS, journal_words


@pytest.mark.parametrize(
    ("unit", "units"),
    [
        ("", [f"--unit={each}" for each in UNITS]),
        ("all", []),
        ("ssh.service", ["--unit=ssh.service"]),
    ],
)
def test_units(unit: str, units: list[str]) -> None:
    words = journal_words(unit, 5, follow=False)
    assert words == ["journalctl", "--no-pager", "--quiet", "--lines=5", *units]


def test_follow() -> None:
    assert "--follow" in journal_words("", 5, follow=True)
