"""The HTTP client of synchronous code, against real sockets: what it ignores and how it fails."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from threading import Event

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from polydev import http_client
from polydev.errors import ConfigError
from polydev.http_client import HttpSession
from tests.loopback import Answer, Asked, Served, served

SOON = 0.05
FAR = "https://controller.invalid"


def hello(_asked: Asked) -> Answer:
    return Answer(body=b"hello")


@pytest.fixture
def server() -> Iterator[Served]:
    with served(hello) as found:
        yield found


@pytest.fixture
def waiting() -> Iterator[Event]:
    """An event for servers that must not answer before the test allows it."""
    over = Event()
    yield over
    over.set()


def set_proxies(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, url)


def test_proxy_and_netrc_of_environment_are_ignored(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login ada password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    set_proxies(monkeypatch, "http://127.0.0.1:9")
    assert http_client.get(f"{server.url}/a?b=c").text == "hello"
    assert [asked.target for asked in server.asked] == ["/a?b=c"]
    assert "Authorization" not in server.asked[0].headers


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("status", [301, 307])
def test_redirects_are_not_followed(method: str, status: int) -> None:
    moved = Answer(status, headers={"Location": "/elsewhere"})
    with served(lambda _asked: moved) as server, HttpSession(server.url) as session:
        answer = session.request(method, "/here")
        assert (answer.status_code, answer.headers["Location"]) == (status, "/elsewhere")
        assert [asked.path for asked in server.asked] == ["/here"]


def test_query_and_ipv6_host_are_encoded() -> None:
    with served(hello, host="::1") as server, HttpSession(f"{server.url}/prefix") as session:
        session.get("/a b", params={"x": "ä&= +", "empty": "", "none": None, "n": 1})
    (asked,) = server.asked
    assert asked.target == "/prefix/a%20b?x=%C3%A4%26%3D+%2B&empty=&n=1"
    assert asked.headers["Host"] == server.url.removeprefix("http://")


def test_silent_server_is_a_timeout(waiting: Event) -> None:
    def late(asked: Asked) -> Answer:
        waiting.wait()
        return hello(asked)

    with served(late) as server, HttpSession(server.url, SOON) as session:
        with pytest.raises(requests.Timeout):
            session.get("/")
        waiting.set()


def test_stalled_answer_is_a_timeout(waiting: Event) -> None:
    def parts() -> Iterator[bytes]:
        yield b"first"
        waiting.wait()

    with (
        served(lambda _asked: Answer(parts=parts())) as server,
        HttpSession(server.url, SOON) as session,
    ):
        with pytest.raises(requests.Timeout):
            session.get("/")
        waiting.set()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "Remote end closed connection without response"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the server does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel", "the answer broke off"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
            "the answer broke off",
        ),
    ],
    ids=["closed", "no-http", "short", "short-chunks"],
)
def test_broken_answer_has_a_short_reason(raw: bytes, words: str) -> None:
    with served(lambda _asked: Answer(raw=[raw])) as server:
        with pytest.raises(requests.RequestException) as failed:
            http_client.get(server.url)
        assert http_client.reason(failed.value) == words


def test_refused_connection_has_the_system_error_as_reason() -> None:
    with pytest.raises(requests.ConnectionError) as failed:
        http_client.get("http://127.0.0.1:1")
    assert http_client.reason(failed.value) == "[Errno 111] Connection refused"


def test_proxy_is_used_for_remote_addresses_only(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_proxies(monkeypatch, server.url)
    with HttpSession(FAR) as session, pytest.raises(requests.RequestException):
        session.get("/")
    near = server.url.replace("http", "https")  # where nobody speaks TLS
    with HttpSession(near) as session, pytest.raises(requests.exceptions.SSLError):
        session.get("/")
    monkeypatch.setenv("NO_PROXY", "controller.invalid")
    with HttpSession(FAR) as session:
        assert session.proxies == {}
    assert [asked.target for asked in server.asked] == ["controller.invalid:443"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://controller.example", True),
        ("https://192.0.2.1:8443/prefix", True),
        ("http://controller.example", False),
        ("https://localhost:4000", False),
        ("https://127.0.0.2", False),
        ("https://[::1]:4000", False),
    ],
)
def test_is_far_detects_remote_addresses(url: str, expected: bool) -> None:
    assert http_client.is_far(url) is expected


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's controller")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    own = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(made.public_bytes(Encoding.PEM) + own)
    return file


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Served]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(hello, tls=context) as server:
        yield server


def test_ssl_cert_file_is_trusted(
    tls_server: Served, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HttpSession(tls_server.url) as session:
        assert session.get("/").text == "hello"


def test_untrusted_certificate_is_refused(
    tls_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with (
        HttpSession(tls_server.url) as session,
        pytest.raises(requests.exceptions.SSLError) as failed,
    ):
        session.get("/")
    assert "certificate verify failed: self-signed" in http_client.reason(failed.value)


def test_missing_ssl_cert_file_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/ca.pem")
    with pytest.raises(ConfigError, match="SSL_CERT_FILE names /nowhere/ca"):
        HttpSession(FAR)
