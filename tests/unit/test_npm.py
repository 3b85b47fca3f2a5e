"""Finding the cause of a failure in npm's output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import polydev.npm
from polydev.errors import BuildError, CommandError, ConfigError
from polydev.image import guest_npm
from polydev.image.guest_npm import installed_packages
from polydev.npm import MOST_LINES, cause_of, newest_version
from polydev.processes import Completed

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
def test_cause_of_finds_the_cause_before_the_help_text(mark: str) -> None:
    assert cause_of(OUT_OF_SYNC.format(mark).splitlines()) == (
        "code EUSAGE\n"
        "`npm ci` can only install packages when your package.json and package-lock.json are in "
        "sync.\n"
        "Missing: left-pad@1.3.0 from lock file"
    )


def test_cause_of_is_short_and_may_be_empty() -> None:
    assert len(cause_of([f"npm error Missing: {n}" for n in range(99)]).splitlines()) == MOST_LINES
    assert cause_of(["npm warn old", "Segmentation fault"]) == ""


class Step:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("package.json", "package-lock.json"):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_install_uses_the_lock_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to, step = project / "opt/to", Step()

    def ci(_: object, on_line: Any, *, cwd: Path) -> None:
        assert (cwd / "package-lock.json").read_text() == "package-lock.json"
        assert (cwd / "package.json").read_text() == "package.json"
        (cwd / "node_modules").mkdir(exist_ok=True)
        # The file has the times of this build.
        (cwd / "node_modules/.package-lock.json").touch()
        on_line("added 7 packages")

    monkeypatch.setattr(polydev.npm, "run_lines", ci)
    for _ in range(2):  # the folder may exist already
        guest_npm.install(project, to, step)  # type: ignore[arg-type]
        assert list((to / "node_modules").iterdir()) == []
    assert step.said[:2] == ["fetching npm packages", "added 7 packages"]


@pytest.mark.parametrize(
    ("line", "cause", "hint"),
    [
        ("npm error not in sync", "not in sync", "npm install --package-lock-only"),
        ("npm error no network", "no network", "npm ping"),
        ("nonsense", "the end", "npm ping"),
    ],
)
def test_failed_install_has_a_cause_and_a_hint(
    line: str, cause: str, hint: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: list[str], on_line: Any, **_: object) -> None:
        on_line(line)
        raise CommandError(argv, 1, "the end")

    monkeypatch.setattr(polydev.npm, "run_lines", fail)
    with pytest.raises(BuildError, match=rf"package-lock.json: {cause}$") as told:
        guest_npm.install(project, project / "to", Step())  # type: ignore[arg-type]
    assert hint in str(told.value.hint)


def test_installed_packages_are_found_in_nested_folders(tmp_path: Path) -> None:
    def package(place: str, text: str) -> None:
        folder = tmp_path / "node_modules" / place
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(text)

    package("a", '{"name": "a", "version": "1"}')
    package("@scope/b", '{"name": "@scope/b", "version": "2"}')
    package("a/node_modules/c", '{"name": "c", "version": "3"}')
    package("a/dist/esm", '{"name": "of no package", "version": "4"}')
    package("d", '{"type": "module"}')
    package("e", '{"name": "e"}')
    found = {(each.kind, each.name, each.version) for each in installed_packages(tmp_path)}
    assert found == {("npm", "a", "1"), ("npm", "@scope/b", "2"), ("npm", "c", "3")}


def view(status: int, stdout: str, stderr: str = "") -> Completed:
    return Completed(("npm",), status, stdout, stderr, 0.1)


def test_newest_version_comes_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polydev.npm, "run", lambda *_, **__: view(0, '"2.0.1"\n'))
    assert newest_version("@tools/tool") == "2.0.1"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (view(1, '{"error": {"code": "E404", "summary": "Not Found\\n"}}'), "Not Found"),
        (view(1, "", "npm error code EUSAGE"), "code EUSAGE"),
        (view(0, "{}"), "no reason is known"),
    ],
)
def test_failed_registry_query_is_reported(
    monkeypatch: pytest.MonkeyPatch, answer: Completed, cause: str
) -> None:
    monkeypatch.setattr(polydev.npm, "run", lambda *_, **__: answer)
    with pytest.raises(ConfigError, match=f"newest version of tool: {cause}$"):
        newest_version("tool")


def test_unreachable_registry_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="ECONNREFUSED"):
        newest_version("tool")
