"""The public keys of an identity provider (JWKS), fetched when needed and cached."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import httpx
import jwt
import structlog

from polydev.vm.cancel_on_timeout import limited

log = structlog.stdlib.get_logger(__name__)

FETCH_TIMEOUT_SECONDS = 5.0
FETCH_PAUSE_SECONDS = 10.0
KEEP_SECONDS = 600.0
# After this time without a fetch, even a known key is only used once a new fetch has ended.
IDLE_SECONDS = 3600.0
MOST_BYTES = 256 * 1024
MOST_REDIRECTS = 3


class KeysUnavailable(Exception):
    """The keys were never fetched; the message says why."""


class NotFetched(Exception):
    """Why the provider's answer is not a set of keys, without its URL."""


class Jwks:
    """Keys by their id. Fetches at most once in FETCH_PAUSE_SECONDS, whatever is asked for.

    A known key is returned at once; if it is older than KEEP_SECONDS, the keys are fetched in the
    background. Known keys stay valid while the provider does not answer: its outage must not
    become ours.
    """

    def __init__(
        self,
        url: str,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._transport = transport
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._trouble = "they were not fetched yet"
        self._fetching: asyncio.Task[None] | None = None
        self._was_idle = False

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """Return the key, or None if the provider has none with this id. Raises KeysUnavailable."""
        is_known = key_id in self._keys
        if not is_known or self._since(self._fetched_at) > KEEP_SECONDS:
            fetching = self._fetch_beside()
            if fetching is not None and (not is_known or self._was_idle):
                await asyncio.shield(fetching)  # others wait for the same
        if self._fetched_at is None:
            raise KeysUnavailable(self._trouble)
        return self._keys.get(key_id)

    def _since(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment

    def _fetch_beside(self) -> asyncio.Task[None] | None:
        """Return the running fetch; start one if it is due."""
        is_idle = self._fetching is None or self._fetching.done()
        if is_idle and self._since(self._tried_at) > FETCH_PAUSE_SECONDS:
            self._was_idle = self._since(self._tried_at) > IDLE_SECONDS
            self._tried_at = self._clock()
            # An own context: the fetch outlives the request, whose id must not be in its logs.
            self._fetching = Context().run(asyncio.create_task, self._fetch())
        return None if self._fetching is None or self._fetching.done() else self._fetching

    async def _fetch(self) -> None:
        try:
            text = await limited(FETCH_TIMEOUT_SECONDS, self._document())
            keys = keys_of(text)
        except Exception as error:  # the provider may send anything
            self._trouble = _reason(error)
            log.warning("jwks_fetch_failed", url=self._url, reason=self._trouble)
            return
        if not keys:
            log.warning("jwks_is_empty", url=self._url)
        self._keys = keys
        self._fetched_at = self._clock()

    async def _document(self) -> bytes:
        """Return the provider's answer, after its redirects."""
        async with httpx.AsyncClient(
            transport=self._transport, timeout=FETCH_TIMEOUT_SECONDS
        ) as client:
            request = client.build_request("GET", self._url)
            for _ in range(1 + MOST_REDIRECTS):
                answer = await client.send(request, stream=True)
                try:
                    if answer.next_request is None:
                        return await _body(answer)
                finally:
                    await answer.aclose()
                if request.url.scheme == "https" and answer.next_request.url.scheme != "https":
                    raise NotFetched("it redirects from https to an address without TLS")
                request = answer.next_request
        raise NotFetched(f"it redirects more than {MOST_REDIRECTS} times")

    async def close(self) -> None:
        """Cancel the running fetch."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait({self._fetching})


async def _body(answer: httpx.Response) -> bytes:
    if not answer.is_success:
        raise NotFetched(f"it answers {answer.status_code}")
    read = bytearray()
    async for part in answer.aiter_bytes():
        read += part
        if len(read) > MOST_BYTES:
            raise NotFetched(f"its answer has more than {MOST_BYTES} bytes")
    return bytes(read)


def keys_of(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the usable keys of a JWKS by their id. Raises NotFetched."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise NotFetched("its answer is not JSON") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise NotFetched("its answer is not a JWKS")
    found = [key for each in listed if (key := _key_of(each)) is not None]
    return {key.key_id: key for key in found}


def _key_of(described: Any) -> jwt.PyJWK | None:
    try:
        key = jwt.PyJWK(described)
    except Exception:  # an unknown type of key, or not a key
        return None
    is_named = key.key_id is None or isinstance(key.key_id, str)
    return key if is_named and key.public_key_use in (None, "sig") else None


def _reason(error: Exception) -> str:
    if isinstance(error, NotFetched):
        return str(error)
    if isinstance(error, (asyncio.TimeoutError, httpx.TimeoutException)):
        return f"it does not answer within {FETCH_TIMEOUT_SECONDS:g} s"
    return f"it cannot be reached ({type(error).__name__})"
