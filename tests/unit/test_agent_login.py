"""A tool's login with a fake tool: terminal text, URLs, states, and the course of a login."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from polydev.agent.browser import message_for
from polydev.agent.errors import CheckFailed
from polydev.agent.http_messages import HttpRequest
from polydev.agent.login_flow import SHOW_AGAIN_SECONDS, LoginFlow
from polydev.agent.login_output import answer_to, device_code, end_of, printed_url
from polydev.agent.login_state import (
    MAX_DETAIL_BYTES,
    MAX_STATE_BYTES,
    login_reply,
    reply_of_state,
    state_text,
)
from polydev.agent.login_url import MAX_URL_CHARACTERS, is_login_url
from polydev.agent.providers import GuestProvider
from polydev.agent.reply_types import LoginReply, LoginStatus
from polydev.agent.routes import Routes
from polydev.agent.settings import AgentSettings
from polydev.agent.terminal_text import last_lines, plain_text, urls_written
from tests.guest_tools import golden_provider, provider, provider_data, write_provider

QUERY = "client_id=9d1c&redirect_uri=http%3A%2F%2Flocalhost%3A1455%2Fcb&state=" + "aB3-_~" * 40
PAGE = f"https://login.example/oauth/authorize?{QUERY}"
OTHER_PAGE = "https://login.example/other?client_id=1"
REPLY = TypeAdapter(LoginReply)
CLAUDE_TOOL, GEMINI_TOOL = golden_provider("claude"), golden_provider("gemini")
DEVICE_TOOL = provider("device", device_code=r"code:\s+([A-Z0-9-]+)")
# The output of the tools in the image's versions, with other values.
CLAUDE = (
    "Opening browser to sign in…\r\nIf the browser didn't open, visit: "
    f"\x1b]8;;{PAGE}\x07\x1b[94m{PAGE}\x1b[39m\x1b]8;;\x07\r\nPaste code here if prompted > "
)
CODEX = (
    "Starting local login server on http://localhost:1455.\r\nIf your browser did not open, "
    f"navigate to this URL to authenticate:\r\n\r\n{PAGE}\r\n\r\nOn a remote or headless machine? "
    "Use `codex login --device-auth` instead.\r\n"
)


def wrapped(url: str, columns: int, border: str = "") -> str:
    pieces = [url[at : at + columns] for at in range(0, len(url), columns)]
    return "".join(f"{border}{piece:<{columns if border else 0}}{border}\r\n" for piece in pieces)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("\x1b[1;31mred\x1b[0m and \x1b[?25lplain", "red and plain"),
        ("\x1b]0;a title\x07said", "said"),
        ("\x1b]0;a title\x1b\\said", "said"),
        ("\x1bP+q544e\x1b\\\x1b_app\x1b\\said", "said"),
        ("\x1b(B\x1b=\x1b7said\x1b8", "said"),
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        ("a\x00\x07\x08b\x9b", "ab"),
        ("cut off \x1b", "cut off "),
        ("cut off \x1b[3", "cut off "),
    ],
)
def test_plain_text_removes_escape_sequences(written: str, plain: str) -> None:
    assert plain_text(written) == plain


@given(st.text(st.sampled_from("\x1b[]0;?m\x07\\P8ab\r\n\x9b"), max_size=40))
def test_plain_text_has_no_control_characters(written: str) -> None:
    assert all(letter.isprintable() or letter == "\n" for letter in plain_text(written))


def test_last_lines_skip_empty_lines() -> None:
    assert last_lines("one\r\n\r\n \x1b[1mtwo\x1b[0m\r\n\r\nthree", 2) == "two\nthree"


@pytest.mark.parametrize("written", [CLAUDE, CODEX])
def test_login_url_is_found_in_tool_output(written: str) -> None:
    assert printed_url(CLAUDE_TOOL, written) == PAGE


@pytest.mark.parametrize("columns", [40, 80, 100, 120])
@pytest.mark.parametrize("border", ["", "│ ", "| "])
def test_wrapped_login_url_is_joined(columns: int, border: str) -> None:
    written = f"Visit this:\r\n{wrapped(PAGE, columns, border)}\r\nThen come back.\r\n"
    assert printed_url(CLAUDE_TOOL, written) == PAGE


def test_url_ends_at_its_line() -> None:
    assert urls_written(f"{PAGE}\r\nWaiting\r\n") == [PAGE]


def test_url_of_a_terminal_hyperlink_is_found() -> None:
    assert printed_url(CLAUDE_TOOL, f"\x1b]8;id=1;{PAGE}\x1b\\sign in\x1b]8;;\x1b\\") == PAGE


def test_other_urls_are_not_login_urls() -> None:
    assert (
        printed_url(CLAUDE_TOOL, "see https://docs.example/login, or http://localhost:1455.\r\n")
        is None
    )


@pytest.mark.parametrize("url", [PAGE, "http://a", "https://a.b:1/c?d#e", "https://a?b=://c"])
def test_valid_login_urls(url: str) -> None:
    assert is_login_url(url)


@pytest.mark.parametrize(
    "url",
    [
        *("", "https://", "https:///a", "https://?a", "javascript://a", "file:///etc/passwd"),
        *("HTTPS//a", "ftp://a", "https://a b", "https://a\n", "https://ä", "https://a@b"),
        *("https://a:b", "https://[::1]/", 'https://a/"', "https://a/\x1b[0m"),
        "https://a/" + "b" * MAX_URL_CHARACTERS,
    ],
)
def test_invalid_login_urls(url: str) -> None:
    assert not is_login_url(url)


def test_missing_state_means_no_login() -> None:
    assert reply_of_state("claude", None) == login_reply("claude", "none")


@given(
    st.sampled_from(["starting", "waiting", "done", "failed"]),
    st.sampled_from([PAGE, "http://a"]),
    st.text(),
)
def test_state_survives_a_round_trip(status: LoginStatus, url: str, detail: str) -> None:
    data = state_text(status, url, detail, "AB-12").encode()
    assert len(data) <= MAX_STATE_BYTES
    reply = REPLY.validate_python(reply_of_state("codex", data), strict=True)
    assert (reply["provider"], reply["status"], reply["url"]) == ("codex", status, url)
    assert reply["device_code"] == "AB-12"
    assert len(reply["detail"].encode()) <= MAX_DETAIL_BYTES
    assert state_text(status, url, reply["detail"], "AB-12").encode() == data


def test_largest_state_fits_the_size_limit() -> None:
    url = "https://" + "a" * (MAX_URL_CHARACTERS - 8)
    data = state_text("starting", url, "ä" * MAX_DETAIL_BYTES).encode()
    assert len(data) <= MAX_STATE_BYTES
    assert reply_of_state("claude", data)["url"] == url


def state(**changes: object) -> bytes:
    written = {"status": "starting", "url": None, "device_code": None, "detail": ""}
    return json.dumps({**written, **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"waiting", b"[]", b"1", b"{}", b"\xff\xfe", b"[" * 5000),
        *(state(status="waiting"), state(status="none"), state(status=1), state(status=[])),
        *(state(url=1), state(url="javascript://a"), state(detail=None)),
        *(state(device_code=""), state(device_code="a\nb"), state(device_code=12)),
        state(detail="a" * MAX_STATE_BYTES),
    ],
)
def test_malformed_state_is_a_failed_login(data: bytes) -> None:
    reply = reply_of_state("claude", data)
    assert (reply["status"], reply["url"]) == ("failed", None)
    assert "not as it is written" in reply["detail"]


@given(st.binary(max_size=200))
def test_any_state_gives_a_valid_reply(data: bytes) -> None:
    reply = REPLY.validate_python(reply_of_state("gemini", data), strict=True)
    assert reply["status"] != "waiting" or is_login_url(reply["url"] or "")


def test_device_code_is_found_in_tool_output() -> None:
    written = "Go to https://a/device\r\nand type this code:  \x1b[1mABCD-1234\x1b[0m\r\n"
    assert device_code(DEVICE_TOOL, written) == "ABCD-1234"
    assert device_code(CLAUDE_TOOL, written) is None
    assert device_code(DEVICE_TOOL, "code: " + "A" * 65) is None


def test_acp_requests_are_numbered_json_lines() -> None:
    told = [json.loads(line) for line in GEMINI_TOOL.input().splitlines()]
    assert [(ask["jsonrpc"], ask["id"]) for ask in told] == [("2.0", 0), ("2.0", 1)]
    assert CLAUDE_TOOL.input() == b""


def test_login_result_follows_the_exit_status() -> None:
    claude = CLAUDE_TOOL
    assert end_of(claude, 0, "Login successful.") == ("done", "")
    assert end_of(claude, 3, "\x1b[31mno\r\n\r\nnetwork\x1b[0m\r\n") == (
        "failed",
        "claude exited with status 3: no\nnetwork",
    )
    assert end_of(claude, -9, "") == ("failed", "claude got signal 9")


def test_acp_login_succeeds_only_with_an_answer() -> None:
    gemini = GEMINI_TOOL
    assert end_of(gemini, 0, "")[0] == "failed"
    first = '{"jsonrpc":"2.0","id":0,"result":{"agentInfo":{"name":"gemini-cli"}}}\r\n'
    assert answer_to(gemini, first) is None
    assert answer_to(gemini, first + '{"jsonrpc":"2.0","id":1,"result":{}}\r\n') == ("done", "")
    refused = '{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"access_denied"}}\r\n'
    assert answer_to(gemini, first + refused) == (
        "failed",
        "gemini could not log in: access_denied",
    )


@pytest.mark.parametrize("written", ["{", "{]\n", '{"id":1', '{"id":1}\n', "1\n", '{"a":{}}\n'])
def test_malformed_acp_answers_are_ignored(written: str) -> None:
    assert answer_to(GEMINI_TOOL, written) is None


class Course:
    """A login whose clock, browser and state are the test's."""

    def __init__(self, tool: GuestProvider = CLAUDE_TOOL) -> None:
        self.now = 100.0
        self.kept: list[tuple[LoginStatus, str | None, str]] = []
        self.codes: list[str | None] = []
        self.shown: list[str] = []
        self.has_browser = True
        self.login = LoginFlow(
            tool,
            self._keep,
            self._show,
            page_seconds=180.0,
            quiet_seconds=10.0,
            clock=lambda: self.now,
        )
        self.login.begin()

    def _keep(self, status: LoginStatus, url: str | None, detail: str, code: str | None) -> None:
        self.kept.append((status, url, detail))
        self.codes.append(code)

    def _show(self, page: str) -> None:
        if not self.has_browser:
            raise CheckFailed("no browser")
        self.shown.append(page)

    def end(self, exit_code: int, status: LoginStatus = "done", detail: str = "") -> None:
        """End the tool; its login check gives this result."""
        self.login.end(exit_code, lambda: (status, detail))

    def wishes(self, *pages: str) -> None:
        self.login.take_opened_pages("".join(f"{page}\n" for page in pages).encode())
        self.login.retry_pages()


