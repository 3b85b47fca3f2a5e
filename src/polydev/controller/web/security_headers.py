"""The security headers of pages: the content security policy, and who may frame a page."""

from __future__ import annotations

from collections.abc import Sequence

# Headers of pages that other sites may not use.
OPENED_ALONE = {"Cross-Origin-Opener-Policy": "same-origin"}
ALONE = {
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def security_headers(host: str, is_secure: bool, framed_by: Sequence[str] = ()) -> dict[str, str]:
    """Return the headers of a page; `framed_by` are the origins that may show it in a frame."""
    headers = {
        "Content-Security-Policy": content_security_policy(host, is_secure, framed_by),
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    }
    if framed_by:
        return headers
    # Browsers ignore this header without TLS, and log a warning.
    return headers | ALONE | (OPENED_ALONE if is_secure else {})


def content_security_policy(host: str, is_secure: bool, framed_by: Sequence[str] = ()) -> str:
    """Allow no inline scripts or styles, and nothing from other sites. `framed_by`: origins."""
    # In some browsers 'self' does not include WebSockets.
    own_socket = f" {'wss' if is_secure else 'ws'}://{host}" if _is_plain(host) else ""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "font-src": "'self'",
        "connect-src": f"'self'{own_socket}",
        "manifest-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": " ".join(framed_by) or "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _is_plain(host: str) -> bool:
    """Whether a host is safe in a header: a name or address, with or without a port."""
    return bool(host) and all(each.isalnum() or each in ".-:[]_" for each in host)
