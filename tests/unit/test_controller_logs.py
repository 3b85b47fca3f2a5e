"""Logs: one JSON object per line, of every logger, without secrets."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Address, IPv4Network

import pytest
import structlog

from polydev.controller.logs import configure_logs

pytestmark = pytest.mark.usefixtures("logs_as_before")

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl"


def test_all_loggers_write_one_json_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_other_addresses_are_not_masked(capsys: pytest.CaptureFixture[str], text: str) -> None:
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


class Silent:
    def __repr__(self) -> str:
        raise RuntimeError("no")


LARGE = {
    "a text": "x" * 1_000_000,
    "characters that JSON escapes": "\U0001f600" * 100_000,
    "quotes": '"' * 100_000,
    "a list": ["x" * 1000] * 1000,
    "a mapping": {f"{number}" + "k" * 1000: "v" * 1000 for number in range(1000)},
    "levels": [[[[["x" * 500] * 9] * 9] * 9] * 9],
    "a number": 10**10_000,
    "bytes": b"x" * 1_000_000,
    "an error": ValueError("x" * 1_000_000),
    "no description": Silent(),
    "half a character": "\ud800" * 100_000,
}
MOST_BYTES = 40_000  # journald cuts at 48 KiB


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("name", LARGE)
def test_log_lines_have_a_maximum_length(
    capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    configure_logs("info", form)
    value = LARGE[name]
    structlog.stdlib.get_logger("ours").info("told", value=value, requestId="r1")
    structlog.stdlib.get_logger("ours").info("told", **{f"k{n}": value for n in range(50)})
    told = value if isinstance(value, (str, list, dict, bytes)) else str(type(value))
    logging.getLogger("theirs").warning("told %s", told)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert max(len(line.encode(errors="replace")) for line in lines) <= MOST_BYTES
    assert all("told" in line for line in lines)
    assert "r1" in lines[0]


def test_cut_text_ends_with_its_length(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    structlog.stdlib.get_logger("ours").info("told", path="/" + "x" * 49_999)
    assert json.loads(capsys.readouterr().err)["path"].endswith("xxx (50000 characters)")


def test_cutting_does_not_expose_part_of_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("info", "json")
    for length in range(1500, 2100, 7):
        structlog.stdlib.get_logger("ours").info(
            "told", path=f"{'x' * length} postgres://me:hidden@db"
        )
    assert "hid" not in capsys.readouterr().err.replace("***", "")


@pytest.mark.parametrize("repeated", ["://:", "-eyJ", "Bearer ", "1.1.1.1-", "eyJx.y.", "a@://b:"])
def test_masking_long_text_takes_linear_time(
    capsys: pytest.CaptureFixture[str], repeated: str
) -> None:
    """With quadratic time this test would not end."""
    configure_logs("info", "json")
    try:
        raise ValueError(repeated * 1_000_000)
    except ValueError:
        for _ in range(3):
            logging.getLogger("theirs").exception("failed")
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    "unprintable", ["\n", "\r", "\x1b[2J", "\x00", "\x7f", "\x85", "\x9b", "\u2028", "\u202e"]
)
def test_control_characters_are_escaped(
    capsys: pytest.CaptureFixture[str], unprintable: str, form: str
) -> None:
    forged = f'before{unprintable}{{"event": "forged"}}'
    configure_logs("info", form)
    log = structlog.stdlib.get_logger("ours")
    log.info(forged)
    log.info("told", path=forged, **{f"key{unprintable}": [forged, {forged: forged}]})
    logging.getLogger("theirs").warning("told %s", forged)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == said.count("\n") == 3
    assert unprintable not in said.replace("\n", "")
    if form == "json":
        assert unprintable not in json.loads(said.splitlines()[0])["event"]


def test_traceback_lines_are_indented_on_a_console(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("info", "console")
    try:
        raise ValueError("before\n2026-11-28 forged\x1b[2J")
    except ValueError:
        logging.getLogger("theirs").exception("failed")
    _, *traceback = capsys.readouterr().err.rstrip("\n").split("\n")
    assert [line for line in traceback[1:] if not line.startswith("  ")] == []
    assert "\x1b" not in "".join(traceback)


def test_console_form_writes_key_value_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("debug", "console")
    structlog.stdlib.get_logger("ours").debug("started", slots=4)
    assert "slots=4" in capsys.readouterr().err
