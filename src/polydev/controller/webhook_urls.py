"""Where webhooks may go: which URLs an endpoint may have, and how one is shown. Pure."""

from __future__ import annotations

import hashlib
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

MOST_URL_CHARACTERS = 2048


def checked_url(url: str) -> str:
    """Return an endpoint's URL. Raises ValueError in words that do not quote it.

    Only an address in a private network, or of this host, goes without TLS: messages name users.
    """
    try:
        parts = urlsplit(url)
        host, is_readable = parts.hostname or "", parts.port != 0
    except ValueError:
        host, is_readable = "", False
    is_readable &= len(url) <= MOST_URL_CHARACTERS and re.search(r"[\s\x00-\x1f\x7f]", url) is None
    if not host or not is_readable:
        raise ValueError("has an invalid host or port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password: receivers check the signature")
    if parts.fragment:
        raise ValueError("must not contain a fragment (#…), which is never sent")
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https://")
    if parts.scheme == "http" and not _is_near(host):
        raise ValueError(
            "must begin with https://, since messages name users; http:// is for localhost and "
            "addresses of private networks, given as numbers"
        )
    return url


def _is_near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_private or address.is_loopback or address.is_link_local


def shown_url(url: str) -> str:
    """Return the URL without its query, in which receivers may have a secret of their own."""
    return urlsplit(url)._replace(query="").geturl()


def url_digest(url: str) -> str:
    """Return by what it is known whether an endpoint still has that URL."""
    return hashlib.sha256(url.encode()).hexdigest()
