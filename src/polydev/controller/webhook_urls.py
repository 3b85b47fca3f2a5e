"""Rules for URLs of webhook endpoints, and how they are shown. Pure."""

from __future__ import annotations

import hashlib
from ipaddress import ip_address
from urllib.parse import urlsplit

from polydev.validation import is_one_url

MOST_URL_CHARACTERS = 2048


def checked_url(url: str) -> str:
    """Return an endpoint's URL. Raises ValueError, which does not quote it.

    TLS is required, since messages name users, except for this host and private networks.
    """
    if len(url) > MOST_URL_CHARACTERS or not is_one_url(url):
        raise ValueError("has an invalid host or port")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not contain a user name or password: receivers check the signature")
    if parts.fragment:
        raise ValueError("must not contain a fragment (#…), which is never sent")
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https://")
    if parts.scheme == "http" and not _is_near(parts.hostname or ""):
        raise ValueError(
            "must begin with https://, since messages name users; http:// is for localhost and "
            "addresses of private networks, given as numbers"
        )
    return url


def _is_near(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_private  # so are the addresses of this host and of a link
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """Return the URL without its query, which may have a secret of the receiver."""
    return urlsplit(url)._replace(query="").geturl()


def url_digest(url: str) -> str:
    """Return a digest of the URL, to find out whether an endpoint's URL has changed."""
    return hashlib.sha256(url.encode()).hexdigest()
