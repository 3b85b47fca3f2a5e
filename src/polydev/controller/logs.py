"""Structured logs on stderr, one JSON object a line, for this code and for all that it uses.

Secrets never get in: values under keys that sound like one are hidden, and so is whatever looks
like a token or a password in a URL, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

HIDDEN = "***"
SECRET_KEY = re.compile(r"authorization|cookie|token|secret|passw|credential|api_?key", re.I)
SECRET_TEXT = re.compile(
    r"(?P<keep>\bBearer\s+|://[^/\s:@]*:)[^\s@\"']+(?P<at>@?)"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # a JWT
)
# They say a line for each step of their own, which our events say already.
QUIET = ("uvicorn", "alembic", "aiosqlite", "sqlalchemy", "asyncio")


def without_secrets(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {key: _shown(key, value) for key, value in event.items()}


def _shown(key: str, value: Any) -> Any:
    if SECRET_KEY.search(key):
        return HIDDEN
    if isinstance(value, str):
        return SECRET_TEXT.sub(
            lambda found: f"{found['keep'] or ''}{HIDDEN}{found['at'] or ''}", value
        )
    if isinstance(value, dict):
        return {name: _shown(str(name), each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown("", each) for each in value]
    return value


def configure_logs(level: str, form: str) -> None:
    """Send this process's logs, those of libraries included, to stderr in one form."""
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
                without_secrets,
                _renderer(form),
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
