"""The agent's HTTP as pure functions: bytes to requests, replies to bytes, paths to replies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polydev.agent.errors import RequestRefused
from polydev.agent.http import MAX_HEADERS, Reply, Request, problem, reply_bytes, request_of_head
from polydev.agent.jsontext import json_text


def test_a_plain_request_is_read() -> None:
    request = request_of_head(b"GET /health HTTP/1.1\r\nHost: vm\r\nAccept: */*")
    assert (request.method, request.path) == ("GET", "/health")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/health?verbose=1", "/health"),
        (b"/health#top", "/health"),
        (b"http://172.16.0.2:8080/health?x", "/health"),
        (b"HTTP://vm", "/"),
        (b"*", "*"),
        (b"//health", "//health"),
    ],
)
def test_the_path_is_taken_out_of_the_target(target: bytes, path: str) -> None:
    assert request_of_head(b"GET " + target + b" HTTP/1.0").path == path


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1\r\nHost: vm", 400),
        (b"G(T / HTTP/1.1\r\nHost: vm", 400),
        (b"GET /\x7f HTTP/1.1\r\nHost: vm", 400),
        (b"GET /\xc3\xa4 HTTP/1.1\r\nHost: vm", 400),
        (b"GET health HTTP/1.1\r\nHost: vm", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/x.1\r\nHost: vm", 400),
        (b"GET / FTPS/1.1\r\nHost: vm", 400),
        (b"GET / HTTP/2.0\r\nHost: vm", 505),
        (b"GET / HTTP/1.1", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b", 400),
        (b"GET / HTTP/1.1\r\nHost: vm\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nHost : vm", 400),
        (b"GET / HTTP/1.1\r\nHost: vm\nX: y", 400),
        (b"GET / HTTP/1.1\r\nHost: v\0m", 400),
        (b"GET / HTTP/1.1\r\nHost: vm\r\n\r", 400),
        (b"GET / HTTP/1.0" + b"\r\nX: y" * (MAX_HEADERS + 1), 431),
    ],
)
def test_what_is_no_request_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(RequestRefused) as refused:
        request_of_head(head)
    assert refused.value.status == status


request_like = st.lists(
    st.sampled_from(
        b"GET,HEAD, ,/,/health,HTTP/1.1,HTTP/9.9,\r\n,\n,:,Host,a,\0,\xff,?,*,http://".split(b",")
    )
).map(b"".join)


def request_or_refusal(head: bytes) -> Request | int:
    try:
        return request_of_head(head)
    except RequestRefused as refused:
        return refused.status


@given(st.one_of(st.binary(), request_like))
def test_any_bytes_give_a_request_or_a_refusal(head: bytes) -> None:
    outcome = request_or_refusal(head)
    if isinstance(outcome, Request):
        assert outcome.method.isprintable()
        assert outcome.path == "*" or outcome.path.startswith("/")
    else:
        assert outcome in (400, 431, 505)


def test_a_reply_carries_its_length_and_closes() -> None:
    wire = reply_bytes(Reply(200, '{"a":1}', headers={"X-More": "y"}), now_seconds=0)
    head, _, body = wire.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert "Date: Thu, 01 Jan 1970 00:00:00 GMT" in lines
    assert {"Content-Length: 7", "Connection: close", "X-More: y"} <= set(lines)
    assert body == b'{"a":1}'


def test_a_head_reply_tells_the_length_of_the_body_it_leaves_out() -> None:
    wire = reply_bytes(Reply(200, "ä"), now_seconds=0, with_body=False)
    assert b"Content-Length: 2\r\n" in wire
    assert wire.endswith(b"\r\n\r\n")


def test_a_problem_follows_rfc_9457() -> None:
    reply = problem(404, "there is no /x")
    assert reply.content_type == "application/problem+json"
    assert json.loads(reply.body) == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "there is no /x",
    }


def test_requests_hold_nothing_but_method_and_path() -> None:
    assert Request.__slots__ == ("method", "path")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(json_values)
def test_json_text_is_what_json_reads(value: object) -> None:
    assert json.loads(json_text(value)) == value


def test_json_text_is_compact_ascii() -> None:
    assert json_text({"a": [1, None], "b": "ä\n"}) == '{"a":[1,null],"b":"\\u00e4\\n"}'


def test_json_text_takes_no_other_types() -> None:
    with pytest.raises(TypeError, match="set"):
        json_text({1})
