"""What of npm's many words is the cause of a failure."""

from __future__ import annotations

import pytest

from polydev.image.npm import MOST_LINES, cause_of

OUT_OF_SYNC = """\
npm warn Unknown user config "nodedir".
{0} code EUSAGE
{0}
{0} `npm ci` can only install packages when your package.json and package-lock.json are in sync.
{0}
{0} Missing: left-pad@1.3.0 from lock file
{0}
{0} Clean install a project
{0}
{0} Usage:
{0} npm ci
"""


@pytest.mark.parametrize("mark", ["npm error", "npm ERR!"])
def test_its_help_hides_no_cause(mark: str) -> None:
    assert cause_of(OUT_OF_SYNC.format(mark).splitlines()) == (
        "code EUSAGE\n"
        "`npm ci` can only install packages when your package.json and package-lock.json are in "
        "sync.\n"
        "Missing: left-pad@1.3.0 from lock file"
    )


def test_it_is_short_and_may_be_unknown() -> None:
    assert len(cause_of([f"npm error Missing: {n}" for n in range(99)]).splitlines()) == MOST_LINES
    assert cause_of(["npm warn old", "Segmentation fault"]) == ""
