"""Words → a verb → one JSON document on stdout; a failure is one too, and exit status 1."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from polydev.hosttool.errors import HostError
from polydev.hosttool.host_verbs import HOST_VERBS
from polydev.hosttool.paths import Paths
from polydev.hosttool.verbs import VERBS, Call, Verb

ALL_VERBS = (*VERBS, *HOST_VERBS)


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusals are HostErrors, so that they come as JSON."""

    def error(self, message: str) -> NoReturn:
        raise HostError("usage", f"{self.prog}: {message}", f"{self.prog} --help")


def parser() -> Parser:
    top = Parser(prog="polydev-host", description="What a deployed browser-VM host does itself.")
    top.add_argument("--root", type=Path, help="a folder to take for / (for tests)")
    groups = {"": top.add_subparsers(metavar="VERB", required=True, parser_class=Parser)}
    for verb in ALL_VERBS:
        group, _, word = verb.words.rpartition(" ")
        if group not in groups:
            noun = groups[""].add_parser(group, help=_group_help(group))
            groups[group] = noun.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
        _add(groups[group].add_parser(word, help=verb.help, description=verb.help), verb)
    return top


def _group_help(group: str) -> str:
    words = [
        verb.words.rpartition(" ")[2] for verb in ALL_VERBS if verb.words.startswith(f"{group} ")
    ]
    return ", ".join(words)


def _add(leaf: argparse.ArgumentParser, verb: Verb) -> None:
    for each in verb.arguments:
        leaf.add_argument(each.name, **each.options)
    leaf.set_defaults(verb=verb)


def main(words: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    # Other code reads the output of the programs that it starts.
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        arguments = parser().parse_args(words)
        paths = Paths.below(arguments.root) if arguments.root else Paths()
        value = arguments.verb.run(Call(arguments, paths))
    except Exception as error:
        failure = _failure(error)
        _print(failure.as_dict())
        # Whoever only shows what went wrong shows this.
        sys.stderr.write(f"polydev-host: {failure.code}: {failure.message}\n")
        return 1
    if value is not None:
        _print(value)
    return 0


def _failure(error: Exception) -> HostError:
    if isinstance(error, HostError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return HostError("no-space", f"the disk is full: {error}", "make room, then run it again")
    return HostError("internal", f"{type(error).__name__}: {error}")


def _print(value: object) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()
