"""The public keys of an identity provider (JWKS), fetched when needed and kept for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
import jwt
import structlog

log = structlog.stdlib.get_logger(__name__)

FETCH_TIMEOUT_SECONDS = 5.0
FETCH_PAUSE_SECONDS = 10.0
KEEP_SECONDS = 600.0
MOST_BYTES = 256 * 1024


class KeysUnavailable(Exception):
    """The provider could not be asked, and no key of it is known."""


class Keys:
    """Keys by their id. Fetches at most once in FETCH_PAUSE_SECONDS, whatever is asked for."""

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
        self._one_at_a_time = asyncio.Lock()

    async def get(self, key_id: str | None) -> jwt.PyJWK | None:
        """The key, or None if the provider has none of that id. Raises KeysUnavailable."""
        if key_id not in self._keys or self._since(self._fetched_at) > KEEP_SECONDS:
            async with self._one_at_a_time:
                if self._since(self._tried_at) > FETCH_PAUSE_SECONDS:
                    await self._fetch()
        if self._fetched_at is None:
            raise KeysUnavailable
        return self._keys.get(key_id)

    def _since(self, moment: float | None) -> float:
        return float("inf") if moment is None else self._clock() - moment

    async def _fetch(self) -> None:
        self._tried_at = self._clock()
        try:
            document = await asyncio.wait_for(self._document(), FETCH_TIMEOUT_SECONDS)
            found = jwt.PyJWKSet.from_json(document).keys
        except Exception as error:  # who knows what it sends
            # What is known stays good: the provider's outage must not be ours.
            log.warning("keys of the identity provider not fetched", error=repr(error))
            return
        self._keys = {key.key_id: key for key in found}
        self._fetched_at = self._clock()

    async def _document(self) -> str:
        async with (
            httpx.AsyncClient(transport=self._transport, timeout=FETCH_TIMEOUT_SECONDS) as client,
            client.stream("GET", self._url) as answer,
        ):
            answer.raise_for_status()
            read = bytearray()
            async for part in answer.aiter_bytes():
                read += part
                if len(read) > MOST_BYTES:
                    raise ValueError(f"more than {MOST_BYTES} bytes")
        return read.decode()
