"""Find the caller of a request by a JWT, a token, a page's key or a browser's cookie.

A JWT only names the user; the role always comes from the database.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from polydev.controller.auth.client_address import Networks, source_of
from polydev.controller.auth.jwt_reader import HOW_TO_AUTHENTICATE, JwtReader
from polydev.controller.auth.rate_limits import RateLimiter
from polydev.controller.entities import Caller
from polydev.controller.store.sign_ins import KEY_PREFIX, SignIns
from polydev.controller.store.users import TOKEN_PREFIX, Tokens, Users
from polydev.errors import NotAllowed, NotAuthenticated

MOST_TOKEN_CHARACTERS = 8192

# For the documentation only: the middleware finds the caller before any route runs.
BEARER = Security(HTTPBearer(auto_error=False, description="A JWT or an operator's token"))


class Authenticator:
    """Find callers. `failures` limits failed attempts of each address."""

    def __init__(
        self,
        users: Users,
        tokens: Tokens,
        sign_ins: SignIns,
        jwts: JwtReader,
        failures: RateLimiter,
        trusted_proxies: Networks = (),
    ) -> None:
        self._users = users
        self._tokens = tokens
        self._sign_ins = sign_ins
        self._jwts = jwts
        self._failures = failures
        self._trusted_proxies = trusted_proxies

    async def caller(
        self,
        authorization: str | None,
        access_token: str | None = None,
        peer: str | None = None,
        forwarded_for: Iterable[str] = (),
    ) -> Caller:
        """Return the caller of the bearer token in `Authorization`, or else of `access_token`.

        `forwarded_for` are the values of X-Forwarded-For, which only count from trusted proxies.

        Raises NotAuthenticated, NotAllowed for a valid JWT of an unknown user, Unavailable, and
        HTTPException 429 after too many failures from the same address.
        """
        token = presented(authorization, access_token)
        return await self.counted(self._holder(token), peer, forwarded_for)

    async def counted(
        self,
        looked_up: Coroutine[Any, Any, Caller],
        peer: str | None,
        forwarded_for: Iterable[str] = (),
    ) -> Caller:
        """Return the result of `looked_up`, and count its failure for the request's address.

        Raises what `looked_up` does, and HTTPException 429 after too many failures.
        """
        source = source_of(peer, forwarded_for, self._trusted_proxies)
        try:
            if source is not None:
                self._failures.look(source)
            return await looked_up
        except NotAuthenticated:
            if source is not None:
                self._failures.take(source)
            raise
        finally:
            looked_up.close()

    async def of_cookie(self, cookie: str) -> Caller:
        """Return the caller whose browser sends this cookie. Raises NotAuthenticated."""
        caller = None
        if len(cookie) <= MOST_TOKEN_CHARACTERS:
            caller = await self._sign_ins.caller_of(cookie)
        if caller is None or caller.by != "cookie":
            raise NotAuthenticated("this browser is no longer signed in", "sign in again")
        return caller

    async def close(self) -> None:
        await self._jwts.close()

    async def _holder(self, token: str) -> Caller:
        if len(token) > MOST_TOKEN_CHARACTERS:
            raise NotAuthenticated("the token is not valid: it is too long", HOW_TO_AUTHENTICATE)
        if token.startswith(TOKEN_PREFIX):
            return await self._of_token(token)
        if token.startswith(KEY_PREFIX):
            return await self._of_key(token)
        subject, until = await self._jwts.read(token)
        user_id = _user_id(subject)
        user = await self._users.find(user_id) if user_id else None
        if user is None:
            raise NotAllowed(
                "the token is valid, but its subject is not a user of this host",
                "an administrator adds users with ./inv user.add",
            )
        return Caller(user.id, user.role, "jwt", until)

    async def _of_token(self, token: str) -> Caller:
        caller = await self._tokens.caller_of(token)
        if caller is None:
            raise NotAuthenticated(
                "the token is not valid: it is unknown, revoked or expired", HOW_TO_AUTHENTICATE
            )
        return caller

    async def _of_key(self, key: str) -> Caller:
        caller = await self._sign_ins.caller_of(key)
        if caller is None:
            raise NotAuthenticated(
                "this page no longer has access to the session", "open the link again"
            )
        return caller


def is_bearer(authorization: str | None) -> bool:
    """Whether the header carries a token of any kind."""
    scheme, _, token = (authorization or "").partition(" ")
    return scheme.lower() == "bearer" and bool(token.strip())


def presented(authorization: str | None, access_token: str | None) -> str:
    """Return the token of a request. Raises NotAuthenticated if it has none.

    An Authorization header of another scheme is ignored: it may be that of a proxy with a password.
    """
    if is_bearer(authorization):
        return str(authorization).partition(" ")[2].strip()
    if access_token:
        return access_token
    if authorization is not None:
        raise NotAuthenticated("the Authorization header has no bearer token", HOW_TO_AUTHENTICATE)
    raise NotAuthenticated("authentication required: the request has no token", HOW_TO_AUTHENTICATE)


def _user_id(subject: str) -> str | None:
    """Return a subject that is a UUID as it is stored, in lower case; else None."""
    try:
        user_id = str(UUID(subject))
    except ValueError:
        return None
    return user_id if user_id == subject.lower() else None  # Python accepts other forms too


def caller_of(request: Request) -> Caller:
    """Return the caller that the middleware found."""
    caller: Caller = request.state.caller
    return caller


def operator_of(request: Request) -> Caller:
    """Return the caller. Raises NotAllowed unless it is an operator or an admin."""
    caller = caller_of(request)
    if not caller.sees_all:
        raise NotAllowed("access denied: only operators may do this")
    return caller


def admin_of(request: Request) -> Caller:
    """Return the caller. Raises NotAllowed unless it is an admin."""
    caller = caller_of(request)
    if caller.role != "admin":
        raise NotAllowed("access denied: only admins may do this")
    return caller


Asking = Annotated[Caller, Depends(caller_of)]
AskingOperator = Annotated[Caller, Depends(operator_of)]
AskingAdmin = Annotated[Caller, Depends(admin_of)]
