"""The controller's HTTP API, as verbs use it."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from itertools import islice
from typing import Any

import requests
import urllib3

from polydev import http_client
from polydev.errors import ConfigError, Error
from polydev.vm.boot_stages import last_lines

ANSWER_SECONDS = 30.0
BLOCK_BYTES = 64 * 1024
MOST_LISTED = 200
SHORTEST_PREFIX = 4
UNKNOWN_CALLER_HINT = (
    "create a token with ./inv token.create --user USER --name NAME (./inv user.list has users), "
    "and give it with POLYDEV_TOKEN=… or --token"
)
# The C1 set, which some terminals take as escape sequences.
_SECOND_CONTROLS = dict.fromkeys(range(0x80, 0xA0))


class ControllerUnreachable(Error):
    """No controller answers at the address."""

    code = "controller-unreachable"


class ControllerRefused(Error):
    """The controller refused a request; `status` is that of HTTP."""

    code = "controller-refused"

    def __init__(self, message: str, hint: str | None, status: int) -> None:
        super().__init__(message, hint)
        self.status = status


class ControllerApi:
    """A context manager. All calls raise ControllerUnreachable and ControllerRefused."""

    def __init__(self, url: str, token: str, *, through_ssh: bool = False) -> None:
        """With `through_ssh` the URL is the local end of a tunnel to the controller's host.

        Raises ConfigError for an invalid URL or token.
        """
        self.url = url.rstrip("/")
        self.through_ssh = through_ssh
        if not _is_address(self.url):
            shown = repr(url) if "@" not in url else "the address, which has a user or an @,"
            raise ConfigError(
                f"{shown} is not the URL of a controller", "write it as in http://HOST:4000"
            )
        self.authorization = {"Authorization": f"Bearer {_header('the token', token)}"}
        self._session = http_client.HttpSession(self.url, ANSWER_SECONDS, through_ssh=through_ssh)
        self._session.headers.update({**self.authorization, "Accept": "application/json"})

    def __enter__(self) -> ControllerApi:
        return self

    def __exit__(self, *_error: object) -> None:
        self._session.close()

    def takes_token(self) -> bool:
        """Whether the controller accepts the token."""
        try:
            self.get("/api/auth/sessions", limit=1)
        except ControllerRefused as error:
            if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                return False
            raise
        return True

    def get(self, path: str, **query: str | int) -> Any:
        with self._reached():
            answer = self._session.get(path, params=query)
        return _content(answer)

    def content(self, path: str) -> bytes:
        """Return the bytes of an answer that is not JSON."""
        with self._reached():
            answer = self._session.get(path, headers={"Accept": "*/*"})
        if not answer.ok:
            raise refused(answer)
        return answer.content

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        given = {name: _header(name, value) for name, value in (headers or {}).items()}
        with self._reached():
            answer = self._session.post(path, json=body, headers=given)
        return _content(answer)

    def delete(self, path: str) -> Any:
        with self._reached():
            answer = self._session.delete(path)
        return _content(answer)

    def text_parts(self, path: str, **query: str | int) -> Iterator[str]:
        """Yield the text of a streamed answer as it arrives."""
        # The stream may pause for long, but the answer must begin in time.
        with self._reached(), self._session.get(path, params=query, stream=True) as answer:
            if not answer.ok:
                raise refused(answer)
            _wait_without_limit(answer)
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            while part := answer.raw.read1(BLOCK_BYTES, decode_content=True):
                yield decoder.decode(part)
            yield decoder.decode(b"", final=True)

    def sessions(self, *, all_of_them: bool, limit: int | None = None) -> list[dict[str, Any]]:
        """Return the sessions that the token may see, newest first; ended ones on request."""
        live = "false" if all_of_them else "true"
        return self._listed("/api/auth/sessions", "sessions", limit, live=live)

    def vms(self, *, all_of_them: bool, limit: int | None = None) -> list[dict[str, Any]]:
        """Return VMs, newest first; ended ones on request."""
        everything = "true" if all_of_them else "false"
        return self._listed("/api/vm", "vms", limit, all=everything)

    def _listed(
        self, path: str, name: str, limit: int | None, **query: str
    ) -> list[dict[str, Any]]:
        size = MOST_LISTED if limit is None else min(limit, MOST_LISTED)
        return list(islice(self._pages(path, name, {**query, "limit": size}), limit))

    def _pages(
        self, path: str, name: str, query: Mapping[str, str | int]
    ) -> Iterator[dict[str, Any]]:
        """Yield all items of a list, and request its pages as they are needed."""
        before: dict[str, str] = {}
        while True:
            page = self.get(path, **query, **before)
            yield from page[name]
            if page.get("next") is None:
                return
            before = {"before": page["next"]}

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except requests.Timeout as error:
            raise self._unreachable(f"no answer within {ANSWER_SECONDS:g} s") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._unreachable(http_client.reason(error)) from error

    def _unreachable(self, cause: str) -> ControllerUnreachable:
        return ControllerUnreachable(
            f"no controller answers at {self.url}: {cause}",
            "./inv up starts the lab's; ./inv doctor finds what is wrong with a host",
        )


def _is_address(url: str) -> bool:
    try:
        requests.Request("GET", url).prepare()
    except requests.RequestException:
        return False
    # A user name would replace the token, and paths are appended to the URL.
    return url.startswith(("http://", "https://")) and not set("@?#") & set(url)


def _header(what: str, value: str) -> str:
    """Return a value that a header can hold. Raises ConfigError, which does not quote it."""
    if not (value.isascii() and value.isprintable()) or value != value.strip():
        raise ConfigError(
            f"{what} contains a character that HTTP headers cannot contain",
            "remove line ends, blanks around it and all that is not ASCII",
        )
    return value


def _wait_without_limit(answer: requests.Response) -> None:
    """Remove the time limit for the rest of an answer."""
    connection = answer.raw.connection
    if connection is not None and connection.sock is not None:
        connection.sock.settimeout(None)


def _content(answer: requests.Response) -> Any:
    if not answer.ok:
        raise refused(answer)
    try:
        return answer.json()
    except ValueError:
        raise ControllerUnreachable(
            f"{answer.url} answers, but is not a controller", "check --url and POLYDEV_URL"
        ) from None


def refused(answer: requests.Response) -> ControllerRefused:
    """Return the error of an answer: problem details (RFC 9457), or the words of a proxy."""
    try:
        told = answer.json()
    except ValueError:
        told = {}
    problem = told if isinstance(told, dict) else {}
    said = problem.get("detail") or f"{answer.status_code} {answer.reason}"
    if wrong := [_wrong_value(each) for each in problem.get("errors") or ()]:
        said = f"{said}: {'; '.join(wrong)}"
    hint = problem.get("hint")
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        hint = UNKNOWN_CALLER_HINT
    elif answer.status_code == HTTPStatus.FORBIDDEN:
        hint = hint or "use the token of a user with the role operator or admin"
    return ControllerRefused(str(said), hint, answer.status_code)


def _wrong_value(error: Mapping[str, str]) -> str:
    """Return the name of a refused value and the reason."""
    _, _, name = error["pointer"].partition("/")
    return f"{name or error['pointer']}: {error['detail']}"


def plain_lines(parts: Iterable[str]) -> Iterator[str]:
    """Yield whole lines of a text that arrives in parts, without control characters.

    The text comes from a VM, which must not control the operator's terminal.
    """
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        yield from (line for each in whole for line in _plain(each))
    yield from _plain(rest)


def _plain(line: str) -> list[str]:
    return last_lines(line.translate(_SECOND_CONTROLS))


def one_with_prefix(ids: Iterable[str], wanted: str, what: str, hint: str) -> str:
    """Return the id that begins with `wanted`. Raises ConfigError unless exactly one does."""
    found = sorted({each for each in ids if each.startswith(wanted.lower())})
    if len(wanted) < SHORTEST_PREFIX:
        raise ConfigError(
            f"{wanted!r} is too short for a {what}",
            f"give {SHORTEST_PREFIX} or more characters of its id",
        )
    if not found:
        raise ConfigError(f"there is no {what} {wanted}", hint)
    if len(found) > 1 and wanted not in found:
        raise ConfigError(
            f"{wanted} matches {len(found)} {what}s: {', '.join(found[:5])}",
            "give more characters of the id",
        )
    return wanted if wanted in found else found[0]
