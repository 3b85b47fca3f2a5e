"""HTTP for synchronous code: verbs, specs and tests ask VMs, labs, hosts and controllers by it.

It is requests with narrower habits: no redirect is followed, no .netrc is read, nothing is awaited
without a limit, and only what is far away is asked through a proxy. Asynchronous code uses httpx.
"""

from __future__ import annotations

import os
import ssl
import warnings
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.exceptions import ChunkedEncodingError
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies
from urllib3.exceptions import InsecureRequestWarning, ProtocolError

from polydev.errors import ConfigError

TIMEOUT_SECONDS = 30.0


class HttpSession(requests.Session):
    """Requests to one server.

    `base_url` comes before the path of each request. A request without a `timeout` gets the
    session's, which is for connecting and for each wait for a part of the answer.
    """

    def __init__(
        self,
        base_url: str = "",
        timeout_seconds: float = TIMEOUT_SECONDS,
        *,
        through_ssh: bool = False,
    ) -> None:
        """`through_ssh`: the way there ends at the server's own host, which SSH has made sure of.

        Raises ConfigError where the environment names certificates that are not there.
        """
        super().__init__()
        self.base_url = base_url
        self.timeout_seconds = timeout_seconds
        # requests would take a password from .netrc, and send it instead of a token.
        self.trust_env = False
        if through_ssh:
            self.verify = False
        elif base_url.startswith("https://"):
            self.verify = trusted_certificates()
        if is_far(base_url):
            self.proxies.update(get_environ_proxies(base_url, no_proxy=None))

    def request(
        self, method: str, url: str | bytes, *words: Any, **named: Any
    ) -> requests.Response:
        named.setdefault("timeout", self.timeout_seconds)
        path = url.decode() if isinstance(url, bytes) else url
        return super().request(method, self.base_url + path, *words, **named)

    def send(self, request: requests.PreparedRequest, **words: Any) -> requests.Response:
        """Raises requests.Timeout for a late body too, which requests calls a lost connection."""
        try:
            with warnings.catch_warnings():
                # Of a certificate that is not compared on purpose.
                warnings.simplefilter("ignore", InsecureRequestWarning)
                return super().send(request, **words)
        except requests.ConnectionError as error:
            if isinstance(system_error(error), TimeoutError):
                raise requests.ReadTimeout(error, request=request) from error
            raise

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Name no target, so that a redirect is an answer like others."""


def get(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> requests.Response:
    """Return the answer to one request, to something near, on a connection of its own."""
    with HttpSession(timeout_seconds=timeout_seconds) as session:
        return session.get(url)


def is_far(url: str) -> bool:
    """Whether the environment's proxy leads there. VMs, labs and tunnels are reached directly."""
    parts = urlsplit(url)
    return parts.scheme == "https" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trusted_certificates() -> str | bool:
    """Path of the certificates that OpenSSL's own variables name, or True for certifi's."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            if not Path(path).exists():
                raise ConfigError(f"{name} names {path}, which is not there", f"correct {name}")
            return path
    return True


def tls_context() -> ssl.SSLContext:
    """Trusts whom `HttpSession` trusts, for connections that are none of requests'."""
    trusted = trusted_certificates()
    path = DEFAULT_CA_BUNDLE_PATH if trusted is True else str(trusted)
    is_folder = Path(path).is_dir()
    return ssl.create_default_context(
        cafile=None if is_folder else path, capath=path if is_folder else None
    )


def reason(error: Exception) -> str:
    """Why a request failed, in a few words: requests' own name its objects in memory."""
    origin = system_error(error)
    if isinstance(origin, OSError):
        return str(origin)
    if isinstance(error, (ChunkedEncodingError, ProtocolError)):
        return "the answer broke off"
    if isinstance(origin, HTTPException):
        return "what answers there does not speak HTTP"
    return str(error) or type(error).__name__


def system_error(error: BaseException) -> OSError | HTTPException | None:
    """Return what the system or http.client raised, and requests wrapped."""
    inner: BaseException | None = error
    while inner is not None:
        is_of_requests = isinstance(inner, requests.RequestException)  # OSErrors too
        if isinstance(inner, (OSError, HTTPException)) and not is_of_requests:
            return inner
        inner = inner.__cause__ or inner.__context__
    return None