def test_page_opened_by_the_tool_is_the_login_url() -> None:
    course = Course()
    assert course.kept == [("starting", None, "")]
    course.login.take_output(f"visit {OTHER_PAGE}\r\n".encode())
    course.wishes(PAGE)
    assert course.kept[-1] == ("waiting", PAGE, "")
    course.now += 60
    course.login.retry_pages()
    assert course.shown == [PAGE]
    assert course.login.pause_seconds() is None


def test_printed_url_is_used_after_a_delay_without_an_opened_page() -> None:
    course = Course()
    course.login.take_output(CLAUDE.encode()[:300])
    course.login.take_output(CLAUDE.encode()[300:])
    course.login.retry_pages()
    assert course.kept == [("starting", None, "")]
    assert course.login.pause_seconds() == 10.0
    course.now += 10
    course.login.retry_pages()
    assert (course.kept[-1], course.shown) == (("waiting", PAGE, ""), [PAGE])
    course.wishes(OTHER_PAGE)
    assert (course.kept[-1], course.shown) == (("waiting", OTHER_PAGE, ""), [PAGE, OTHER_PAGE])


def test_device_code_makes_the_printed_url_the_login_at_once() -> None:
    course = Course(DEVICE_TOOL)
    course.login.take_output(f"visit {PAGE}\r\nand type the code: AB-12\r\n".encode())
    course.login.retry_pages()
    assert (course.kept[-1], course.codes[-1]) == (("waiting", PAGE, ""), "AB-12")
    course.end(0)
    assert course.codes[-1] == "AB-12"


