"""The program `./inv`: Invoke, with usage errors that say what to do next."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys

from invoke.exceptions import ParseError
from invoke.program import Program

from polydev import __version__, suggested_commands
from polydev.cli import fail
from polydev.errors import ConfigError, Error

WORD_OF = {
    "deployments": "--id",
    "open": "--session",
    "template.show": "--key",
    "webhook.try": "--endpoint",
}
"""Options whose name may be left out: the word after the verb is the value."""
UNKNOWN = re.compile(r"No idea what '(.*)' is!")
NO_VALUE = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")
EMPTY = "--{} needs a value that is not empty"
NOT_WHOLE = re.compile(r"invalid literal for int\(\) with base 10: (.*)")
NOT_A_NUMBER = re.compile(r"could not convert string to float: (.*)")
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
FREE_SPACE = "free space where the output goes, or where POLYDEV_STATE, _STORE and _CACHE are"
JSON_WORD = re.compile(r"--json|-[a-zA-Z]*j[a-zA-Z]*")


class Verbs(Program):
    def parse_tasks(self) -> None:
        """Parse the command line; a usage error is printed as our own errors are, and exits."""
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
        suggested_commands.know_verbs(
            {name: frozenset(verb.args) for name, verb in self.parser.contexts.items()}
        )

    def _require_values(self) -> None:
        """Raise ParseError for an option with an empty value: verbs would take it for no option."""
        for verb in self.tasks:
            for argument in verb.args.values():
                if argument.raw_value == "":
                    raise ParseError(EMPTY.format(argument.name))


def with_option_named(said: str, words: list[str]) -> list[str]:
    """Return the words with the name of the option before the word that Invoke refused (WORD_OF).

    Invoke has no optional words after a verb, only required ones.
    """
    unknown = UNKNOWN.fullmatch(said)
    option = WORD_OF.get(words[0]) if words else None
    if unknown is None or option is None or option in words or unknown[1].startswith("-"):
        return words
    # Invoke has taken the values of options, so the word is the last one of this spelling.
    at = len(words) - 1 - words[::-1].index(unknown[1])
    return [*words[:at], option, *words[at:]]


def usage_error(said: str, words: list[str], verbs: list[str]) -> ConfigError:
    """Return our error for a command line that Invoke refused with the words `said`."""
    verb = next((word for word in words if word in verbs), None)
    see = f"./inv {verb} --help" if verb else "./inv lists the verbs"
    if (unknown := UNKNOWN.fullmatch(said)) is None:
        return ConfigError(_plain(said), see)
    word = unknown[1]
    if word.startswith("-"):
        return ConfigError(
            f"{verb} has no option {word}" if verb else f"unknown option {word}", see
        )
    if verb is not None:
        return ConfigError(f"{verb} does not take {word!r}", see)
    close = difflib.get_close_matches(word, verbs, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return ConfigError(f"there is no verb {word}{meant}", see)


def _plain(said: str) -> str:
    if no_value := NO_VALUE.match(said):
        return f"--{no_value[1]} needs a value"
    if not_whole := NOT_WHOLE.fullmatch(said):
        return f"{not_whole[1]} is not a whole number"
    if no_number := NOT_A_NUMBER.fullmatch(said):
        return f"{no_number[1]} is not a number"
    return said


def open_missing_streams() -> None:
    """Open /dev/null for closed standard streams: else the next file would get their number, and
    child processes would write to it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def main() -> None:
    open_missing_streams()
    try:
        Verbs(name="polydev", binary="./inv", version=__version__).run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # of a write, which names no file
        if error.filename is not None or error.errno not in CANNOT_WRITE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        fail(Error(f"cannot write: {error.strerror}", FREE_SPACE), as_json=False)
