"""`./inv`: Invoke, whose refusals say what to do next, and never with a traceback."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys

from invoke.exceptions import ParseError
from invoke.program import Program

from polydev import __version__, hints
from polydev.cli import fail
from polydev.errors import ConfigError

WORD_OF = {
    "deployments": "--id",
    "open": "--session",
    "template.show": "--key",
    "webhook.try": "--endpoint",
}
"""The option for which a word after the verb may stand."""
UNKNOWN = re.compile(r"No idea what '(.*)' is!")
NO_VALUE = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")
EMPTY = "--{} needs a value that is not empty"
NOT_WHOLE = re.compile(r"invalid literal for int\(\) with base 10: (.*)")
NOT_A_NUMBER = re.compile(r"could not convert string to float: (.*)")
JSON_WORD = re.compile(r"--json|-[a-zA-Z]*j[a-zA-Z]*")


class Verbs(Program):
    def parse_tasks(self) -> None:
        """Raises SystemExit with one message where Invoke would print its own."""
        words = self.core.unparsed
        try:
            try:
                super().parse_tasks()
            except ParseError as error:
                named = with_option_named(str(error), words)
                if named == words:
                    raise
                words[:] = named
                super().parse_tasks()
            self._require_values()
        except (ParseError, ValueError) as error:
            refusal = usage_error(str(error), words, list(self.parser.contexts))
            fail(refusal, as_json=any(map(JSON_WORD.fullmatch, words)))
        hints.know_verbs(
            {name: frozenset(verb.args) for name, verb in self.parser.contexts.items()}
        )

    def _require_values(self) -> None:
        """Raises ParseError for an option with an empty text, which no verb tells from none."""
        for verb in self.tasks:
            for argument in verb.args.values():
                if argument.raw_value == "":
                    raise ParseError(EMPTY.format(argument.name))


def with_option_named(said: str, words: list[str]) -> list[str]:
    """Return the words, in which one that Invoke does not place is the option that it stands for.

    Invoke knows no word of a verb that may be left out.
    """
    unknown = UNKNOWN.fullmatch(said)
    option = WORD_OF.get(words[0]) if words else None
    if unknown is None or option is None or option in words or unknown[1].startswith("-"):
        return words
    # Values of options were understood, so the word is the last one that is like it.
    at = len(words) - 1 - words[::-1].index(unknown[1])
    return [*words[:at], option, *words[at:]]


def usage_error(said: str, words: list[str], verbs: list[str]) -> ConfigError:
    """What is wrong with a command line of which Invoke `said` this, and what to do."""
    verb = next((word for word in words if word in verbs), None)
    see = f"./inv {verb} --help" if verb else "./inv lists the verbs"
    if (unknown := UNKNOWN.fullmatch(said)) is None:
        return ConfigError(_plain(said), see)
    word = unknown[1]
    if word.startswith("-"):
        return ConfigError(f"{verb or 'no verb'} takes no {word}", see)
    if verb is not None:
        return ConfigError(f"{verb} does not take {word!r}", see)
    close = difflib.get_close_matches(word, verbs, n=3)
    meant = f"; is it {' or '.join(close)}?" if close else ""
    return ConfigError(f"there is no verb {word}{meant}", see)


def _plain(said: str) -> str:
    if no_value := NO_VALUE.match(said):
        return f"--{no_value[1]} needs a value"
    if not_whole := NOT_WHOLE.fullmatch(said):
        return f"{not_whole[1]} is no whole number"
    if no_number := NOT_A_NUMBER.fullmatch(said):
        return f"{no_number[1]} is no number"
    return said


def main() -> None:
    try:
        Verbs(name="polydev", binary="./inv", version=__version__).run()
        sys.stdout.flush()
    except BrokenPipeError:  # as with `| head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
