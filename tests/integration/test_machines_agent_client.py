"""Requests to agents that do not answer, or answer wrongly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from polydev.controller.machines.agent_client import AgentClient
from polydev.errors import AgentError, AgentUnreachable, ProtocolError

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ADDRESS = "127.0.0.1"


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def dripping(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send one byte now and then, so that no single read is slow."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)
    except ConnectionError:
        writer.close()


async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    try:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
    except ConnectionError:
        writer.close()


async def garbage(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"RFB 003.008\n")
    writer.close()


async def redirecting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nConnection: close\r\n\r\n"
    )
    writer.close()


@pytest.mark.parametrize(
    ("serve", "seconds", "kind", "words"),
    [
        (silent, 0.3, AgentUnreachable, "did not answer within 0.3 s"),
        (dripping, 0.3, AgentUnreachable, "did not answer within 0.3 s"),
        (endless, 60, ProtocolError, "is over"),
        (garbage, 60, AgentUnreachable, "is not HTTP"),
        (redirecting, 60, ProtocolError, "answers 302"),
    ],
)
def test_bad_agent_answer_raises_agent_error_in_time(
    serve: Serve, seconds: float, kind: type[AgentError], words: str
) -> None:
    async def scenario() -> AgentError:
        server = await asyncio.start_server(serve, ADDRESS, 0)
        client = AgentClient(seconds, port=server.sockets[0].getsockname()[1])
        try:
            with pytest.raises(AgentError) as raised:
                await client.health(ADDRESS)
        finally:
            await client.close()
            server.close()
        return raised.value

    error = asyncio.run(scenario())
    assert isinstance(error, kind)
    assert words in error.message
    assert ADDRESS not in error.message


@pytest.mark.parametrize("end", ["closed", "cancelled"])
def test_cancelled_request_closes_its_connection(end: str) -> None:
    async def scenario() -> None:
        has_come, is_gone = asyncio.Event(), asyncio.Event()
        others = {asyncio.current_task()}

        async def listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            others.add(asyncio.current_task())
            await reader.readuntil(b"\r\n\r\n")
            has_come.set()
            await reader.read()
            is_gone.set()
            writer.close()

        server = await asyncio.start_server(listening, ADDRESS, 0)
        client = AgentClient(60, port=server.sockets[0].getsockname()[1])
        asking = asyncio.create_task(client.health(ADDRESS))
        await has_come.wait()
        if end == "closed":
            await client.close()
            with pytest.raises(AgentUnreachable, match="the controller ended"):
                await asking
        else:
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await is_gone.wait()
        assert asyncio.all_tasks() <= others
        await client.close()
        server.close()

    asyncio.run(scenario())


def test_login_start_has_longer_timeout() -> None:
    async def scenario() -> None:
        others_are_late = asyncio.Event()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked = await reader.readuntil(b"\r\n\r\n")
            await others_are_late.wait()
            body = b'{"provider":"claude","status":"starting","url":null,"detail":""}'
            if asked.startswith(b"POST"):
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
            writer.close()

        server = await asyncio.start_server(slow, ADDRESS, 0)
        client = AgentClient(1, port=server.sockets[0].getsockname()[1])
        starting = asyncio.create_task(client.login(ADDRESS, "claude", start=True))
        with pytest.raises(AgentUnreachable, match="within 1 s") as raised:
            await client.login(ADDRESS, "claude")
        assert "ask again" in (raised.value.hint or "")
        others_are_late.set()
        assert (await starting).status == "starting"
        await client.close()
        server.close()

    asyncio.run(scenario())


def test_refused_connection_raises_agent_unreachable() -> None:
    async def scenario() -> None:
        client = AgentClient(5, port=1)
        try:
            with pytest.raises(AgentUnreachable, match="connection refused"):
                await client.health(ADDRESS)
        finally:
            await client.close()

    asyncio.run(scenario())


def test_close_does_not_wait_for_pending_connection() -> None:
    async def scenario() -> None:
        with socket.socket() as full:
            full.bind((ADDRESS, 0))
            full.listen(0)
            # Connections beyond the queue are neither taken nor refused.
            others = [socket.socket() for _ in range(4)]
            for other in others:
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            client = AgentClient(3600, port=full.getsockname()[1])
            asking = asyncio.create_task(client.health(ADDRESS))
            for _ in range(20):  # until it connects
                await asyncio.sleep(0)
            assert client._under_way
            await client.close()
            with pytest.raises(AgentUnreachable, match="the controller ended"):
                await asking
            for other in others:
                other.close()

    asyncio.run(scenario())
