"""The API's client: addresses and tokens, beginnings of ids, and lines of output."""

from __future__ import annotations

import io
import json

import pytest
import requests

from polydev.client.controller_api import ControllerApi, one_with_prefix, plain_lines, refused
from polydev.errors import ConfigError

IDS = ("abcd1111-0000", "abcd2222-0000", "ef000000-0000")


@pytest.mark.parametrize(
    "url",
    [
        *("lab:4000", "", "http://", "http://[::1", "http://lab:port", "ftp://lab"),
        *("http://me:hidden@lab:4000", "http://lab:4000?x", "http://lab:4000/#x"),
    ],
)
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not the URL of a controller") as told:
        ControllerApi(url, "t")
    assert "hidden" not in told.value.message


@pytest.mark.parametrize("token", ["pdt_\u00fc", "pdt_secret\n", " pdt_secret", "pdt_\x00"])
def test_token_with_invalid_characters_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="the token contains") as refused:
        ControllerApi("http://lab:4000", token)
    assert "pdt_" not in f"{refused.value.message}{refused.value.hint}"


def test_validation_errors_are_shown_with_their_key() -> None:
    answer = requests.Response()
    answer.status_code = 422
    problem = {
        "detail": "the request is not valid",
        "errors": [{"pointer": "body/provider", "detail": "Input should be 'claude'"}],
    }
    answer.raw = io.BytesIO(json.dumps(problem).encode())
    assert refused(answer).message == (
        "the request is not valid: provider: Input should be 'claude'"
    )


def test_id_is_found_by_its_prefix() -> None:
    assert one_with_prefix(IDS, "ABCD1", "VM", "hint") == IDS[0]
    assert one_with_prefix(IDS, IDS[2], "VM", "hint") == IDS[2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("abcd", "matches 2 VMs: abcd1111-0000, abcd2222-0000"),
        ("1234", "there is no VM 1234"),
        ("ef", "is too short for a VM"),
        ("", "is too short for a VM"),
    ],
)
def test_ambiguous_unknown_or_short_prefix_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one_with_prefix(IDS, wanted, "VM", "hint")


def test_plain_lines_are_complete_and_without_control_characters() -> None:
    parts = ["[  0.1] Lin", "ux\r\n\x1b[31mred\x1b]0;title\x07\x9b2J\n\nlog", "in: "]
    assert list(plain_lines(parts)) == ["[  0.1] Linux", "red]0;title2J", "login:"]
