"""Structured logs on stderr, one JSON object a line, for this code and for all that it uses.

Secrets never get in: values under keys that sound like one are hidden, and so is whatever looks
like a token or a password in a URL, tracebacks included. Of a VM's address the last part is left
out.
"""

from __future__ import annotations

import logging
import re
import sys
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

HIDDEN = "***"
SECRET_KEY = re.compile(r"authorization|cookie|token|secret|passw|credential|api_?key", re.I)
SECRET_TEXT = re.compile(
    r"(?P<keep>\bBearer\s+|\baccess_token=|://[^/\s:@]*:(?=[^\s@]+@))[^\s@\"'&]+(?P<at>@?)"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"  # a JWT
    r"|\bpdt_[\w-]+"  # an operator's token
)
ADDRESS_KEY = re.compile(r"vm_?ip|(vm_?)?address", re.I)
ADDRESS = re.compile(r"(?<![\w.])(\d{1,3}\.\d{1,3}\.\d{1,3}\.)\d{1,3}(?![\w.]*\w)")
VM_NETWORK = IPv4Network("192.168.100.0/24")
# They say a line for each step of their own, which our events say already.
QUIET = ("uvicorn", "alembic", "aiosqlite", "sqlalchemy", "asyncio", "httpx", "httpcore")


class WithoutSecrets:
    """The last step before a line is written; addresses of `vm_network` are VMs'."""

    def __init__(self, vm_network: IPv4Network) -> None:
        self._vm_network = vm_network

    def __call__(self, _logger: object, _method: str, event: EventDict) -> EventDict:
        return {key: self._shown(key, value) for key, value in event.items()}

    def _shown(self, key: str, value: Any) -> Any:
        if SECRET_KEY.search(key):
            return HIDDEN
        if isinstance(value, str):
            return self._text(value, every_address=ADDRESS_KEY.fullmatch(key) is not None)
        if isinstance(value, IPv4Address):
            return self._shown(key, str(value))
        if isinstance(value, dict):
            return {name: self._shown(str(name), each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._shown("", each) for each in value]
        return value

    def _text(self, text: str, *, every_address: bool) -> str:
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


def configure_logs(level: str, form: str, vm_network: IPv4Network = VM_NETWORK) -> None:
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
                WithoutSecrets(vm_network),
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
