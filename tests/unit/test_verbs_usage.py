"""usage: users' usage, in the units of their quotas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from invoke.context import Context

from polydev.client.controller_api import ControllerApi
from tests.loopback import Answer, Asked, as_json, served
from verbs import usage

USED = {
    "vmSeconds": 5400.0,
    "cpuSeconds": 360.0,
    "receivedBytes": 3 << 29,
    "sentBytes": 0,
    "sessions": 2,
}
QUOTA = {"quota": "traffic_gib_per_day", "used": 1.5, "limit": 2.0}
USER = {
    "userId": "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10",
    "name": "Ada",
    "total": USED,
    "quotas": [QUOTA],
}


def controller(asked: Asked) -> Answer:
    assert asked.path.startswith("/api/admin/usage"), asked
    return as_json({"since": "2026-11-01", "users": [USER]})


@pytest.fixture
def _reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with served(controller) as server, ControllerApi(server.url, "pdt_x") as api:

        @contextmanager
        def connect(*_: str) -> Iterator[ControllerApi]:
            yield api

        monkeypatch.setattr(usage, "connect", connect)
        yield


@pytest.mark.usefixtures("_reached")
def test_traffic_is_shown_in_the_unit_of_its_quota(capsys: pytest.CaptureFixture[str]) -> None:
    usage.usage(Context())
    since, _columns, row = capsys.readouterr().out.splitlines()
    assert since == "since 2026-11-01 (UTC)"
    assert "1.50 GiB" in row
    assert "0.00 GiB" in row
    assert "traffic_gib_per_day 1.5/2" in row
