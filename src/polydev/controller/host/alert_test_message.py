"""Send a test message to each address that alerts go to, and say whether it was accepted."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from pydantic import SecretStr

from polydev.controller.host.alert_sender import TIMEOUT_SECONDS, apprise_of
from polydev.errors import ConfigError
from polydev.vm.cancel_on_timeout import limited

if TYPE_CHECKING:
    from apprise import Apprise

TITLE = "[test] {host}: a test of alert messages"
BODY = "Nothing is wrong. Alerts of this host will arrive here."
SHORTEST_SECRET = 4
MOST_CHARACTERS = 300


@dataclass(frozen=True)
class AlertTestResult:
    """The result for one address: `target` is its place in the list, `said` why it failed."""

    target: int
    service: str
    sent: bool
    said: str | None


async def send_test_messages(
    urls: SecretStr | None, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[AlertTestResult]:
    """Send to each address in turn. Raises ConfigError where no address is configured."""
    listed = urls.get_secret_value().split() if urls else []
    if not listed:
        raise ConfigError(
            "this host has no alert-urls to send alerts to",
            "name a file of addresses as alert-urls in the inventory's secrets, then ./inv deploy",
        )
    return [await _try(number, url, timeout_seconds) for number, url in enumerate(listed, start=1)]


async def _try(number: int, url: str, timeout_seconds: float) -> AlertTestResult:
    send_by = apprise_of(url)
    if send_by is None:
        return AlertTestResult(
            number, "unknown", sent=False, said="not an address of a supported service"
        )
    service = str(next(iter(send_by)).service_name)
    try:
        sent, said = await limited(timeout_seconds, _sent(send_by))
    except asyncio.TimeoutError:
        sent, said = False, f"no answer within {timeout_seconds:g} s"
    except Exception as error:  # a service's plugin may raise anything
        sent, said = False, type(error).__name__
    return AlertTestResult(
        number, service, sent, None if sent else masked(said, url)[:MOST_CHARACTERS]
    )


async def _sent(send_by: Apprise) -> tuple[bool, str]:
    from apprise import NotifyType

    said = StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("apprise")
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # its words may hold the address
    logger.setLevel(logging.WARNING)
    try:
        title = TITLE.format(host=socket.gethostname())
        sending = send_by.async_notify(body=BODY, title=title, notify_type=NotifyType.INFO)
        return bool(await sending), " ".join(said.getvalue().split()) or "no reason given"
    finally:
        logger.setLevel(level)
        logger.propagate = propagates
        logger.removeHandler(handler)


def masked(text: str, url: str) -> str:
    """Return the text without possible secrets of an address: all parts but scheme and host."""
    _, _, rest = url.partition("://")
    user, at, address = rest.rpartition("@")
    host = re.split(r"[/:?#]", address, maxsplit=1)[0]
    parts = re.split(r"[/:?#&=@,]", f"{user}{at}{address.removeprefix(host)}")
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST_SECRET:
            text = text.replace(part, "…")
    return text
