"""Requests for an agent's health: the result of each answer, and of none."""

from __future__ import annotations

import re
from threading import Event
from urllib.parse import urlsplit

import pytest

from polydev.errors import VmError, VmTimeout
from polydev.vm.config import Ports
from polydev.vm.health import agent_health
from tests.loopback import Answer, Asked, Served, as_json, served


def ports_of(server: Served) -> Ports:
    return Ports(urlsplit(server.url).port or 0, 1, 1)


@pytest.mark.parametrize("status", [200, 503])
def test_health_is_returned_for_any_status(status: int) -> None:
    with served(lambda _asked: as_json({"status": "ready"}, status)) as server:
        assert agent_health(ports_of(server)) == (status, {"status": "ready"})
    assert [asked.target for asked in server.asked] == ["/health"]


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"\xff", b"[" * 100_000],
    ids=["none", "page", "list", "bytes", "deep"],
)
def test_answer_that_is_no_json_object_has_empty_body(body: bytes) -> None:
    with served(lambda _asked: Answer(404, body)) as server:
        assert agent_health(ports_of(server)) == (404, {})


def test_refused_connection_is_reported_with_address() -> None:
    words = "the agent does not answer on http://127.0.0.1:1: [Errno 111] Connection refused"
    with pytest.raises(VmError, match=re.escape(words)):
        agent_health(Ports(1, 1, 1))


def test_silent_agent_times_out() -> None:
    over = Event()

    def late(_asked: Asked) -> Answer:
        over.wait()
        return Answer()

    with served(late) as server:
        with pytest.raises(VmTimeout, match=r"does not answer on http://127.* within 0\.05 s"):
            agent_health(ports_of(server), 0.05)
        over.set()
