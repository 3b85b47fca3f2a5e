"""The API's client: what it asks, what it says when that fails, which id is meant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from polydev.client.api import (
    ControllerApi,
    ControllerRefused,
    ControllerUnreachable,
    one_with_prefix,
    plain_lines,
)
from polydev.errors import ConfigError

URL = "http://192.0.2.1:4000"
IDS = ("abcd1111-0000", "abcd2222-0000", "ef000000-0000")

Answerer = Callable[[httpx.Request], httpx.Response]


def api(answer: Answerer) -> ControllerApi:
    return ControllerApi(URL, "pdt_secret", httpx.MockTransport(answer))


def always(status: int, body: Any = None, **words: Any) -> Answerer:
    return lambda _request: httpx.Response(status, json=body, **words)


def test_the_token_goes_with_each_request_and_the_query_says_which() -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"sessions": [{"id": "a"}], "vms": [{"vmId": "b"}]})

    with api(answer) as client:
        assert client.sessions(all_of_them=False) == [{"id": "a"}]
        assert client.vms(all_of_them=True) == [{"vmId": "b"}]
    assert [request.headers["Authorization"] for request in asked] == ["Bearer pdt_secret"] * 2
    assert str(asked[0].url) == f"{URL}/api/auth/sessions?live=true&limit=200"
    assert str(asked[1].url) == f"{URL}/api/vm?all=true&limit=200"


def test_lists_are_read_page_by_page_as_far_as_wanted() -> None:
    pages = {None: (["a", "b"], "b"), "b": (["c", "d"], "d"), "d": (["e"], None)}
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode())
        ids, following = pages[request.url.params.get("before")]
        return httpx.Response(
            200, json={"vms": [{"vmId": each} for each in ids], "next": following}
        )

    with api(answer) as client:
        assert "".join(vm["vmId"] for vm in client.vms(all_of_them=True)) == "abcde"
        assert "".join(vm["vmId"] for vm in client.vms(all_of_them=False, limit=3)) == "abc"
    assert asked[:2] == ["all=true&limit=200", "all=true&limit=200&before=b"]
    assert asked[3:] == ["all=false&limit=3", "all=false&limit=3&before=b"]


def test_a_refusal_has_the_controllers_own_words_and_hint() -> None:
    problem = {"detail": "there is no session 1", "hint": "look again", "status": 404}
    with pytest.raises(ControllerRefused) as refused, api(always(404, problem)) as client:
        client.delete("/api/auth/session/1")
    assert refused.value.message == "there is no session 1"
    assert (refused.value.hint, refused.value.status) == ("look again", 404)


def test_an_unknown_caller_is_told_how_to_make_a_token() -> None:
    with pytest.raises(ControllerRefused) as refused, api(always(401, {"detail": "no"})) as client:
        client.get("/api/vm")
    assert "./inv token.create" in str(refused.value.hint)


def test_a_refusal_that_is_no_problem_document_is_told_by_its_status() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(502, text="<html>")

    with pytest.raises(ControllerRefused, match="502 Bad Gateway"), api(answer) as client:
        client.get("/api/vm")


def test_nobody_there_is_told_with_the_address_and_what_to_do() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused", request=request)

    with pytest.raises(ControllerUnreachable, match=URL) as failed, api(answer) as client:
        client.get("/api/vm")
    assert "./inv up" in str(failed.value.hint)
    assert "./inv doctor" in str(failed.value.hint)


def test_somebody_else_at_the_address_is_told() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="hello")

    with pytest.raises(ControllerUnreachable, match="not as a controller"), api(answer) as client:
        client.get("/api/vm")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address"):
        ControllerApi("lab:4000", "t")


@pytest.mark.parametrize(("status", "taken"), [(200, True), (401, False), (403, False)])
def test_a_token_counts_if_the_controller_takes_it(status: int, taken: bool) -> None:
    with api(always(status, {"sessions": []})) as client:
        assert client.takes_token() is taken


def test_an_ill_controller_says_nothing_about_a_token() -> None:
    with pytest.raises(ControllerRefused), api(always(503, {})) as client:
        client.takes_token()


def test_a_stream_that_is_refused_raises_before_its_first_part() -> None:
    with (
        pytest.raises(ControllerRefused, match="it is over"),
        api(always(410, {"detail": "it is over"})) as client,
    ):
        next(client.text_parts("/api/vm/1/console"))


def test_one_id_is_found_by_its_beginning() -> None:
    assert one_with_prefix(IDS, "ABCD1", "VM", "hint") == IDS[0]
    assert one_with_prefix(IDS, IDS[2], "VM", "hint") == IDS[2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("abcd", "the beginning of 2 VMs: abcd1111-0000, abcd2222-0000"),
        ("1234", "there is no VM 1234"),
        ("ef", "names no VM"),
        ("", "names no VM"),
    ],
)
def test_an_id_that_is_not_clear_is_refused(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        one_with_prefix(IDS, wanted, "VM", "hint")


def test_lines_are_whole_and_steer_no_terminal() -> None:
    parts = ["[  0.1] Lin", "ux\r\n\x1b[31mred\x1b]0;title\x07\x9b2J\n\nlog", "in: "]
    assert list(plain_lines(parts)) == ["[  0.1] Linux", "red]0;title2J", "login:"]
