"""sudo's rules: which users its files give rights, as sudo's own parser reads them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ETC = Path("/etc")
SUDOERS = "sudoers"
# sudoers(5): the word before it may be # as well; blanks in a path are quoted or escaped.
INCLUDE = re.compile(r'^\s*[@#](include|includedir)\s+(?:"(.+)"|(\S(?:.*\S)?))\s*$', re.MULTILINE)
# A line that is not a comment; #998 is a user by number.
RULE = re.compile(r"^\s*([^#\s]|#\d)", re.MULTILINE)

# The users of a rule in sudoers: kind and value of each, and whether the rule excludes it.
Users = list[tuple[tuple[str, str], bool]]


def applies_to(users: Users, words: set[tuple[str, str]]) -> bool:
    """Whether a rule applies to the user with these words; the last match decides."""
    fits = [not is_negated for word, is_negated in users if word in words]
    return bool(fits) and fits[-1]


def rules_by_file(etc: Path) -> dict[str, list[Users]]:
    """Return the users of each rule that permits something, by file."""
    return {
        str(file): [users for users, permits in _rules(file) if permits]
        for file in _files_of_sudo(etc)
    }


def _files_of_sudo(etc: Path) -> list[Path]:
    """Return the main file, those in sudoers.d, and all that they include."""
    found: list[Path] = []
    left = [etc / SUDOERS, *_in_folder(etc / "sudoers.d")]
    while left:
        file = left.pop()
        if file in found or not file.is_file():
            continue
        found.append(file)
        for kind, quoted, plain in INCLUDE.findall(file.read_text(errors="replace")):
            name = quoted or plain.replace("\\ ", " ")
            place = file.parent / name.replace("%h", os.uname().nodename.partition(".")[0])
            if place.is_relative_to(ETC):
                place = etc / place.relative_to(ETC)
            left += [place] if kind == "include" else _in_folder(place)
    return sorted(found)


def _in_folder(folder: Path) -> list[Path]:
    """Return the files that sudo reads in a folder: without a dot in the name or a final ~."""
    files = folder.glob("*")
    return [file for file in files if "." not in file.name and not file.name.endswith("~")]


def _rules(file: Path) -> Iterator[tuple[Users, bool]]:
    """Yield the rules in one file without its includes, and whether each permits something."""
    text = "".join(
        line
        for line in file.read_text(errors="replace").splitlines(keepends=True)
        if not line.lstrip().startswith(("@include", "#include"))
    )
    for rule in parse(text).get("User_Specs", []) if RULE.search(text) else []:
        users = [(_word(each), bool(each.get("negated"))) for each in rule["User_List"]]
        commands = [each for spec in rule["Cmnd_Specs"] for each in spec["Commands"]]
        yield users, any(not each.get("negated") for each in commands)


def parse(sudoers: str) -> dict[str, Any]:
    """Parse sudoers with sudo's own parser; {} if there is none."""
    import subprocess

    argv = ["cvtsudoers", "--expand-aliases", "--output-format", "json", "-"]
    try:
        done = subprocess.run(argv, input=sudoers, capture_output=True, text=True, check=False)
        return dict(json.loads(done.stdout or "{}"))
    except (OSError, ValueError):
        return {}


def _word(user: dict[str, object]) -> tuple[str, str]:
    return next(((kind, str(value)) for kind, value in user.items() if kind != "negated"), ("", ""))


def is_only_about(file: Path, names: set[str]) -> bool:
    """Whether a file of sudoers.d has rules about these users only."""
    rules = list(_rules(file))
    users = [word for rule, _ in rules for word, _ in rule]
    return file.name != SUDOERS and all(kind == "username" and n in names for kind, n in users)
