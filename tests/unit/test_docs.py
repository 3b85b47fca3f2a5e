"""Documents: generated where possible, with names that exist, and readable."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from polydev.controller.host.alert_rules import Rule
from polydev.controller.settings import SECRETS, ControllerSettings
from tasks import namespace
from tests.verbs import VERBS
from verbs.generated_docs import documents
from verbs.json_answers import ANSWERS

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "golden/README.md",
    *(f"docs/{each.name}" for each in (ROOT / "docs").glob("*.md")),
)
# Entries about earlier versions use their names.
PRESENT_PAGES = tuple(page for page in PAGES if page != "CHANGELOG.md")
README_LINES = 150
# Of Linux, Caddy, and an example.
NAMES_OF_OTHERS = frozenset(("SO_REUSEPORT", "minimum_length", "ID.TIMESTAMP.BODY"))
MOST_CHARACTERS = 100
# Paths that a document names and a checkout does not have: what git ignores, and placeholders.
NOT_IN_A_CHECKOUT = (
    "receiver.py",
    "rNNNN_words.py",
    "LAYER",
    "inventory/production.py",
    "logs/",
    "secrets/",
    "NAME",
    "*",
    "<",
    "{",
    "…",
)
FOLDERS = (
    "src|tests|verbs|golden|docs|deploy|inventory|templates|web|requirements|host_setup|controller"
)


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_generated_documents_are_up_to_date() -> None:
    found = documents(VERBS.values(), namespace)
    stale = [file.name for file, text in found.items() if file.read_text() != text]
    assert stale == [], "run ./inv docs"


def test_every_verb_is_in_verbs_md() -> None:
    text = (ROOT / "docs" / "verbs.md").read_text()
    assert [verb for verb in VERBS if f"\n### {verb}\n" not in text] == []


def test_every_verb_with_json_documents_its_answer() -> None:
    with_json = {name for name, verb in VERBS.items() if "json" in verb.args}
    assert with_json == set(ANSWERS)


@pytest.mark.parametrize("page", PRESENT_PAGES)
def test_verbs_named_on_a_page_exist(page: str) -> None:
    verbs = re.findall(r"\./inv ([a-z]+(?:\.[a-z]+)?)", (ROOT / page).read_text())
    assert [each for each in verbs if each not in VERBS and each != "docs"] == []


@pytest.mark.parametrize("page", PRESENT_PAGES)
def test_files_named_on_a_page_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = re.findall(rf"`((?:{FOLDERS})/[^\s`:]*|[\w-]+\.(?:md|py|toml|j2))`", text)
    wanted = [each for each in paths if not any(word in each for word in NOT_IN_A_CHECKOUT)]
    assert [each for each in wanted if not any(places(each, page))] == []


def places(path: str, page: str) -> Iterator[bool]:
    """Whether a path is there: from the checkout, the package, or the page's own folder."""
    starts = (ROOT, ROOT / "src" / "polydev", (ROOT / page).parent)
    yield from ((start / path).exists() for start in starts)
    # The bare name of a file, in a text about its folder.
    yield "/" not in path and any((ROOT / "src").rglob(path))
    yield "/" not in path and any((ROOT / "tests").rglob(path))


@pytest.fixture(scope="module")
def words_of_the_code() -> frozenset[str]:
    """All words in the code, its configuration and its file names."""
    found: set[str] = set()
    for folder in (
        *("src", "tests", "verbs", "golden", "templates", ".github", "inventory"),
        *("deploy.py", "tasks.py"),
    ):
        start = ROOT / folder
        for file in start.rglob("*") if start.is_dir() else (start,):
            found |= set(re.findall(r"\w+", file.name))
            if file.suffix in (".py", ".yaml", ".yml", ".j2", ".js"):
                found |= set(re.findall(r"\w+", file.read_text()))
    return frozenset(found)


@pytest.mark.parametrize("page", PRESENT_PAGES)
def test_names_of_code_on_a_page_exist(page: str, words_of_the_code: frozenset[str]) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    names = re.findall(r"`([a-zA-Z_][\w.]*[a-zA-Z])`", text)
    code = [name for name in names if "_" in name or "." in name or re.match("[A-Z][a-z]", name)]
    lost = [name for name in code if not set(name.split(".")) <= words_of_the_code]
    assert [name for name in lost if name not in NAMES_OF_OTHERS] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_have_a_target(page: str) -> None:
    text = (ROOT / page).read_text()
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, heading = link.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M) if heading else []
        if not file.is_file() or (heading and heading not in map(anchor, headings)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_prose_are_short(page: str) -> None:
    lines = enumerate((ROOT / page).read_text().splitlines(), 1)
    long = [number for number, line in lines if len(line) > MOST_CHARACTERS and "|" not in line]
    assert long == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def test_every_module_is_in_architecture_md() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set()
    for cell in re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", text, re.MULTILINE):
        for pattern in re.findall(r"`([^`]+)`", cell):
            head, brace, tail = pattern.replace(" ", "").partition("{")
            parts, _, rest = tail.partition("}")
            named |= {head + part + rest for part in (parts.split(",") if brace else [""])}
    package = ROOT / "src" / "polydev"
    modules = [
        ".".join(file.relative_to(package).with_suffix("").parts)
        for file in package.rglob("*.py")
        if file.name != "__init__.py" and "migrations" not in file.parts
    ]
    wide = tuple(each[:-1] for each in named if each.endswith(".*"))
    packages = {each for each in named if (package / each.replace(".", "/")).is_dir()}
    lost = [
        module
        for module in modules
        if module not in named
        and not module.startswith(wide)
        and not module.endswith("__main__")
        and not any(module.startswith(f"{each}.") for each in packages)
    ]
    assert lost == []


def test_every_alert_rule_is_documented() -> None:
    text = (ROOT / "docs" / "controller.md").read_text()
    table = re.findall(r"^\| rule \| warning \| critical \|\n(?:\|.*\n)+", text, re.MULTILINE)[0]
    assert set(re.findall(r"`(\w+)`(?=[^|]*\|)", table)) >= set(get_args(Rule))


def test_modules_named_in_architecture_md_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    package = ROOT / "src" / "polydev"
    lost = []
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text):
        parts = name.split(".")
        if not (package / parts[0]).is_dir():
            continue
        path, parent = package.joinpath(*parts), package.joinpath(*parts[:-1])
        module = parent.with_suffix(".py")
        has_it = module.is_file() and re.search(rf"\b{parts[-1]}\b", module.read_text())
        if not (path.is_dir() or path.with_suffix(".py").is_file() or has_it):
            lost.append(name)
    assert lost == []


def keys_of(settings: type[BaseModel], group: str = "") -> Iterator[str]:
    for name, field in settings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{group}{name}.")
        else:
            yield group + name


def test_every_controller_setting_is_documented() -> None:
    text = (ROOT / "docs" / "controller.md").read_text()
    (table,) = re.findall(r"^\| key \| default \| meaning \|\n(?:\|.*\n)+", text, re.MULTILINE)
    named: set[str] = set()
    for row in table.splitlines():
        group = ""
        for key in re.findall(r"`([^`]+)`", row.split("|")[1]):
            named.add(group + key if key.startswith(".") else key)
            group = group if key.startswith(".") else key.rpartition(".")[0]
    webhooks = (ROOT / "docs" / "webhooks.md").read_text()
    named |= {f"webhooks.{key}" for key in re.findall(r"^\| `(\w+)` \|", webhooks, re.MULTILINE)}
    undocumented = set(keys_of(ControllerSettings)) - named - set(SECRETS) - {"release_file"}
    assert undocumented == set()
