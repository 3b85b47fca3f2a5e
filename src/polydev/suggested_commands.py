"""Add the options that name the host to the commands in messages.

A message names a command as `./inv unlock`. Pasted after a verb that had `--inventory FILE`, it
would mean another host; so each command gets the options of the verb that prints the message, as
far as it takes them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from contextvars import ContextVar

REPEATED = ("inventory", "host", "url")
"""Options that say which host or controller a verb is about."""
COMMAND = re.compile(r"\./inv ([a-z]+(?:\.[a-z]+)?)(?![\w.]*\w)([^\n]*?)(?=\./inv |[;)\n]|$)")

Verbs = Mapping[str, frozenset[str]]
"""The options of each verb, by its name."""

_verbs: ContextVar[Verbs] = ContextVar("verbs", default={})  # noqa: B039  (nobody changes it)
_chosen: ContextVar[Mapping[str, str]] = ContextVar("chosen", default={})  # noqa: B039


def know_verbs(verbs: Verbs) -> None:
    """Store which options each verb takes."""
    _verbs.set(verbs)


def choose(options: Mapping[str, str]) -> None:
    """Store the options that were given to the verb that runs now."""
    _chosen.set({name: options[name] for name in REPEATED if options.get(name)})


def for_same_host(text: str) -> str:
    """Return the text with commands that name the host of the running verb."""
    return with_options(text, _verbs.get(), _chosen.get())


def with_options(text: str, verbs: Verbs, chosen: Mapping[str, str]) -> str:
    """Add to each `./inv VERB` the chosen options that it takes and does not have yet."""

    def completed(found: re.Match[str]) -> str:
        verb, rest = found[1], found[2]
        words = [
            f"--{name} {shlex.quote(value)}"
            for name, value in chosen.items()
            if name in verbs.get(verb, ()) and f"--{name}" not in rest
        ]
        return " ".join([f"./inv {verb}", *words]) + rest

    return COMMAND.sub(completed, text)
