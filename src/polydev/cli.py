"""Shared by all verbs: options, output as text or JSON, and errors as messages."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from invoke.tasks import Task
from invoke.tasks import task as invoke_task
from pydantic import BaseModel
from rich.console import Console

from polydev import suggested_commands
from polydev.errors import ConfigError, Error

# Larger numbers of options are mistakes, and more than some functions accept.
MOST_NUMBER = 1_000_000_000
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

REFUSAL_HINTS = dict.fromkeys(
    (errno.EACCES, errno.EPERM), "run it as the user whose file it is, usually root"
) | dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free disk space there")

SHORT_OPTIONS = {
    "all": "a",
    "follow": "f",
    "host": "H",
    "inventory": "i",
    "json": "j",
    "limit": "l",
    "name": "n",
    "plan": "p",
    "url": "u",
}
"""The short form of an option, the same in every verb. No other option has one."""

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

stdout = Console(soft_wrap=True, highlight=False, markup=False)
stderr = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


class Verb(Task):  # type: ignore[type-arg]
    """A verb of `./inv`; Invoke alone would invent a short form for each option."""

    def arg_opts(self, name: str, default: str, taken_names: set[str]) -> dict[str, Any]:
        options = super().arg_opts(name, default, taken_names)
        is_option = name in SHORT_OPTIONS and not options["positional"]
        options["names"] = [options["names"][0], *([SHORT_OPTIONS[name]] if is_option else [])]
        return options


task = functools.partial(invoke_task, klass=Verb)


def edge(function: Callable[P, R]) -> Callable[P, R]:
    """Turn an Error into one message on stderr and exit status 1 (docs/verbs.md has the others).

    With `json` among the verb's arguments the error goes to stdout as JSON too.
    """
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        # After SIGTERM a build cleans up as after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        given = {name: str(each) for name, each in kwargs.items() if each != defaults.get(name)}
        suggested_commands.choose(given)
        try:
            logging.basicConfig(level=log_level())
            return function(*args, **kwargs)
        except Error as error:
            fail(error, as_json=bool(kwargs.get("json")))
        except OSError as error:
            if error.filename is None:  # not about a file: a bug, or a closed pipe
                raise
            log.debug("a file could not be used", exc_info=True)
            fail(file_refused(error), as_json=bool(kwargs.get("json")))
        except KeyboardInterrupt:
            stderr.print("interrupted; nothing is left half-made, run it again to continue")
            raise SystemExit(130) from None

    return wrapper


def file_refused(error: OSError) -> Error:
    """Return the error for a file that the operating system does not let a verb use."""
    hint = REFUSAL_HINTS.get(error.errno or 0, "POLYDEV_LOG=debug shows what needs it")
    return Error(f"cannot use {error.filename}: {error.strerror}", hint)


def require_at_least(least: float, option: str, value: float) -> None:
    """Raise ConfigError if the number of an option is too small, too large or not a number."""
    if not value >= least:
        raise ConfigError(f"--{option} {value:g} is too small", f"use {least:g} or more")
    if value > MOST_NUMBER:
        raise ConfigError(f"--{option} is too large", f"use {MOST_NUMBER} or less")


def log_level() -> str:
    """Return the log level that POLYDEV_LOG names. Raises ConfigError if there is no such level."""
    level = (os.environ.get("POLYDEV_LOG") or "WARNING").upper()
    if level not in LOG_LEVELS:
        words = f"POLYDEV_LOG={level.lower()} is not a log level"
        raise ConfigError(words, f"use one of {', '.join(LOG_LEVELS).lower()}")
    return level


def fail(error: Error, *, as_json: bool) -> NoReturn:
    message = suggested_commands.for_same_host(error.message)
    hint = suggested_commands.for_same_host(error.hint) if error.hint else None
    if as_json:
        fields = error.as_dict() | {"message": message, "hint": hint}
        sys.stdout.write(json.dumps(fields) + "\n")
    stderr.print(f"error: {message}")
    if hint:
        stderr.print(f"next:  {hint}")
    raise SystemExit(1)


def answer(value: BaseModel | dict[str, Any] | list[Any], *, as_json: bool, text: str) -> None:
    """Print a verb's answer: as JSON for programs, else as text for people.

    Commands in the text get the options that name the verb's own host.
    """
    if not as_json:
        stdout.print(suggested_commands.for_same_host(text))
        return
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