def test_exit_status_0_without_a_login_is_a_failure() -> None:
    course = Course()
    course.wishes(PAGE)
    course.end(0, "failed", "claude exited with status 1: Not logged in")
    assert course.kept[-1] == ("failed", PAGE, "claude exited with status 1: Not logged in")


def test_typed_secrets_are_masked_in_echoed_output() -> None:
    course = Course()
    course.login.take_output(CLAUDE.encode())
    course.login.take_typed(b"http://localhost/cb?code=c0de-c0de&state=aB3-_~xyz\r")
    for letter in b"pass\x1b[200~phrase1\x1b[201~":
        course.login.take_typed(bytes([letter]))
    echoed = "code=c0de-c0de&state=aB3-_~xyz\r\npassphrase1\r\nno: 'c0de-c0de' is wrong\r\n"
    course.login.take_output(echoed.encode())
    course.login.end(1, lambda: ("done", ""))
    detail = course.kept[-1][2]
    assert "no: '…' is wrong" in detail
    assert not any(secret in detail for secret in ("c0de-c0de", "xyz", "passphrase1"))


def test_a_closed_terminal_ends_the_login() -> None:
    course = Course()
    course.wishes(PAGE)
    course.login.close()
    assert course.login.is_over()
    course.end(-15)
    assert course.kept[-1] == ("failed", PAGE, "the login's terminal was closed")


