"""Authentication: JWTs of a secret or an identity provider, operators' tokens, and invalid ones."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from ipaddress import ip_network
from typing import Any, cast

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from polydev.controller.auth.authentication import Authenticator
from polydev.controller.auth.client_address import place_of, source_of
from polydev.controller.auth.jwks import FETCH_PAUSE_SECONDS, IDLE_SECONDS, KEEP_SECONDS, Jwks
from polydev.controller.auth.jwt_reader import JwtReader
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.entities import Caller, Role, User, now
from polydev.controller.problem_details import Unavailable
from polydev.controller.settings import JwtSettings
from polydev.controller.store.sign_ins import SignIns
from polydev.controller.store.users import Tokens, Users
from polydev.errors import NotAllowed, NotAuthenticated

SECRET = "the secret of the tests, long enough"
USER_ID = "0f9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c10"
STRANGER = "7d9f6a0e-52a5-4f0f-8a9e-6d1d2b6f3c11"
URL = "https://identity.test/jwks.json"


class OneUser:
    """Stores with one user and one token."""

    role: Role = "user"

    async def find(self, user_id: str) -> User | None:
        return User(user_id, self.role, None, now()) if user_id == USER_ID else None

    async def caller_of(self, plain: str) -> Caller | None:
        return Caller(USER_ID, self.role, "token") if plain == "pdt_good" else None


@dataclass
class Provider:
    """An identity provider with a key of each kind. `down` fails whatever it is asked; one with
    `go_on` answers once that is set.
    """

    down: bool = False
    go_on: asyncio.Event | None = None
    asked: int = 0
    now: float = 1000.0
    rsa_key: Any = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    ec_key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    ids: dict[str, str] = field(default_factory=lambda: {"RS256": "rsa-1", "ES256": "ec-1"})

    def document(self) -> dict[str, Any]:
        rsa_key = RSAAlgorithm.to_jwk(self.rsa_key.public_key(), as_dict=True)
        ec_key = ECAlgorithm.to_jwk(self.ec_key.public_key(), as_dict=True)
        return {
            "keys": [
                {**rsa_key, "kid": self.ids["RS256"], "alg": "RS256"},
                {**ec_key, "kid": self.ids["ES256"], "alg": "ES256"},
            ]
        }

    async def answer(self, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == URL
        self.asked += 1
        if self.go_on is not None:
            await self.go_on.wait()
        if self.down:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=self.document())

    def token(self, algorithm: str, **claims: Any) -> str:
        key = self.rsa_key if algorithm == "RS256" else self.ec_key
        headers = {"kid": self.ids[algorithm]}
        return jwt.encode(claims_of(**claims), key, algorithm=algorithm, headers=headers)

    def keys(self) -> Jwks:
        return Jwks(URL, httpx.MockTransport(self.answer), lambda: self.now)


@pytest.fixture(scope="module")
def made_provider() -> Provider:
    return Provider()


@pytest.fixture
def provider(made_provider: Provider) -> Provider:
    """One provider for the module: its keys are slow to make."""
    return Provider(rsa_key=made_provider.rsa_key, ec_key=made_provider.ec_key)


def claims_of(**changes: Any) -> dict[str, Any]:
    """Return valid claims with these changes; None removes a claim."""
    claims = {"sub": USER_ID, "exp": int(time.time()) + 60, **changes}
    return {name: value for name, value in claims.items() if value is not None}


def hs256(_secret: str = SECRET, /, **claims: Any) -> str:
    return jwt.encode(claims_of(**claims), _secret, algorithm="HS256")


def identity(
    provider: Provider | None = None, secret: str | None = SECRET, **rules: Any
) -> Authenticator:
    stores = OneUser()
    reader = JwtReader(
        SecretStr(secret) if secret else None,
        JwtSettings(**rules),
        provider.keys() if provider else None,
    )
    failures = RateLimiter(per_second=0.001, burst=3)
    stores_of = cast(Users, stores), cast(Tokens, stores), cast(SignIns, stores)
    return Authenticator(*stores_of, reader, failures)


def caller(token: str, made: Authenticator | None = None) -> Caller:
    return asyncio.run((made or identity()).caller(f"Bearer {token}"))


def refusal(token: str, made: Authenticator | None = None) -> str:
    with pytest.raises(NotAuthenticated) as refused:
        caller(token, made)
    assert token not in refused.value.message
    return refused.value.message


def test_jwt_role_comes_from_the_database() -> None:
    until = datetime.fromtimestamp(int(time.time()) + 60, timezone.utc)
    made = identity(leeway_seconds=10)
    found = caller(hs256(role="admin", exp=int(until.timestamp())), made)
    assert found == Caller(USER_ID, "user", "jwt", until + timedelta(seconds=10))


def test_jwt_subject_is_case_insensitive() -> None:
    for subject in (USER_ID.upper(), USER_ID.title()):
        assert caller(hs256(sub=subject)).user_id == USER_ID


def test_operator_token_is_accepted() -> None:
    assert caller("pdt_good") == Caller(USER_ID, "user", "token")
    assert refusal("pdt_bad") == "the token is not valid: it is unknown, revoked or expired"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_jwt_of_the_identity_provider_is_accepted(provider: Provider, algorithm: str) -> None:
    made = identity(provider, secret=None)
    assert caller(provider.token(algorithm), made).user_id == USER_ID


def test_authorization_header_takes_precedence_over_the_query() -> None:
    made = identity()
    assert asyncio.run(made.caller(None, hs256())).user_id == USER_ID
    with pytest.raises(NotAuthenticated):
        asyncio.run(made.caller("Bearer nothing", hs256()))


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic dTpw", hs256()])
def test_malformed_authorization_headers_are_refused(header: str | None) -> None:
    with pytest.raises(NotAuthenticated):
        asyncio.run(identity().caller(header))


def unsigned(**header: str) -> str:
    parts = (json.dumps({"alg": "none", **header}), json.dumps(claims_of()), "")
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().strip("=") for part in parts)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: hs256(exp=int(time.time()) - 60), "the token has expired"),
        (lambda: hs256(exp=None), "the token has no exp"),
        (lambda: hs256(sub=None), "the token has no sub"),
        (lambda: hs256(nbf=int(time.time()) + 60), "the token is not valid yet"),
        (lambda: hs256("another secret, also long enough!"), "the token's signature is wrong"),
        (lambda: hs256(sub=7), "the token is not valid"),
        (lambda: jwt.encode(claims_of(), SECRET * 2, "HS512"), "tokens signed with this algorithm"),
        (unsigned, "tokens signed with this algorithm"),
        (lambda: unsigned(alg="RS256"), "tokens signed with this algorithm"),
        (lambda: "a.b.c", "the token is not valid"),
        (lambda: "nothing like it", "the token is not valid"),
        (lambda: "ü.é.à", "the token is not valid"),
        (lambda: "x" * 10_000, "the token is not valid: it is too long"),
    ],
)
def test_invalid_tokens_are_refused_with_a_reason(make: Callable[[], str], reason: str) -> None:
    assert refusal(make()).startswith(reason)


def test_a_token_whose_end_is_no_date_is_valid_for_ever() -> None:
    found = caller(hs256(exp=10**400))
    assert found.user_id == USER_ID
    assert found.expires_at == datetime.max.replace(tzinfo=timezone.utc)


def test_leeway_applies_to_expired_tokens() -> None:
    late = hs256(exp=int(time.time()) - 5)
    assert caller(late, identity(leeway_seconds=30)).user_id == USER_ID
    assert refusal(late, identity(leeway_seconds=1)) == "the token has expired"


def test_audience_and_issuer_are_checked_if_configured() -> None:
    made = identity(audience="polydev", issuer="https://id.test")
    good: dict[str, Any] = {"aud": ["polydev", "other"], "iss": "https://id.test"}
    assert caller(hs256(**good), made).user_id == USER_ID
    assert (
        refusal(hs256(**{**good, "aud": "other"}), made)
        == "the token is for another audience (aud)"
    )
    assert refusal(hs256(**{**good, "iss": "x"}), made) == "the token is from another issuer (iss)"
    assert refusal(hs256(iss="https://id.test"), made) == "the token has no aud"
    assert refusal(hs256(aud="polydev"), made) == "the token has no iss"
    assert caller(hs256(aud="whoever")).user_id == USER_ID


@pytest.mark.parametrize(
    "subject", [STRANGER, "not-an-id", "{" + USER_ID + "}", USER_ID.replace("-", "")]
)
def test_unknown_users_are_not_allowed(subject: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        caller(hs256(sub=subject))
    assert subject not in refused.value.message


def test_hs256_is_refused_without_a_secret() -> None:
    assert "algorithm" in refusal(hs256(), identity(secret=None))


def test_public_key_cannot_sign_hs256_tokens(provider: Provider) -> None:
    """Tokens signed with the public key must be refused."""
    forged = hs256(provider.document()["keys"][0]["n"])
    assert "algorithm" in refusal(forged, identity(provider, secret=None))
    assert "signature" in refusal(forged, identity(provider))


def test_algorithm_must_match_the_key(provider: Provider) -> None:
    headers = {"kid": provider.ids["ES256"]}
    token = jwt.encode(claims_of(), provider.rsa_key, algorithm="RS256", headers=headers)
    assert "algorithm" in refusal(token, identity(provider))


def test_jwks_is_fetched_once_and_again_for_a_new_key(provider: Provider) -> None:
    made = identity(provider)
    for _ in range(3):
        caller(provider.token("RS256"), made)
    assert provider.asked == 1
    provider.ids["RS256"] = "rsa-2"
    assert refusal(provider.token("RS256"), made) == "the token is signed with an unknown key"
    assert provider.asked == 1
    provider.now += FETCH_PAUSE_SECONDS + 1
    caller(provider.token("RS256"), made)
    assert provider.asked == 2


def test_unknown_key_ids_do_not_cause_more_fetches(provider: Provider) -> None:
    made = identity(provider)
    caller(provider.token("RS256"), made)
    for number in range(20):
        provider.now += 1
        token = jwt.encode(
            claims_of(), provider.rsa_key, algorithm="RS256", headers={"kid": f"made-up-{number}"}
        )
        assert refusal(token, made) == "the token is signed with an unknown key"
    assert provider.asked <= 3


def test_revoked_key_is_refused_after_the_next_fetch(provider: Provider) -> None:
    async def scenario() -> None:
        made = identity(provider)
        old = f"Bearer {provider.token('RS256')}"
        await made.caller(old)
        provider.ids["RS256"] = "rsa-2"
        await made.caller(old)
        provider.now += KEEP_SECONDS + 1
        await made.caller(old)
        await asyncio.wait(
            asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}
        )
        assert provider.asked == 2
        with pytest.raises(NotAuthenticated, match="the token is signed with an unknown key"):
            await made.caller(old)

    asyncio.run(scenario())


def test_known_keys_do_not_wait_for_a_hanging_provider(provider: Provider) -> None:
    async def scenario() -> None:
        made = identity(provider)
        known, new = f"Bearer {provider.token('RS256')}", f"Bearer {provider.token('ES256')}"
        provider.ids["ES256"] = "not there yet"
        await made.caller(known)
        provider.ids["ES256"] = "ec-1"
        provider.go_on = asyncio.Event()
        provider.now += KEEP_SECONDS + 1
        callers = await asyncio.gather(*(made.caller(known) for _ in range(9)))
        assert {each.user_id for each in callers} == {USER_ID}
        waiting = [asyncio.create_task(made.caller(new)) for _ in range(2)]
        await made.caller(known)
        assert not any(each.done() for each in waiting)
        waiting[0].cancel()  # its client has left; the other one waits on
        provider.go_on.set()
        assert (await waiting[1]).user_id == USER_ID
        assert provider.asked == 2

    asyncio.run(scenario())


def test_keys_are_fetched_before_use_after_a_long_idle_time(provider: Provider) -> None:
    async def scenario() -> None:
        made = identity(provider)
        old = f"Bearer {provider.token('RS256')}"
        await made.caller(old)
        provider.ids["RS256"] = "rsa-2"
        provider.now += IDLE_SECONDS + 1
        refusals = await asyncio.gather(
            *(made.caller(old) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in refusals] == [NotAuthenticated] * 3
        assert provider.asked == 2
        provider.ids["RS256"] = "rsa-1"
        provider.now += FETCH_PAUSE_SECONDS + 1
        await made.caller(old)
        provider.down = True
        provider.now += IDLE_SECONDS + 1
        assert (await made.caller(old)).user_id == USER_ID

    asyncio.run(scenario())


def test_running_fetch_ends_with_the_service(provider: Provider) -> None:
    async def scenario() -> None:
        keys = provider.keys()
        await keys.get("rsa-1")
        provider.go_on = asyncio.Event()
        provider.now += KEEP_SECONDS + 1
        await keys.get("rsa-1")
        await keys.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_provider_outage_is_unavailable_only_without_known_keys(provider: Provider) -> None:
    made = identity(provider)
    provider.down = True
    with pytest.raises(Unavailable):
        caller(provider.token("RS256"), made)
    with pytest.raises(Unavailable):
        caller(provider.token("RS256"), made)
    assert provider.asked == 1
    assert caller(hs256(), made).user_id == USER_ID
    provider.down = False
    provider.now += FETCH_PAUSE_SECONDS + 1
    caller(provider.token("RS256"), made)
    provider.down = True
    provider.now += KEEP_SECONDS + 1
    assert caller(provider.token("RS256"), made).user_id == USER_ID


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(500), "it answers 500"),
        (httpx.Response(404), "it answers 404"),
        (httpx.Response(301), "it answers 301"),
        (httpx.Response(301, headers={"Location": URL}), "it redirects more than 3 times"),
        (
            httpx.Response(302, headers={"Location": "http://identity.test/keys"}),
            "it redirects from https to an address without TLS",
        ),
        (httpx.Response(302, headers={"Location": "file:///etc/passwd"}), "without TLS"),
        (httpx.Response(200, text="<html>"), "its answer is not JSON"),
        (httpx.Response(200), "its answer is not JSON"),
        (httpx.Response(200, json=[1]), "its answer is not a JWKS"),
        (httpx.Response(200, json={"keys": {}}), "its answer is not a JWKS"),
        (httpx.Response(200, json={}), "its answer is not a JWKS"),
        (httpx.Response(200, content=b"\xff" * 1000), "its answer is not JSON"),
        (httpx.Response(200, content=b"[" * 200_000), "its answer is not JSON"),
        (httpx.Response(200, content=b"[" * 300_000), "its answer has more than 262144 bytes"),
    ],
)
def test_malformed_jwks_answers_are_unavailable(
    provider: Provider, answer: httpx.Response, reason: str
) -> None:
    keys = Jwks(URL, httpx.MockTransport(lambda _request: answer))
    reader = JwtReader(None, JwtSettings(), keys)
    with pytest.raises(Unavailable) as refused:
        asyncio.run(reader.read(provider.token("RS256")))
    assert reason in refused.value.message


@pytest.mark.parametrize(
    "listed", [[], [{"kty": "new"}], [1, None], [{"kty": "RSA", "kid": "rsa-1"}]], ids=repr
)
def test_jwks_without_the_key_is_not_an_outage(provider: Provider, listed: list[Any]) -> None:
    answer = httpx.Response(200, json={"keys": listed})
    keys = Jwks(URL, httpx.MockTransport(lambda _request: answer))
    reader = JwtReader(None, JwtSettings(), keys)
    with pytest.raises(NotAuthenticated, match="the token is signed with an unknown key"):
        asyncio.run(reader.read(provider.token("RS256")))


def test_a_key_that_cannot_be_used_does_not_hide_the_others(provider: Provider) -> None:
    good = provider.document()["keys"]
    no_name = {**good[0], "kid": ["rsa-1"]}
    for_encryption = {**good[1], "kid": "rsa-1", "use": "enc"}
    answer = httpx.Response(200, json={"keys": [*good, no_name, for_encryption]})
    keys = Jwks(URL, httpx.MockTransport(lambda _request: answer))
    reader = JwtReader(None, JwtSettings(), keys)
    assert asyncio.run(reader.read(provider.token("RS256")))[0] == USER_ID


def test_jwks_redirects_are_followed(provider: Provider) -> None:
    def moved(request: httpx.Request) -> httpx.Response:
        steps = {"/jwks.json": "/old", "/old": "https://keys.test/new"}
        if request.url.path in steps:
            return httpx.Response(301, headers={"Location": steps[request.url.path]})
        return httpx.Response(200, json=provider.document())

    reader = JwtReader(None, JwtSettings(), Jwks(URL, httpx.MockTransport(moved)))
    assert asyncio.run(reader.read(provider.token("RS256")))[0] == USER_ID


def attempt(made: Authenticator, token: str, peer: str | None) -> int:
    """Return the status of an authentication attempt from this address."""
    try:
        asyncio.run(made.caller(f"Bearer {token}", None, peer))
    except NotAuthenticated:
        return 401
    except HTTPException as refused:
        return refused.status_code
    return 200


def test_address_with_too_many_failures_is_rejected_with_429() -> None:
    made, here, elsewhere = identity(), "192.0.2.1", "192.0.2.2"
    assert [attempt(made, "pdt_good", here) for _ in range(9)] == [200] * 9  # does not count
    assert [attempt(made, bad, here) for bad in ("pdt_bad", "x", "x" * 9000)] == [401] * 3
    assert attempt(made, "pdt_bad", here) == 429
    with pytest.raises(HTTPException) as refused:
        asyncio.run(made.caller("Bearer pdt_bad", None, here))
    assert int((refused.value.headers or {})["Retry-After"]) > 0
    assert attempt(made, "pdt_good", here) == 429  # the token is not looked up
    assert attempt(made, "pdt_good", elsewhere) == 200


def test_requests_without_a_token_do_not_count_as_failures() -> None:
    made = identity()
    for _ in range(9):
        with pytest.raises(NotAuthenticated):
            asyncio.run(made.caller(None, None, "192.0.2.1"))
    assert attempt(made, "pdt_good", "192.0.2.1") == 200


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", None, "a socket"])
def test_loopback_addresses_are_not_rate_limited(peer: str | None) -> None:
    made = identity()
    assert {attempt(made, "pdt_bad", peer) for _ in range(9)} == {401}


@pytest.mark.parametrize(
    ("peer", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ],
)
def test_source_is_the_address_or_ipv6_network(peer: str, source: str) -> None:
    assert source_of(peer) == source


PROXIES = [ip_network(each) for each in ("127.0.0.1/32", "10.0.0.0/8", "2001:db8:ffff::/48")]


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "source"),
    [
        ("127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
        ("127.0.0.1", ["2001:db8:1:2::3"], "2001:db8:1:2::/64"),
        ("127.0.0.1", ["[2001:db8:1:2::3]"], "2001:db8:1:2::/64"),
        ("127.0.0.1", ["[2001:db8:1:2::3]:4711"], "2001:db8:1:2::/64"),
        ("127.0.0.1", ['"[2001:db8:1:2::3]:4711"'], "2001:db8:1:2::/64"),
        ("127.0.0.1", ["fe80::3%eth0"], "fe80::/64"),
        ("127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("::ffff:127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("2001:db8:ffff::1", ["203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
        ("127.0.0.1", ["198.51.100.1,203.0.113.7 , 10.1.1.1", "10.2.2.2"], "203.0.113.7"),
        ("127.0.0.1", ["203.0.113.7,, "], "203.0.113.7"),
        ("127.0.0.1", ["127.0.0.2"], "127.0.0.2"),
        ("127.0.0.1", [], None),
        ("127.0.0.1", [" "], None),
        ("127.0.0.1", ["10.1.1.1"], None),
        ("127.0.0.1", ["198.51.100.1, unknown"], "not an address, from 127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1, " + "1" * 9000], "not an address, from 127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1, [::1, 10.1.1.1"], "::/64"),
        ("127.0.0.1", ["198.51.100.1, x, 10.1.1.1"], "not an address, from 10.1.1.1"),
        ("127.0.0.2", ["203.0.113.7"], None),
        ("::1", ["203.0.113.7"], None),
        ("198.51.100.1", ["203.0.113.7"], "198.51.100.1"),
        ("", ["203.0.113.7"], None),
    ],
)
def test_forwarded_for_counts_from_trusted_proxies_only(
    peer: str, forwarded_for: list[str], source: str | None
) -> None:
    assert source_of(peer, forwarded_for, PROXIES) == source


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        ("127.0.0.1", None),
        ("127.0.0.2", "127.0.0.2"),
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("", None),
    ],
)
def test_place_of_ignores_trusted_proxies(peer: str, place: str | None) -> None:
    assert place_of(peer, PROXIES) == place
