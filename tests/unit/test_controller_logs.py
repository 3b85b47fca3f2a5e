"""Logs: one JSON object a line from whoever logs, and no secret in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest
import structlog

from polydev.controller.logs import configure_logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_one_json_object_a_line_from_all(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    with structlog.contextvars.bound_contextvars(requestId="r1"):
        structlog.stdlib.get_logger("ours").info("started", slots=4)
        logging.getLogger("theirs").warning("%d lost", 3)
    logging.getLogger("theirs").debug("not wanted")
    ours, theirs = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (ours["event"], ours["slots"], ours["level"]) == ("started", 4, "info")
    assert (theirs["event"], theirs["logger"]) == ("3 lost", "theirs")
    assert ours["requestId"] == theirs["requestId"] == "r1"


@pytest.mark.parametrize(
    "fields",
    [
        {"Authorization": "Bearer hidden"},
        {"jwt_secret": "hidden"},
        {"headers": {"cookie": "hidden"}},
        {"header": ["Bearer hidden"]},
        {"detail": "got Bearer hidden from there"},
        {"url": "postgresql+psycopg://me:hidden@db/controller"},
        {"body": f"token was {JWT}"},
        {"body": "token was pdt_hidden-and_long"},
        {"path": "/docs?access_token=hidden&x=1"},
    ],
)
def test_secrets_are_hidden(capsys: pytest.CaptureFixture[str], fields: dict[str, object]) -> None:
    configure_logs("info", "json")
    structlog.stdlib.get_logger("ours").info("told", **fields)
    said = capsys.readouterr().err
    assert "***" in said
    assert "hidden" not in said
    assert JWT not in said


@pytest.mark.parametrize(
    "fields",
    [
        {"vmIp": "10.1.2.77"},
        {"vm_ip": "10.1.2.77"},
        {"address": "10.1.2.77"},
        {"vm": {"vmIP": "10.1.2.77"}},
        {"detail": "http://192.168.100.77:8080/health does not answer"},
        {"detail": ["192.168.100.77", "x 192.168.100.77."]},
        {"detail": IPv4Address("192.168.100.77")},
    ],
)
def test_addresses_of_vms_are_masked(
    capsys: pytest.CaptureFixture[str], fields: dict[str, object]
) -> None:
    configure_logs("info", "json", IPv4Network("192.168.100.0/24"))
    structlog.stdlib.get_logger("ours").info("told", **fields)
    said = capsys.readouterr().err
    assert ".x" in said
    assert "77" not in json.dumps({key: json.loads(said)[key] for key in fields})


@pytest.mark.parametrize(
    "text", ["http://127.0.0.1:4000/x", "192.168.101.7", "version 192.168.100.7.1"]
)
def test_other_addresses_are_told(capsys: pytest.CaptureFixture[str], text: str) -> None:
    configure_logs("info", "json", IPv4Network("192.168.100.0/24"))
    structlog.stdlib.get_logger("ours").info("told", addresses=[text])
    assert json.loads(capsys.readouterr().err)["addresses"] == [text]


def test_secrets_in_tracebacks_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    try:
        raise ValueError(f"refused {JWT}")
    except ValueError:
        logging.getLogger("theirs").exception("failed")
    said = json.loads(capsys.readouterr().err)
    assert "ValueError: refused ***" in said["exception"]


def test_console_form_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "console")
    structlog.stdlib.get_logger("ours").debug("started", slots=4)
    assert "slots=4" in capsys.readouterr().err
