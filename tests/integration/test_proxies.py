"""The controller behind real nginx and Caddy, configured as docs/controller.md says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
import pytest

from polydev.controller.api import events, novnc
from polydev.controller.auth.cookies import PLAIN_NAME, SECURE_NAME
from polydev.controller.relay.keepalive import KeepaliveTimer
from tests.certificates import Tls, make_tls
from tests.proxies import PROGRAMS, Proxy, proxy
from tests.relays import HOST, PATIENCE_SECONDS, Screens, raw_viewer, screens
from tests.vms import RFB_GREETING

CLOSE, PING, PONG = 8, 9, 10
TRUSTED = ("127.0.0.1/32",)
SOMEBODY, ANOTHER = "127.0.0.2", "127.0.0.3"
HOURS = 3600.0
PACES = (1, 5, 25)


@dataclass
class Behind:
    """A controller, and a proxy in front of it with a certificate by an authority of its own."""

    made: Screens
    proxy: Proxy
    tls: Tls

    @property
    def screens(self) -> Screens:
        """The same service, reached through the proxy."""
        return replace(self.made, port=self.proxy.port, tls=self.tls)

    def client(self, caller: str | None = "user", source: str | None = None) -> httpx.AsyncClient:
        """A client with an address of its own."""
        transport = httpx.AsyncHTTPTransport(verify=self.tls.client(), local_address=source)
        token = {"Authorization": f"Bearer {self.made.tokens[caller]}"} if caller else {}
        return httpx.AsyncClient(
            base_url=self.proxy.url, headers=token, transport=transport, timeout=PATIENCE_SECONDS
        )


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_tls(tmp_path_factory.mktemp("tls"))


@asynccontextmanager
async def behind(
    program: str, folder: Path, tls: Tls, *, settings: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Behind]:
    values = {"trusted_proxies": TRUSTED, **(settings or {})}
    own = Path(mkdtemp(dir=folder))
    async with (
        screens(own, **values) as made,
        proxy(program, made.port, tls, own / "proxy", **options) as before,
    ):
        yield Behind(made, before, tls)


@pytest.fixture(params=list(PROGRAMS))
def start(request: pytest.FixtureRequest, tmp_path: Path, tls: Tls) -> Callable[..., Any]:
    return partial(behind, request.param, tmp_path, tls)


def play(scenario: Awaitable[None]) -> None:
    asyncio.run(_awaited(scenario))


def play_at_some_pace(scenario: Callable[[int], Awaitable[None]]) -> None:
    """Play a scenario whose times are multiples of its pace, slower if the machine was too slow."""
    for pace in PACES[:-1]:
        with suppress(AssertionError, asyncio.IncompleteReadError):
            play(scenario(pace))
            return
    play(scenario(PACES[-1]))


async def _awaited(scenario: Awaitable[None]) -> None:
    await scenario


def test_screen_is_relayed_through_proxy(start: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with start() as host:
            session = await host.made.session()
            async with host.screens.connect(session.id) as viewer:
                assert await viewer.recv() == RFB_GREETING
                await viewer.send(b"x" * 100_000)
                got = b""
                while len(got) < 100_000:
                    got += await viewer.recv()
                assert got == b"x" * 100_000

    play(scenario())


def test_pings_keep_idle_viewer_open_through_proxy(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings and timeout have the ratio of the real 20 s and 60 s; the viewer idles for three."""

    async def scenario(pace: int) -> None:
        monkeypatch.setattr(novnc, "KeepaliveTimer", partial(KeepaliveTimer, 0.4 * pace))
        async with start(read_timeout=f"{1200 * pace}ms") as host:
            session = await host.made.session()
            async with raw_viewer(host.screens, session.id) as viewer:
                assert (await viewer.frame())[1] == RFB_GREETING
                for _ in range(9):
                    assert await asyncio.wait_for(viewer.frame(), PATIENCE_SECONDS) == (PING, b"")
                    viewer.send(PONG, b"")
                viewer.send(2, b"still here")
                while (frame := await viewer.frame())[0] == PING:
                    viewer.send(PONG, b"")
                assert frame == (2, b"still here")

    play_at_some_pace(scenario)


