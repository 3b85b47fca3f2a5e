"""Post one signed message to an endpoint.

Receivers are not trusted: time and size of answers are limited, and redirects are not followed.
Messages about failures have no URL and no secret.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

import httpx

from polydev.errors import VmError
from polydev.vm.boot_stages import printable
from polydev.vm.cancel_on_timeout import within

# Limits of the answer's body, which only serves for messages: the status alone counts.
MOST_ANSWER_BYTES = 16 * 1024
BODY_SECONDS = 5.0
MOST_SAID_CHARACTERS = 200
GONE_STATUS = 410


@dataclass(frozen=True)
class WebhookReply:
    """The result of an attempt: status and beginning of the answer, or why there was none.

    seconds              how long it took
    retry_after_seconds  the pause that the endpoint asks for, if any
    """

    status: int | None
    said: str
    seconds: float = 0.0
    retry_after_seconds: float | None = None

    @property
    def is_taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def problem(self) -> str | None:
        """Why it does not count as delivered; None if it does."""
        if self.status is None:
            return self.said
        if self.is_taken:
            return None
        redirects = ", a redirect, which is not followed" if 300 <= self.status < 400 else ""
        return f"it answered {self.status}{redirects}" + (f": {self.said}" if self.said else "")


def open_client(at_once: int, timeout_seconds: float) -> httpx.AsyncClient:
    """Return an HTTP client for one endpoint, with the host's certificate authorities."""
    # Connections are not kept: the receiver might close one while the next message is sent.
    limits = httpx.Limits(max_connections=at_once + 1, max_keepalive_connections=0)
    return httpx.AsyncClient(
        trust_env=False,
        verify=ssl.create_default_context(),
        limits=limits,
        timeout=timeout_seconds,
        headers={"User-Agent": "polydev-host", "Accept-Encoding": "identity"},
    )


async def post(
    client: httpx.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: str,
    timeout_seconds: float,
    at: datetime,
) -> WebhookReply:
    """Post a message and return the result. Only cancellation raises."""
    began = time.monotonic()
    try:
        reply = await within(timeout_seconds, _send(client, url, headers, body, at), "the answer")
    except (VmError, httpx.TimeoutException):
        reply = WebhookReply(None, f"no answer within {timeout_seconds:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # idna's: ValueError
        reply = WebhookReply(None, _words(error))
    return WebhookReply(
        reply.status, reply.said, round(time.monotonic() - began, 3), reply.retry_after_seconds
    )


async def _send(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], body: str, at: datetime
) -> WebhookReply:
    sent = {**headers, "Content-Type": "application/json"}
    async with client.stream("POST", url, content=body.encode(), headers=sent) as answer:
        try:
            said = await within(BODY_SECONDS, _beginning(answer), "its text")
        except (VmError, httpx.HTTPError):
            said = ""
        retry_after = _seconds_of(answer.headers.get("Retry-After"), at)
        return WebhookReply(answer.status_code, said, retry_after_seconds=retry_after)


async def _beginning(answer: httpx.Response) -> str:
    """Return the beginning of the answer; the connection is closed if there is more."""
    read = bytearray()
    async for part in answer.aiter_raw(4096):
        read += part
        if len(read) >= MOST_ANSWER_BYTES:
            break
    text = printable(read.decode("utf-8", "replace"))
    return " ".join(text.split())[:MOST_SAID_CHARACTERS]


def _seconds_of(retry_after: str | None, at: datetime) -> float | None:
    """Return the seconds of a Retry-After, which has seconds or a time; None if invalid."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        until = parsedate_to_datetime(retry_after)
        return max(0.0, (until - at).total_seconds())
    except (TypeError, ValueError, OverflowError):  # not a time, or without a zone
        return None


def _words(error: BaseException) -> str:
    """Return why no answer came, by the root cause of an error."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for each in reversed(causes):
        if isinstance(each, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {each.verify_message}"
        if isinstance(each, ssl.SSLError):
            return f"TLS failed: {(each.reason or 'no reason given').replace('_', ' ').lower()}"
        if isinstance(each, socket.gaierror):
            return f"its host name cannot be resolved: {each.strerror}"
        if isinstance(each, UnicodeError):
            return "its host name is not valid"
    words: dict[type[BaseException], str] = {
        httpx.ConnectError: "cannot connect: nothing listens at its address, or the host is down",
        httpx.ReadError: "the connection broke before an answer",
        httpx.WriteError: "the connection broke before the message was sent",
        httpx.RemoteProtocolError: "it closed the connection without an answer, or sent no HTTP",
    }
    return words.get(type(error), type(error).__name__)
