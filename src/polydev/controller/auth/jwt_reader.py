"""Check the JWTs of an identity provider: signature, algorithm, times, audience and issuer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import jwt
from pydantic import SecretStr

from polydev.controller.auth.jwks import Jwks, KeysUnavailable
from polydev.controller.problem_details import Unavailable
from polydev.controller.settings import JwtSettings
from polydev.errors import NotAuthenticated

PUBLIC_KEY_ALGORITHMS = ("RS256", "ES256")
HOW_TO_AUTHENTICATE = (
    "send Authorization: Bearer <a JWT of the identity provider, or a token of token.create>"
)

# PyJWT's own messages may quote the token.
_REASONS: Mapping[type[jwt.PyJWTError], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience (aud)",
    jwt.InvalidIssuerError: "the token is from another issuer (iss)",
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.InvalidAlgorithmError: "the token's algorithm is not the one of its key",
}


class JwtReader:
    """Check JWTs: signature, times, audience and issuer."""

    def __init__(self, secret: SecretStr | None, rules: JwtSettings, keys: Jwks | None) -> None:
        self._secret = secret
        self._rules = rules
        self._keys = keys

    async def read(self, token: str) -> tuple[str, datetime]:
        """Return the token's subject, and until when the token is accepted.

        Raises NotAuthenticated, whose message quotes nothing of the token.
        """
        try:
            header = jwt.get_unverified_header(token)
            algorithm = str(header.get("alg"))
            claims = self._claims(token, await self._key(algorithm, header), algorithm)
        except jwt.MissingRequiredClaimError as error:
            raise NotAuthenticated(f"the token has no {error.claim}", HOW_TO_AUTHENTICATE) from None
        except jwt.PyJWTError as error:
            raise NotAuthenticated(_reason(error), HOW_TO_AUTHENTICATE) from None
        return str(claims["sub"]), _time_of(claims["exp"], self._rules.leeway_seconds)

    async def close(self) -> None:
        if self._keys is not None:
            await self._keys.close()

    def _claims(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._rules.audience,
            issuer=self._rules.issuer,
            leeway=self._rules.leeway_seconds,
            options={"require": ["exp", "sub"], "verify_aud": self._rules.audience is not None},
        )

    async def _key(self, algorithm: str, header: Mapping[str, Any]) -> Any:
        """Return the key for this algorithm, which the sender cannot choose."""
        if algorithm == "HS256" and self._secret is not None:
            return self._secret.get_secret_value()
        if algorithm not in PUBLIC_KEY_ALGORITHMS or self._keys is None:
            raise NotAuthenticated(
                "tokens signed with this algorithm are not accepted", HOW_TO_AUTHENTICATE
            )
        key_id = header.get("kid")
        try:
            key = await self._keys.get(key_id if isinstance(key_id, str) else None)
        except KeysUnavailable as error:
            raise Unavailable(
                f"cannot fetch the identity provider's keys: {error}",
                "an operator must check identity.jwks_url in the configuration",
            ) from None
        if key is None:
            raise NotAuthenticated("the token is signed with an unknown key", HOW_TO_AUTHENTICATE)
        return key


def _time_of(expiry: str | float, leeway_seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(float(expiry) + leeway_seconds, timezone.utc)
    except (OverflowError, ValueError, OSError):  # as good as never
        return datetime.max.replace(tzinfo=timezone.utc)


def _reason(error: jwt.PyJWTError) -> str:
    return next(
        (said for kind, said in _REASONS.items() if isinstance(error, kind)),
        "the token is not valid",
    )