def test_later_pages_are_opened_once_and_keep_the_login_url() -> None:
    course = Course()
    course.wishes(PAGE, PAGE, OTHER_PAGE, "javascript:alert(1)", "/etc/passwd")
    course.wishes(PAGE)
    assert course.shown == [PAGE, OTHER_PAGE]
    assert course.kept[-1] == ("waiting", PAGE, "")


def test_opened_page_url_may_arrive_in_parts() -> None:
    course = Course()
    course.login.take_opened_pages(PAGE.encode()[:50])
    assert course.shown == []
    course.login.take_opened_pages(PAGE.encode()[50:] + b"\n")
    assert course.shown == [PAGE]


def test_number_of_opened_pages_is_limited() -> None:
    course = Course()
    course.wishes(*(f"https://a/{number}" for number in range(100)))
    assert len(course.shown) == 8


def test_opening_a_page_is_retried_without_a_browser() -> None:
    course = Course()
    course.has_browser = False
    course.wishes(PAGE)
    assert course.kept[-1] == ("waiting", PAGE, "no browser")
    assert course.login.pause_seconds() == SHOW_AGAIN_SECONDS
    course.has_browser = True
    course.login.retry_pages()
    assert (course.kept[-1], course.shown) == (("waiting", PAGE, ""), [PAGE])


def test_finished_login_keeps_its_url() -> None:
    course = Course()
    course.wishes(PAGE)
    course.end(0)
    assert course.kept[-1] == ("done", PAGE, "")


def test_acp_answer_decides_regardless_of_the_exit_status() -> None:
    course = Course(GEMINI_TOOL)
    course.wishes(PAGE)
    course.login.take_output(b'{"jsonrpc":"2.0","id":1,"result":nu')
    assert not course.login.is_over()
    course.login.take_output(b"ll}\r\n")
    assert course.login.is_over()
    course.end(-9)
    assert course.kept[-1] == ("done", PAGE, "")


def test_login_without_a_page_fails_after_a_timeout_with_output() -> None:
    course = Course()
    course.login.take_output(b"waiting for the network\r\n")
    assert course.login.pause_seconds() == 180.0
    course.now += 179
    assert not course.login.is_over()
    course.now += 1
    assert course.login.is_over()
    course.end(-9)
    assert course.kept[-1] == (
        "failed",
        None,
        "claude opened no login page within 180 s: waiting for the network",
    )


