"""The API's client against a web server: its requests, and its messages when they fail."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from polydev.client import controller_api as client_api
from polydev.client.controller_api import ControllerApi, ControllerRefused, ControllerUnreachable
from polydev.client.vnc_proxy import tls_of
from polydev.controller.tls import server_context
from polydev.errors import ConfigError
from tests.certificates import make_tls
from tests.loopback import Answer, Answerer, Asked, as_json, served

CONSOLE = "/api/vm/1/console"


@contextmanager
def asking(answer: Answerer) -> Iterator[tuple[ControllerApi, list[Asked]]]:
    """The client of a controller with these answers, and the list of its requests."""
    with served(answer) as server, ControllerApi(server.url, "pdt_secret") as api:
        yield api, server.asked


def always(status: int, body: Any = None) -> Answerer:
    return lambda _asked: as_json(body, status)


def test_list_requests_send_token_and_filter() -> None:
    lists = {"sessions": [{"id": "a"}], "vms": [{"vmId": "b"}]}
    with asking(always(200, lists)) as (api, asked):
        assert api.sessions(all_of_them=False) == [{"id": "a"}]
        assert api.vms(all_of_them=True) == [{"vmId": "b"}]
    assert [each.headers["Authorization"] for each in asked] == ["Bearer pdt_secret"] * 2
    assert [each.target for each in asked] == [
        "/api/auth/sessions?live=true&limit=200",
        "/api/vm?all=true&limit=200",
    ]


def test_netrc_password_does_not_replace_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login ada password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with asking(always(200, {})) as (api, asked):
        api.get("/api/vm")
    assert asked[0].headers["Authorization"] == "Bearer pdt_secret"


def test_post_sends_body_and_headers() -> None:
    with asking(always(201, {"id": "a"})) as (api, asked):
        assert api.post("/api/auth/start", {"userId": "ä"}, {"Idempotency-Key": "k"}) == {"id": "a"}
        api.post("/api/auth/login")
    assert json.loads(asked[0].body) == {"userId": "ä"}
    assert asked[0].headers["Content-Type"] == "application/json"
    assert asked[0].headers["Idempotency-Key"] == "k"
    assert (asked[1].method, asked[1].body) == ("POST", b"")


def test_non_ascii_idempotency_key_is_refused() -> None:
    with (
        pytest.raises(ConfigError, match="Idempotency-Key contains"),
        asking(always(201, {})) as (api, asked),
    ):
        api.post("/api/auth/start", {}, {"Idempotency-Key": "kä"})
    assert asked == []


def test_lists_are_read_page_by_page_up_to_limit() -> None:
    pages = {None: (["a", "b"], "b"), "b": (["c", "d"], "d"), "d": (["e"], None)}

    def answer(asked: Asked) -> Answer:
        (before,) = parse_qs(urlsplit(asked.target).query).get("before", [None])
        ids, following = pages[before]
        return as_json({"vms": [{"vmId": each} for each in ids], "next": following})

    with asking(answer) as (api, asked):
        assert "".join(vm["vmId"] for vm in api.vms(all_of_them=True)) == "abcde"
        assert "".join(vm["vmId"] for vm in api.vms(all_of_them=False, limit=3)) == "abc"
    queries = [urlsplit(each.target).query for each in asked]
    assert queries[:2] == ["all=true&limit=200", "all=true&limit=200&before=b"]
    assert queries[3:] == ["all=false&limit=3", "all=false&limit=3&before=b"]


def test_refusal_has_message_and_hint_of_controller() -> None:
    problem = {"detail": "there is no session 1", "hint": "look again", "status": 404}
    with pytest.raises(ControllerRefused) as refused, asking(always(404, problem)) as (api, _):
        api.delete("/api/auth/session/1")
    assert refused.value.message == "there is no session 1"
    assert (refused.value.hint, refused.value.status) == ("look again", 404)


def test_401_hints_at_token_create() -> None:
    with (
        pytest.raises(ControllerRefused) as refused,
        asking(always(401, {"detail": "no"})) as (api, _),
    ):
        api.get("/api/vm")
    assert "./inv token.create" in str(refused.value.hint)


def test_refusal_without_problem_document_is_reported_by_status() -> None:
    with (
        pytest.raises(ControllerRefused, match="502 Bad Gateway"),
        asking(lambda _asked: Answer(502, b"<html>")) as (api, _),
    ):
        api.get("/api/vm")


def test_unreachable_controller_is_reported_with_address_and_hint() -> None:
    url = "http://127.0.0.1:1"
    with pytest.raises(ControllerUnreachable) as failed, ControllerApi(url, "t") as api:
        api.get("/api/vm")
    assert failed.value.message == (
        f"no controller answers at {url}: [Errno 111] Connection refused"
    )
    assert "./inv up" in str(failed.value.hint)
    assert "./inv doctor" in str(failed.value.hint)


def test_silent_controller_is_reported_after_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_api, "ANSWER_SECONDS", 0.05)
    over = Event()

    def late(_asked: Asked) -> Answer:
        over.wait()
        return Answer()

    with asking(late) as (api, _):
        with pytest.raises(ControllerUnreachable, match=r"no answer within 0\.05 s"):
            api.get("/api/vm")
        with pytest.raises(ControllerUnreachable, match=r"no answer within 0\.05 s"):
            next(api.text_parts(CONSOLE))  # it may pause, but must begin
        over.set()


@pytest.mark.parametrize(
    "answer",
    [Answer(body=b"hello"), Answer(body=b'{"cut'), Answer(), Answer(302, b"", {"Location": "/"})],
    ids=["text", "cut", "empty", "redirect"],
)
def test_other_server_at_the_address_is_reported(answer: Answer) -> None:
    with (
        pytest.raises(ControllerUnreachable, match=r"/api/vm\?limit=1 answers, but is not a con"),
        asking(lambda _asked: answer) as (api, asked),
    ):
        api.get("/api/vm", limit=1)
    assert len(asked) == 1


@pytest.mark.parametrize(("status", "taken"), [(200, True), (401, False), (403, False)])
def test_takes_token_follows_status_of_controller(status: int, taken: bool) -> None:
    with asking(always(status, {"sessions": []})) as (api, _):
        assert api.takes_token() is taken


def test_takes_token_raises_for_unhealthy_controller() -> None:
    with pytest.raises(ControllerRefused), asking(always(503, {})) as (api, _):
        api.takes_token()


def test_refused_stream_raises_before_first_part() -> None:
    with (
        pytest.raises(ControllerRefused, match="it is over"),
        asking(always(410, {"detail": "it is over"})) as (api, _),
    ):
        next(api.text_parts(CONSOLE))


def test_stream_yields_parts_at_once_and_may_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float | None] = []
    set_limit = socket.socket.settimeout

    def noted(self: socket.socket, seconds: float | None) -> None:
        limits.append(seconds)
        set_limit(self, seconds)

    monkeypatch.setattr(socket.socket, "settimeout", noted)
    seen = Event()
    euro = "€".encode()

    def parts() -> Iterator[bytes]:
        yield b"first"
        assert seen.wait(60)
        yield euro[:1]
        yield euro[1:] + b"\xff"

    answer = Answer(headers={"Content-Type": "text/plain"}, parts=parts())
    with asking(lambda _asked: answer) as (api, asked):
        found = api.text_parts(CONSOLE, tail=5, follow="true")
        assert next(found) == "first"
        assert limits[0] == client_api.ANSWER_SECONDS
        assert limits[-1] is None
        seen.set()
        assert "".join(found) == "€\N{REPLACEMENT CHARACTER}"
    assert asked[0].target == f"{CONSOLE}?tail=5&follow=true"


def test_unchunked_stream_yields_parts_at_once() -> None:
    """The answer ends with its connection, as behind proxies that speak HTTP/1.0."""
    seen = Event()

    def raw() -> Iterator[bytes]:
        yield b"HTTP/1.0 200 OK\r\n\r\nfirst"
        assert seen.wait(60)
        yield b"second"

    with asking(lambda _asked: Answer(raw=raw())) as (api, _):
        found = api.text_parts(CONSOLE)
        assert next(found) == "first"
        seen.set()
        assert "".join(found) == "second"


def test_broken_off_stream_raises() -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    with asking(lambda _asked: Answer(raw=[raw])) as (api, _):
        found = api.text_parts(CONSOLE)
        assert next(found) == "first"
        with pytest.raises(ControllerUnreachable, match="the answer broke off"):
            next(found)


def test_private_ca_is_trusted_from_ssl_cert_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = make_tls(tmp_path)
    context = server_context(tls.certificate.read_text(), tls.key.read_text())
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with served(always(200, {}), tls=context) as server:
        stranger = ControllerApi(server.url, "pdt_secret")
        with stranger, pytest.raises(ControllerUnreachable, match="certificate verify failed"):
            stranger.get("/api/vm")
        monkeypatch.setenv("SSL_CERT_FILE", str(tls.authority))
        with ControllerApi(server.url, "pdt_secret") as api:
            assert api.get("/api/vm") == {}
            context_of_viewer = tls_of(api)
    assert context_of_viewer is not None
    assert context_of_viewer.cert_store_stats()["x509_ca"] == 1


def test_certificate_name_is_not_checked_through_ssh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    tls = make_tls(tmp_path)
    context = server_context(tls.certificate.read_text(), tls.key.read_text())
    with (
        served(always(200, {}), tls=context) as server,
        ControllerApi(server.url, "pdt_secret", through_ssh=True) as api,
    ):
        assert api.get("/api/vm") == {}
        assert tls_of(api) is not None
    assert not list(recwarn)
