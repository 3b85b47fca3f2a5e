"""Which URLs a login page may have. Pure."""

from __future__ import annotations

MAX_URL_CHARACTERS = 4096

_NOT_IN_URLS = frozenset('"<>\\^`{|}')
_HOST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")


def is_login_url(text: str) -> bool:
    """Whether this is an http or https URL with a host, as a login page may have."""
    scheme, _, rest = text.partition("://")
    if scheme not in ("http", "https") or len(text) > MAX_URL_CHARACTERS:
        return False
    if any(not "!" <= letter <= "~" or letter in _NOT_IN_URLS for letter in text):
        return False
    authority = rest.partition("/")[0].partition("?")[0].partition("#")[0]
    host, colon, port = authority.partition(":")
    return bool(host) and _HOST.issuperset(host) and (not colon or port.isdecimal())
