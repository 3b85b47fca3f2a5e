"""A user of the tests' provider who needs no browser but an HTTP client."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from tests.oidc.provider import ACCOUNTS


@dataclass(frozen=True)
class Person:
    """One of the provider's users, by name."""

    name: str

    async def log_in(self, url: str) -> str:
        """Log in at the page that a tool opened, and let the tool in; return the last page."""
        return await self._answer(url, "allow")

    async def deny(self, url: str) -> str:
        """Log in at the page that a tool opened, and refuse the tool; return the last page."""
        return await self._answer(url, "deny")

    async def _answer(self, url: str, answer: str) -> str:
        async with httpx.AsyncClient(trust_env=False, follow_redirects=True, timeout=60) as http:
            asked = await http.get(url)
            words = {"name": self.name, "password": ACCOUNTS[self.name], "answer": "login"}
            consent = await http.post(asked.url, data=words)
            assert "Let testtool in?" in consent.text
            return (await http.post(consent.url, data={"answer": answer})).text
