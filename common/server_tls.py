"""TLS as a server: certificate and key from files, taken anew when the files change, without a restart."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from common.certificates import CertificateError, KeyPair, read_authorities, read_key_pair

_FileState = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class _Served:
    """What new connections get; `client_ca` is None where clients need no certificate."""

    pair: KeyPair
    client_ca: bytes | None


class ServerTls:
    """The certificate of a server and, for mTLS, who signs its clients' certificates.

    Each new connection, and each look at `expires_at`, looks at the files first. Files that cannot be used, such as
    a half-written pair, change nothing: what was served before stays, and the log says why. Connections that stand
    are left alone.

    Args:
        certificate, key: PEM files; the certificate first in its chain is the server's own.
        client_ca: PEM file; clients must show a certificate signed by one of these. None: they need none.
    Raises:
        CertificateError: a file cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._log = structlog.get_logger("tls")
        # Connections and scrapes come on threads of their own.
        self._lock = threading.Lock()
        self._files = self._look()
        self._served = self._taken = self._read()

    @property
    def expires_at(self) -> float:
        """Unix time at which the certificate that new connections get expires."""
        with self._lock:
            self._refresh()
            return self._served.pair.expires_at.timestamp()

    def credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._served),
            self._changed,  # type: ignore[arg-type]  # its documentation allows for None
            require_client_authentication=self._client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC asks before each handshake: None where it has the newest already."""
        with self._lock:
            self._refresh()
            if self._taken is self._served:
                return None
            self._taken = self._served
            return _configuration(self._served)

    def _refresh(self) -> None:
        # Looked at before they are read: a write in between shows as a change the next time.
        files = self._look()
        if files == self._files:
            return
        self._files = files
        try:
            served = self._read()
        except CertificateError as fault:
            self._log.error("certificate not renewed; the one before stays", fault=str(fault))
            return
        if served != self._served:
            self._served = served
            self._log.info(
                "certificate renewed", path=str(self._certificate), expires_at=served.pair.expires_at.isoformat()
            )

    def _read(self) -> _Served:
        pair = read_key_pair(self._certificate, self._key)
        return _Served(pair, None if self._client_ca is None else read_authorities(self._client_ca))

    def _look(self) -> tuple[_FileState, ...]:
        return tuple(_state(path) for path in (self._certificate, self._key, self._client_ca) if path is not None)


def _state(path: Path) -> _FileState:
    """What tells a file from the one that was there before, also behind a symbolic link; None where it is absent."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _configuration(served: _Served) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(served.pair.key, served.pair.certificate)], root_certificates=served.client_ca
    )
