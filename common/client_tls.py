"""TLS as a client: whom it trusts, and what it shows of itself where a server asks for a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files. They are read each time a channel is made, so a channel made after a renewal shows the new ones.

    Args:
        ca: certificates of those who sign servers' certificates.
        certificate, key: shown to servers that ask for one; both or neither.
        server_name: that the server's certificate must have, where it is reached under another (a forwarded port).
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For `grpc.secure_channel` and `grpc.aio.secure_channel`.

        Raises:
            CertificateError: a file cannot be used; the message names it and its fault.
        """
        # Here, because it takes a tenth of a second that a command without TLS need not wait.
        from common.certificates import CertificateError, read_authorities, read_key_pair

        authorities = read_authorities(self.ca)
        if self.certificate is None or self.key is None:
            if self.certificate or self.key:
                raise CertificateError("a client's certificate and its key must be given together")
            return grpc.ssl_channel_credentials(authorities)
        pair = read_key_pair(self.certificate, self.key)
        return grpc.ssl_channel_credentials(authorities, pair.key, pair.certificate)

    @property
    def options(self) -> Sequence[tuple[str, str]]:
        """Channel options that go with the credentials."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)


def from_settings(prefix: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ClientTls | None:
    """What three settings of a service say, whose files are read; None without any: in the clear.

    Raises:
        ValueError: names the setting at fault: `prefix` and ca, certificate or key.
    """
    from common.certificates import CertificateError, read_authorities, read_certificate, read_key_pair

    if ca is None:
        if certificate or key:
            raise ValueError(f"{prefix}ca: is needed with {prefix}certificate and {prefix}key")
        return None
    name = "ca"
    try:
        read_authorities(ca)
        if certificate is None or key is None:
            if certificate or key:
                raise ValueError(f"{prefix}certificate and {prefix}key: must be set together")
            return ClientTls(ca)
        name = "certificate"
        read_certificate(certificate)
        name = "key"
        read_key_pair(certificate, key)
    except CertificateError as fault:
        raise ValueError(f"{prefix}{name}: {fault}") from None
    return ClientTls(ca, certificate, key)
