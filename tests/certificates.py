"""Certificates for tests: an authority, and server certificates that it signs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Tls:
    """Files of a server, and of the authority that signed its certificate."""

    certificate: Path
    key: Path
    authority: Path

    def client(self) -> ssl.SSLContext:
        """Return a client context that trusts this authority only."""
        return ssl.create_default_context(cafile=self.authority)

    @property
    def secrets(self) -> dict[str, str]:
        return {
            "tls-certificate": self.certificate.read_text(),
            "tls-key": self.key.read_text(),
        }


def make_tls(
    folder: Path,
    name: str = "localhost",
    *others: str,
    begins: timedelta = -DAY,
    ends: timedelta = DAY,
) -> Tls:
    """A certificate for the names and 127.0.0.1, valid from and until so long after now."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Tls(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _signed("Tests' authority", "Tests' authority", authority_key, authority_key)
    names = x509.SubjectAlternativeName(
        [*map(x509.DNSName, (name, *others)), x509.IPAddress(ip_address("127.0.0.1"))]
    )
    own = _signed(name, "Tests' authority", key, authority_key, (begins, ends), names)
    made.authority.write_bytes(authority.public_bytes(Encoding.PEM))
    made.certificate.write_bytes(own.public_bytes(Encoding.PEM))
    made.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return made


def _signed(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: tuple[timedelta, timedelta] = (-DAY, DAY),
    names: x509.SubjectAlternativeName | None = None,
) -> x509.Certificate:
    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + valid[0])
        .not_valid_after(now + valid[1])
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