def test_waiting_login_has_no_timeout() -> None:
    course = Course()
    course.wishes(PAGE)
    course.now += 3600
    assert course.login.pause_seconds() is None
    assert not course.login.is_over()


def test_kept_output_is_limited() -> None:
    course = Course()
    for _ in range(100):
        course.login.take_output(b"x" * 10000)
    course.end(1)
    assert len(course.kept[-1][2]) < 70000


def test_browser_message_opens_a_page() -> None:
    assert message_for("https://a/") == b"START\0/\0chromium\0https://a/"


class NoHealth:
    """Health for routes that use logins only."""


@pytest.fixture
def guest(tmp_path: Path) -> AgentSettings:
    """The settings of a guest with claude and codex, and no login started."""
    for name in ("claude", "codex"):
        write_provider(tmp_path / "providers", provider_data(name, accepts_code=name == "claude"))
    return AgentSettings(providers=f"{tmp_path}/providers", logins=f"{tmp_path}/logins")


def answered(
    method: str,
    path: str,
    settings: AgentSettings,
    body: object = None,
    *,
    is_from_guest: bool = False,
) -> tuple[int, dict[str, object], object]:
    request = HttpRequest(method, path, json.dumps(body).encode(), is_from_guest=is_from_guest)
    reply = Routes(NoHealth(), settings)(request)  # type: ignore[arg-type]
    return reply.status, json.loads(reply.body), reply.headers.get("Allow")


@pytest.mark.parametrize("path", ["/login/", "/login/bash", "/login/claude/x", "/login/../a"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unknown_provider_is_404_with_the_known_names(
    method: str, path: str, guest: AgentSettings
) -> None:
    status, body, _ = answered(method, path, guest)
    assert status == 404
    assert "claude, codex" in str(body["detail"])


def test_methods_of_login_paths(guest: AgentSettings) -> None:
    for path, allowed in (
        ("/login/claude", "GET, HEAD, POST"),
        ("/login/claude/code", "POST"),
        ("/login/claude/credentials", "GET, PUT, DELETE"),
    ):
        status, _, allow = answered("PATCH", path, guest)
        assert (status, allow) == (405, allowed)
    for path in ("/", "/health", "/metrics", "/login"):
        status, _, allow = answered("POST", path, guest)
        assert (status, allow) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/login/claude", "/login/claude/credentials", "/login/bash"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_login_requests_from_inside_the_guest_are_refused(
    method: str, path: str, guest: AgentSettings
) -> None:
    status, body, _ = answered(method, path, guest, is_from_guest=True)
    assert (status, body["detail"]) == (403, "only the host asks for logins")


NO_CODE: tuple[object, ...] = ({}, [], "code", None)


@pytest.mark.parametrize(
    ("provider", "body", "status"),
    [
        ("claude", {"code": "abc"}, 409),  # no login is waiting
        ("codex", {"code": "abc"}, 409),  # this tool takes no code
        *(("claude", {"code": code}, 400) for code in ("", "a\nb", "\x1b[A", "a" * 4097, 1)),
        *(("claude", body, 400) for body in NO_CODE),
    ],
)
def test_invalid_or_unexpected_codes_are_refused(
    provider: str, body: object, status: int, guest: AgentSettings
) -> None:
    assert answered("POST", f"/login/{provider}/code", guest, body)[0] == status


def test_no_credentials_before_the_login_is_done(guest: AgentSettings) -> None:
    status, body, _ = answered("GET", "/login/claude/credentials", guest)
    assert (status, body["detail"]) == (404, "Claude is not logged in")


@pytest.mark.parametrize("body", [{}, [], None, {"credentials": []}, {"credentials": "{}"}])
def test_malformed_credentials_body_is_400(body: object, guest: AgentSettings) -> None:
    assert answered("PUT", "/login/claude/credentials", guest, body)[0] == 400


def test_missing_credentials_socket_is_503(guest: AgentSettings, tmp_path: Path) -> None:
    guest.credentials_socket = f"{tmp_path}/nobody"
    status, body, _ = answered("DELETE", "/login/claude/credentials", guest)
    assert (status, "there is no" in str(body["detail"])) == (503, True)
