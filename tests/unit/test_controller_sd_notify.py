"""systemd's environment variables; an integration test has the sockets themselves."""

from __future__ import annotations

import os

import pytest

from polydev.controller.sd_notify import inherited_sockets, notify_address, watchdog_seconds


def test_sockets_of_another_process_are_not_inherited() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "OTHER": "x"}
    assert inherited_sockets(environ, pid=7) == []
    assert environ == {"OTHER": "x"}, "children must not think that they have sockets"
    assert inherited_sockets({}, pid=7) == []


def test_abstract_notify_socket_starts_with_nul() -> None:
    assert notify_address({"NOTIFY_SOCKET": "@name"}) == "\0name"
    assert notify_address({"NOTIFY_SOCKET": "/run/systemd/notify"}) == "/run/systemd/notify"
    assert notify_address({}) is None


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 5),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_watchdog_interval_is_half_its_time(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environ) == seconds
