"""Pages for operators: they name every verb, lead to pages that are there, and stay readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{each.name}" for each in (ROOT / "docs").glob("*.md")),
)
MOST_LINES = 200
MOST_CHARACTERS = 100


def test_every_verb_has_its_place_in_the_table() -> None:
    text = (ROOT / "docs" / "verbs.md").read_text()
    first_cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = set(re.findall(r"`([a-z.]+)", " ".join(first_cells)))
    assert set(VERBS) - named == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_and_verbs_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    pages = re.findall(r"`((?:docs|golden)/[\w.]+\.md|[A-Z]+\.md)`", text)
    assert [each for each in pages if not (ROOT / each).is_file()] == []
    verbs = re.findall(r"\./inv ([a-z]+(?:\.[a-z]+)?)", text)
    assert [each for each in verbs if each not in VERBS] == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_are_short(page: str) -> None:
    lines = enumerate((ROOT / page).read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > MOST_CHARACTERS and "|" not in line]
    assert long == []


def test_the_first_page_is_read_in_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES
