"""The certificate of the controller's own HTTPS: checks, and the server's TLS context.

`tls-certificate` holds the certificate and those between it and its authority, `tls-key` its
private key, both as PEM. They are read once, at the start of a process: a deployment with other
files hands over to a process that has these.
"""

from __future__ import annotations

import os
import ssl
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

IS_PROTECTED = (
    "is protected by a passphrase, which cannot be entered at the start of the service "
    "(`openssl pkey -in FILE -out OTHER` writes one without)"
)


def certificates_of(text: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, the server's first. Raises ValueError if none."""
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        words = "has no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        raise ValueError(words) from None


def require_key(text: str) -> None:
    """Raise ValueError unless it is a private key in PEM form, without a passphrase."""
    _public_bytes_of_key(text)


def require_fit(certificate: str, key: str) -> None:
    """Raise ValueError unless the key is that of the first certificate."""
    own = certificates_of(certificate)[0].public_key()
    wanted = own.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if _public_bytes_of_key(key) != wanted:
        raise ValueError(
            "does not match tls-key (the server's own certificate must come first, "
            "those of its authority follow)"
        )


def _public_bytes_of_key(text: str) -> bytes:
    try:
        key = load_pem_private_key(text.encode(), None)
    except TypeError:
        raise ValueError(IS_PROTECTED) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a private key in PEM form (-----BEGIN PRIVATE KEY-----)") from None
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def expiry_of(certificate: str) -> datetime:
    """Return the earliest expiry of the chain's certificates."""
    return min(each.not_valid_after_utc for each in certificates_of(certificate))


def trouble_now(certificate: str, at: datetime) -> str | None:
    """Return why browsers refuse the certificate at that time; None if they accept it."""
    for each in certificates_of(certificate):
        begins, ends = each.not_valid_before_utc, each.not_valid_after_utc
        if at < begins:
            return f"the certificate of {_name(each)} is valid from {begins:%Y-%m-%d %H:%M} UTC on"
        if at >= ends:
            return f"the certificate of {_name(each)} expired on {ends:%Y-%m-%d %H:%M} UTC"
    return None


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return the server's TLS context: TLS 1.2 or 1.3, with HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # Python's ssl only reads files; this one is in memory.
    file = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(file, f"{key}\n{certificate}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:100] or "the server"
