"""A verb of the host tool: its words, help, arguments, and function.

The function takes a `Call` and returns the value that is printed as JSON, or None for no output. To
add a verb, write its function beside those of its noun, and add a line to `VERBS` of that module;
`cli` names the module of each noun.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from polydev.hosttool.errors import HostError
from polydev.hosttool.paths import Paths
from polydev.hosttool.systemd import RealSystemd, Systemd, UnitTimeouts


@dataclass(frozen=True)
class Call:
    """One call of a verb: its arguments, and the host that it works on."""

    arguments: argparse.Namespace
    paths: Paths = field(default_factory=Paths)
    systemd: Systemd = field(default_factory=RealSystemd)

    def document(self) -> dict[str, Any]:
        """Return the JSON object on stdin. Raises HostError `bad-input`."""
        try:
            value = json.load(sys.stdin.buffer)
        except ValueError as error:
            raise HostError("bad-input", f"stdin is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise HostError("bad-input", "stdin is not a JSON object")
        return value

    @property
    def limits(self) -> UnitTimeouts:
        return UnitTimeouts(self.arguments.start_timeout, self.arguments.drain_timeout)


@dataclass(frozen=True)
class Argument:
    """Name and options that `add_argument` takes."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class HostVerb:
    words: str
    help: str
    run: Callable[[Call], object]
    arguments: tuple[Argument, ...] = ()


def argument(name: str, **options: Any) -> Argument:
    return Argument(name, options)


def required(name: str, **options: Any) -> Argument:
    return Argument(name, {"required": True, **options})


ID = required("--id", help="deployment id, as in 20250131_120000-1a2b3c4")
LIMITS = (
    argument("--start-timeout", type=float, default=90, help="seconds for a unit to come up (90)"),
    argument(
        "--drain-timeout", type=float, default=90, help="seconds for it to finish its work (90)"
    ),
)
