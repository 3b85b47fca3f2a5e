"""The command line: words to a verb, its answer as one JSON document on stdout.

A failure is printed as JSON, too, and ends with exit status 1. Only the modules of the noun in
question are imported, since each start compiles what it imports. They are imported before the verb
runs, since a restore may replace the tool's file.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.verb import Call, HostVerb

# The modules that have verbs, each with the nouns of its verbs.
NOUNS = {
    "lock_verbs": ("lock",),
    "deployment_records": ("record",),
    "deployment_slice": ("operations",),
    "backup_verbs": ("backup", "restore", "restore-job", "handover", "deadman", "listing"),
    "network_verbs": ("slot", "network"),
    "images": ("image",),
    "releases": ("release",),
    "database_verbs": ("controller", "database"),
    "host_verbs": (
        *("accounts", "permissions", "polkit", "settings", "reserve"),
        *("look", "apt", "health"),
    ),
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are HostErrors, so that they come as JSON."""

    def error(self, message: str) -> NoReturn:
        raise HostError(
            "usage", f"{self.prog}: {message}", f"`{self.prog} --help` shows what it takes"
        )


def parser(words: Sequence[str] | None = None) -> Parser:
    """Return the parser of all verbs, or of those with the noun that these words begin with."""
    top = Parser(
        prog="polydev-host",
        description="Work of a browser-VM host on itself: backup, restore, handover, health.",
    )
    _add_root(top)
    groups = {"": top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)}
    verbs = verbs_of(_noun(words))
    for verb in verbs:
        group, _, word = verb.words.rpartition(" ")
        if group not in groups:
            noun = groups[""].add_parser(group, help=_group_help(group, verbs))
            groups[group] = noun.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
        _add(groups[group].add_parser(word, help=verb.help, description=verb.help), verb)
    return top


def verbs_of(noun: str | None) -> list[HostVerb]:
    """Import the verbs of a noun; all verbs if the noun is unknown."""
    names = [name for name, nouns in NOUNS.items() if noun in nouns] or list(NOUNS)
    modules = [importlib.import_module(f"polydev.hosttool.{name}") for name in names]
    return [verb for module in modules for verb in module.VERBS]


def _noun(words: Sequence[str] | None) -> str | None:
    """Return the first word that is not an option of the tool itself."""
    before = Parser(add_help=False)
    _add_root(before)
    _, left = before.parse_known_args(words or [])
    return left[0] if left else None


def _add_root(to: Parser) -> None:
    to.add_argument("--root", type=Path, help="a folder to take for / (for tests)")


def _group_help(group: str, verbs: Sequence[HostVerb]) -> str:
    words = [verb.words.rpartition(" ")[2] for verb in verbs if verb.words.startswith(f"{group} ")]
    return ", ".join(words)


def _add(leaf: argparse.ArgumentParser, verb: HostVerb) -> None:
    for each in verb.arguments:
        leaf.add_argument(each.name, **each.options)
    leaf.set_defaults(verb=verb)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    # Other code reads the output of the programs that it starts.
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        words = sys.argv[1:] if words is None else words
        arguments = parser(words).parse_args(words)
        paths = Paths.below(arguments.root) if arguments.root else Paths()
        value = arguments.verb.run(Call(arguments, paths))
    except Exception as error:
        failure = _failure(error)
        _print(failure.as_dict())
        # Callers that show stderr alone show this.
        sys.stderr.write(f"polydev-host: {failure.code}: {failure.message}\n")
        return 1
    if value is not None:
        _print(value)
    return 0


def _failure(error: Exception) -> HostError:
    if isinstance(error, HostError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return HostError(
            "no-space", f"the disk is full: {error}", "free disk space, then run it again"
        )
    return HostError("internal", f"{type(error).__name__}: {error}")


def _print(value: object) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
