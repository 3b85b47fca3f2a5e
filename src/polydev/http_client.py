"""HTTP client of synchronous code, for requests to VMs, labs, hosts and controllers.

It is requests with stricter defaults: no redirects, no .netrc, a timeout for every wait, and a
proxy for remote HTTPS servers only. Asynchronous code uses httpx.
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
        """With `through_ssh` SSH has verified the host already, so certificates are not checked.

        Raises ConfigError if the environment names certificates that do not exist.
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
        """Raise requests.Timeout for a late body too, where requests raises ConnectionError."""
        try:
            with warnings.catch_warnings():
                # The certificate is not checked on purpose.
                warnings.simplefilter("ignore", InsecureRequestWarning)
                return super().send(request, **words)
        except requests.ConnectionError as error:
            if isinstance(system_error(error), TimeoutError):
                raise requests.ReadTimeout(error, request=request) from error
            raise

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return no target, so that redirects are not followed."""


def get(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> requests.Response:
    """Send one GET request on a connection of its own, without a proxy."""
    with HttpSession(timeout_seconds=timeout_seconds) as session:
        return session.get(url)


def is_far(url: str) -> bool:
    """Return whether the environment's proxy is used; not for VMs, labs and tunnels."""
    parts = urlsplit(url)
    return parts.scheme == "https" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trusted_certificates() -> str | bool:
    """Return the path of the certificates that OpenSSL's variables name, or True for certifi's."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if path := os.environ.get(name):
            if not Path(path).exists():
                raise ConfigError(f"{name} names {path}, which does not exist", f"correct {name}")
            return path
    return True


def tls_context() -> ssl.SSLContext:
    """Return a context that trusts what `HttpSession` trusts, for connections without requests."""
    trusted = trusted_certificates()
    path = DEFAULT_CA_BUNDLE_PATH if trusted is True else str(trusted)
    is_folder = Path(path).is_dir()
    return ssl.create_default_context(
        cafile=None if is_folder else path, capath=path if is_folder else None
    )


def reason(error: Exception) -> str:
    """Return why a request failed, in a few words; those of requests name objects in memory."""
    origin = system_error(error)
    if isinstance(origin, OSError):
        return str(origin)
    if isinstance(error, (ChunkedEncodingError, ProtocolError)):
        return "the answer broke off"
    if isinstance(origin, HTTPException):
        return "the server does not speak HTTP"
    return str(error) or type(error).__name__


def system_error(error: BaseException) -> OSError | HTTPException | None:
    """Return the error of the system or of http.client that requests wrapped."""
    inner: BaseException | None = error
    while inner is not None:
        is_of_requests = isinstance(inner, requests.RequestException)  # OSErrors too
        if isinstance(inner, (OSError, HTTPException)) and not is_of_requests:
            return inner
        inner = inner.__cause__ or inner.__context__
    return None