def test_nginx_closes_idle_viewer_without_pings(
    tmp_path: Path, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novnc, "KeepaliveTimer", partial(KeepaliveTimer, HOURS))

    async def scenario(pace: int) -> None:
        async with behind("nginx", tmp_path, tls, read_timeout=f"{300 * pace}ms") as host:
            session = await host.made.session()
            async with raw_viewer(host.screens, session.id) as viewer:
                assert (await viewer.frame())[1] == RFB_GREETING
                with pytest.raises(asyncio.IncompleteReadError):
                    await asyncio.wait_for(viewer.frame(), PATIENCE_SECONDS)

    play_at_some_pace(scenario)


@pytest.mark.parametrize("compresses", [False, True], ids=["plain", "compressed"])
def test_event_is_not_buffered_by_proxy(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *, compresses: bool
) -> None:
    """No later data is sent that would flush it from a buffer."""
    monkeypatch.setattr(events, "FIRST_PING_SECONDS", HOURS)
    accepted = {"Accept-Encoding": "gzip" if compresses else "identity"}

    async def scenario() -> None:
        async with start(compresses=compresses) as host:
            session = await host.made.booting()
            path = f"/api/auth/session/{session.id}/events"
            async with (
                host.client() as client,
                client.stream("GET", path, headers=accepted) as told,
            ):
                assert told.status_code == 200
                # Caddy does not compress an answer whose first chunk is small.
                is_compressed = compresses and host.proxy.program == "nginx"
                assert (told.headers.get("content-encoding") == "gzip") == is_compressed
                lines = told.aiter_lines()
                await _until_line(lines, "vm_starting")
                await host.made.vms[session.id].reach("services")
                await host.made.services.vms.ready(session.vm_id)
                await _until_line(lines, "vm_created")

    play(scenario())


async def _until_line(lines: AsyncIterator[str], words: str) -> None:
    async def look() -> None:
        async for line in lines:
            if words in line:
                return
        raise AssertionError(f"the stream ended before {words}")

    await asyncio.wait_for(look(), PATIENCE_SECONDS)


def test_failed_logins_count_for_client_address_of_proxy(start: Callable[..., Any]) -> None:
    """Addresses that a client makes up do not count."""

    async def scenario() -> None:
        rate = {"failures_per_minute": 0.001, "failures_burst": 3}
        async with start(settings={"rate": rate}) as host:

            async def status(source: str, number: int) -> int:
                made_up = {"X-Forwarded-For": f"192.0.2.{number}", "Authorization": "Bearer pdt_no"}
                async with host.client(None, source) as client:
                    answer = await client.get("/api/auth/sessions", headers=made_up)
                    return int(answer.status_code)

            assert [await status(SOMEBODY, each) for each in range(5)] == [401] * 3 + [429] * 2
            assert await status(ANOTHER, 1) == 401

    play(scenario())


@pytest.mark.parametrize("is_trusted", [True, False])
def test_cookie_is_secure_only_behind_trusted_proxy(
    start: Callable[..., Any], *, is_trusted: bool
) -> None:
    settings = {"trusted_proxies": TRUSTED if is_trusted else ()}

    async def scenario() -> None:
        async with start(settings=settings) as host:
            form = {"token": host.made.tokens["user"], "next": "/"}
            own = {"Origin": host.proxy.url}
            async with host.client(None) as client:
                answer = await client.post("/login", data=form, headers=own)
            assert answer.status_code == 303, answer.text
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith(SECURE_NAME if is_trusted else f"{PLAIN_NAME}=")
            assert ("; Secure" in cookie) == is_trusted
            # The headers of clients that bypass the proxy are ignored.
            direct = httpx.AsyncHTTPTransport(local_address=SOMEBODY)
            url = f"http://{HOST}:{host.made.port}"
            async with httpx.AsyncClient(
                base_url=url, transport=direct, timeout=PATIENCE_SECONDS
            ) as client:
                words = {"X-Forwarded-Proto": "https"}
                answer = await client.post("/login", data=form, headers=words)
            assert answer.headers["set-cookie"].startswith(f"{PLAIN_NAME}=")
            assert "; Secure" not in answer.headers["set-cookie"]

    play(scenario())


def test_proxy_answers_have_hsts_header(start: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with start() as host, host.client(None) as client:
            answer = await client.get("/api/auth/health")
            assert answer.status_code == 200
            assert answer.headers["strict-transport-security"] == "max-age=31536000"

    play(scenario())
