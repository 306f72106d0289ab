"""Certificates and keys in PEM files: read together, and checked before anything is served or shown with them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key


class CertificateError(ValueError):
    """A file that cannot be used; the message is one line that names the file and never shows what is in it."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate chain and the key of its first certificate, as PEM."""

    certificate: bytes
    key: bytes
    expires_at: datetime


def read_certificate(path: Path) -> tuple[bytes, x509.Certificate]:
    """A chain as PEM, and its first certificate, which is valid now.

    Raises:
        CertificateError: the file cannot be read, is no PEM certificate, or is one of another time.
    """
    pem, chain = _read_chain(path)
    first, now = chain[0], datetime.now(UTC)
    if now > first.not_valid_after_utc:
        raise CertificateError(f"{path}: the certificate expired at {first.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")
    if now < first.not_valid_before_utc:
        raise CertificateError(
            f"{path}: the certificate is not valid before {first.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
        )
    return pem, first


def read_authorities(path: Path) -> bytes:
    """Certificates of those whose signatures are trusted, as PEM.

    Raises:
        CertificateError: the file cannot be read, or has no PEM certificate.
    """
    return _read_chain(path)[0]


def read_key_pair(certificate: Path, key: Path) -> KeyPair:
    """A certificate and its key, which fit each other.

    Raises:
        CertificateError: one of the files cannot be used, or the key is another certificate's.
    """
    chain, first = read_certificate(certificate)
    pem = _read(key)
    try:
        private = load_pem_private_key(pem, password=None)
    except TypeError:
        raise CertificateError(f"{key}: the key is encrypted; it must be without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError(f"{key}: not a private key in PEM") from None
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise CertificateError(f"{key}: the key does not fit the certificate {certificate}")
    return KeyPair(chain, pem, first.not_valid_after_utc)


def _read_chain(path: Path) -> tuple[bytes, list[x509.Certificate]]:
    pem = _read(path)
    try:
        return pem, x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateError(f"{path}: no certificate in PEM") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read ({error.strerror})") from None
