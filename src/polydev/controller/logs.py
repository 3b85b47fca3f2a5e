"""Structured logs of this code and its libraries on stderr, one JSON object a line.

The length of a line is limited, since journald splits lines at 48 KiB. Control characters are
escaped.

Secrets are hidden: values under keys that sound like a secret, and whatever looks like a token or a
password in a URL, also in tracebacks. The last part of VMs' addresses is left out.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

HIDDEN = "***"
SECRET_KEY = re.compile(r"authorization|cookie|token|secret|passw|credential|api_?key", re.I)
# Repetitions are limited: else long texts would take quadratic time.
SECRET_TEXT = re.compile(
    r"(?P<keep>\bBearer\s+|\baccess_token=|://[^/\s:@]*:(?=[^\s@]{1,1024}@))[^\s@\"'&]+(?P<at>@?)"
    r"|\beyJ[\w-]{8,2048}\.[\w-]{1,8192}\.[\w-]*"  # a JWT
    r"|\bpdt_[\w-]+"  # an operator's token
)
ADDRESS_KEY = re.compile(r"vm_?ip|(vm_?)?address", re.I)
ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.)\d{1,3}(?![\w.]*\w)")
VM_NETWORK = IPv4Network("192.168.100.0/24")
# These libraries log each of their steps, which our own events cover.
QUIET = ("uvicorn", "alembic", "aiosqlite", "sqlalchemy", "asyncio", "httpx", "httpcore")


@dataclass(frozen=True)
class Bounds:
    """Limits of one event: characters of a text and of a traceback, number of values, and depth of
    lists and mappings."""

    text: int
    traceback: int
    values: int
    depth: int


MOST_LINE_BYTES = 32 * 1024
# The first that makes the line short enough is used. JSON may escape a character as twelve.
BOUNDS = (
    Bounds(text=2048, traceback=16 * 1024, values=200, depth=6),
    Bounds(text=512, traceback=2048, values=40, depth=3),
    Bounds(text=64, traceback=512, values=15, depth=2),
)
ALWAYS_TOLD = ("event", "level", "logger", "time", "requestId")
MOST_KEY_CHARACTERS = 64
MOST_SEARCHED = 4
"""Texts are cut to so many times the limit before they are searched for secrets, and to the limit
after that: a cut cannot split a secret."""
MOST_INTEGER_BITS = 256
TRACEBACKS = frozenset({"exception", "stack", "exc_info", "stack_info"})
# Control characters, other line ends, changes of the writing direction, and surrogates.
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Bounded:
    """Render an event without secrets and within limits; `vm_network` has the VMs' addresses."""

    def __init__(self, render: Processor, vm_network: IPv4Network) -> None:
        self._render = render
        self._vm_network = vm_network

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        said = {key: event[key] for key in ALWAYS_TOLD if key in event}
        event = {**said, **event}
        for bounds in BOUNDS:
            line = str(self._render(logger, method, self._event(event, bounds)))
            if len(line.encode(errors="replace")) <= MOST_LINE_BYTES:
                return line
        return str(self._render(logger, method, self._event(said, BOUNDS[-1])))

    def _event(self, event: EventDict, bounds: Bounds) -> dict[str, Any]:
        shown: dict[str, Any] = self._values(event, bounds, iter(range(bounds.values)), 1)
        return shown

    def _shown(
        self, key: str, value: Any, bounds: Bounds, budget: Iterator[int], depth: int
    ) -> Any:
        if SECRET_KEY.search(key):
            return HIDDEN
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int):
            return value if value.bit_length() <= MOST_INTEGER_BITS else "a large number"
        if isinstance(value, (Mapping, list, tuple, Set)):
            if depth >= bounds.depth:
                return f"({len(value)} values)"
            return self._values(value, bounds, budget, depth + 1)
        return self._text(key, value if isinstance(value, str) else _described(value), bounds)

    def _values(self, values: Any, bounds: Bounds, budget: Iterator[int], depth: int) -> Any:
        if not isinstance(values, Mapping):
            return [
                self._shown("", each, bounds, budget, depth)
                for each, _ in zip(values, budget, strict=False)
            ]
        return {
            escaped(str(key)[:MOST_KEY_CHARACTERS]): self._shown(
                str(key), value, bounds, budget, depth
            )
            for (key, value), _ in zip(values.items(), budget, strict=False)
        }

    def _text(self, key: str, text: str, bounds: Bounds) -> str:
        is_traceback = key in TRACEBACKS
        most = bounds.traceback if is_traceback else bounds.text
        searched = text[-MOST_SEARCHED * most :] if is_traceback else text[: MOST_SEARCHED * most]
        hidden = self._hidden(searched, every_address=ADDRESS_KEY.fullmatch(key) is not None)
        shown = escaped(hidden, lines=is_traceback)
        if len(shown) <= most and len(searched) == len(text):
            return shown
        note = f"({len(text)} characters)"
        room = most - len(note) - 1
        return f"{note} {shown[-room:]}" if is_traceback else f"{shown[:room]} {note}"

    def _hidden(self, text: str, *, every_address: bool) -> str:
        def masked(found: re.Match[str]) -> str:
            return f"{found[1]}x" if every_address or self._is_vm(found[0]) else found[0]

        hidden = SECRET_TEXT.sub(
            lambda found: f"{found['keep'] or ''}{HIDDEN}{found['at'] or ''}", text
        )
        return ADDRESS.sub(masked, hidden)

    def _is_vm(self, text: str) -> bool:
        try:
            return IPv4Address(text) in self._vm_network
        except ValueError:  # 999.1.1.1, or a version number
            return False


def escaped(text: str, *, lines: bool = False) -> str:
    """Escape all unprintable characters. With `lines`, line ends stay and further lines are
    indented, so that none looks like a line of the log."""
    if lines:
        return "\n  ".join(escaped(line) for line in text.split("\n"))
    return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def _described(value: object) -> str:
    try:
        return str(value) if isinstance(value, (IPv4Address, BaseException)) else repr(value)
    except Exception as error:
        return f"({type(value).__name__}, which fails to describe itself: {type(error).__name__})"


def configure_logs(level: str, form: str, vm_network: IPv4Network = VM_NETWORK) -> None:
    """Send the logs of this process and its libraries to stderr, as `json` or `console`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                Bounded(_renderer(form), vm_network),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _renderer(form: str) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
