"""TLS and mTLS of the server, renewal without a restart, and what the channel trusts and shows."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client import generate_latest

from common import logging
from common.auth import Authenticator
from common.certificates import CertificateError
from common.client_tls import ClientTls, from_settings
from common.config import ServiceConfig, load
from common.grpc_client import connect
from common.grpc_server import GrpcServer
from common.metrics import Metrics
from tests.certificates import Authority, Files
from tests.common.echo_server import ECHO, ROLES, SAY, Echo, Note


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class TlsServer:
    def __init__(self, server: GrpcServer, port: int, metrics: Metrics, log: StringIO) -> None:
        self.server = server
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._metrics = metrics
        self._log = log

    @asynccontextmanager
    async def client(self, tls: ClientTls | None, address: str = "") -> AsyncIterator[Callable[[], Awaitable[str]]]:
        async with connect(address or self.address, tls=tls, max_attempts=1) as channel:
            say = channel.unary_unary(
                SAY, request_serializer=Note.SerializeToString, response_deserializer=Note.FromString
            )

            async def ask() -> str:
                return str((await say(Note(text="hello"), timeout=20)).text)

            yield ask

    async def ask(self, tls: ClientTls | None, address: str = "") -> str:
        """Over a connection of its own."""
        async with self.client(tls, address) as ask:
            return await ask()

    async def refusal(self, tls: ClientTls | None, address: str = "") -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await self.ask(tls, address)
        return failed.value.code()

    async def serial(self, authority: Authority) -> int:
        """Of the certificate that a new connection is shown."""
        trust = ssl.create_default_context(cafile=authority.certificate)
        trust.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=trust)
        try:
            return x509.load_der_x509_certificate(
                writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            ).serial_number
        finally:
            writer.transport.abort()

    def expiry_metric(self) -> float:
        text = generate_latest(self._metrics.registry).decode()
        name = "pith_test_tls_certificate_expiry_timestamp_seconds "
        return next(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))

    def events(self, event: str) -> list[dict[str, Any]]:
        return [e for e in map(json.loads, self._log.getvalue().splitlines()) if e["event"].startswith(event)]


Serve = Callable[..., Awaitable[TlsServer]]


@pytest.fixture
async def serve_tls() -> AsyncIterator[Serve]:
    opened: list[TlsServer] = []

    async def serve(files: Files, client_ca: Path | None = None, listen: str = "127.0.0.1:0") -> TlsServer:
        log = StringIO()
        logging.configure("test", "info", stream=log)
        metrics = Metrics("test")
        config = ServiceConfig(
            listen=listen, tls_certificate=files.certificate, tls_key=files.key, tls_client_ca=client_ca
        )
        server = GrpcServer(config, Authenticator(None), metrics)
        server.add(Echo(), ECHO, roles=ROLES)
        opened.append(TlsServer(server, await server.start(), metrics, log))
        await server.set_serving(True)
        return opened[-1]

    yield serve
    for served in opened:
        await served.server.drain(grace_seconds=0)
    structlog.reset_defaults()


async def test_a_client_that_trusts_the_authority_is_answered(serve_tls: Serve, authority: Authority) -> None:
    served = await serve_tls(authority.sign("server"))
    assert await served.ask(ClientTls(authority.certificate)) == "hello"


async def test_a_plaintext_client_and_one_that_trusts_another_authority_fail(
    serve_tls: Serve, authority: Authority
) -> None:
    served = await serve_tls(authority.sign("server"))
    assert await served.refusal(None) is grpc.StatusCode.UNAVAILABLE
    other = Authority(authority.folder, "other")
    assert await served.refusal(ClientTls(other.certificate)) is grpc.StatusCode.UNAVAILABLE
    assert await served.ask(ClientTls(authority.certificate)) == "hello"


async def test_the_certificate_must_be_for_the_host_unless_the_client_names_another(
    serve_tls: Serve, authority: Authority
) -> None:
    served = await serve_tls(authority.sign("server", ["router.example.org"]))
    assert await served.refusal(ClientTls(authority.certificate)) is grpc.StatusCode.UNAVAILABLE
    assert await served.ask(ClientTls(authority.certificate, server_name="router.example.org")) == "hello"


async def test_with_a_client_ca_only_its_clients_are_let_in(serve_tls: Serve, authority: Authority) -> None:
    served = await serve_tls(authority.sign("server"), authority.certificate)
    client = authority.sign("client")
    assert await served.ask(ClientTls(authority.certificate, client.certificate, client.key)) == "hello"
    assert await served.refusal(ClientTls(authority.certificate)) is grpc.StatusCode.UNAVAILABLE
    stranger = Authority(authority.folder, "other").sign("stranger")
    strange = ClientTls(authority.certificate, stranger.certificate, stranger.key)
    assert await served.refusal(strange) is grpc.StatusCode.UNAVAILABLE


async def test_replaced_files_are_served_to_new_connections_and_old_ones_live_on(
    serve_tls: Serve, authority: Authority
) -> None:
    first = authority.sign("server")
    served = await serve_tls(first)
    assert await served.serial(authority) == first.serial
    assert served.expiry_metric() == first.expires_at.timestamp()
    tls = ClientTls(authority.certificate)
    async with served.client(tls) as old:
        assert await old() == "hello"
        second = authority.sign("server", ends=timedelta(days=9))
        assert await served.serial(authority) == second.serial
        assert await old() == "hello"
    (event,) = served.events("certificate renewed")
    assert datetime.fromisoformat(event["expires_at"]) == second.expires_at
    assert served.expiry_metric() == second.expires_at.timestamp()


async def test_a_scrape_alone_notices_a_renewal(serve_tls: Serve, authority: Authority) -> None:
    served = await serve_tls(authority.sign("server"))
    second = authority.sign("server", ends=timedelta(days=9))
    assert served.expiry_metric() == second.expires_at.timestamp()
    assert await served.serial(authority) == second.serial


async def test_a_swapped_symbolic_link_is_a_renewal(serve_tls: Serve, authority: Authority) -> None:
    """As Kubernetes updates a mounted secret: a link to another folder, with files of the same names."""
    for name in ("1", "2"):
        (authority.folder / name).mkdir()
    mounted = authority.folder / "mounted"
    mounted.symlink_to("1")
    written = {}
    for name in ("1", "2"):
        signed = authority.sign("server")
        written[name] = signed.serial
        for file in (signed.certificate, signed.key):
            file.rename(authority.folder / name / file.name)
    served = await serve_tls(Files(mounted / "server.pem", mounted / "server.key", 0, datetime.now(UTC)))
    assert await served.serial(authority) == written["1"]
    (authority.folder / "next").symlink_to("2")
    (authority.folder / "next").replace(mounted)
    assert await served.serial(authority) == written["2"]


async def test_a_broken_replacement_keeps_what_was_and_is_said_once(serve_tls: Serve, authority: Authority) -> None:
    first = authority.sign("server")
    served = await serve_tls(first)
    old_key = first.key.read_bytes()
    second = authority.sign("server")
    new_key = second.key.read_bytes()

    def faults() -> list[str]:
        return [event["fault"] for event in served.events("certificate not renewed")]

    second.key.write_bytes(old_key)  # the certificate is there, its key is not yet
    assert [await served.serial(authority) for _ in range(2)] == [first.serial] * 2
    assert faults() == [f"{second.key}: the key does not fit the certificate {second.certificate}"]
    second.key.write_bytes(new_key[:40])
    assert await served.serial(authority) == first.serial
    second.key.unlink()
    assert await served.serial(authority) == first.serial
    assert faults()[1:] == [
        f"{second.key}: not a private key in PEM",
        f"{second.key}: cannot be read (No such file or directory)",
    ]
    second.key.write_bytes(new_key)
    assert await served.serial(authority) == second.serial
    authority.sign("server", ends=timedelta(days=-1))
    assert await served.serial(authority) == second.serial
    assert "expired" in faults()[-1]


async def test_the_clients_authority_is_renewed_too(serve_tls: Serve, authority: Authority) -> None:
    trusted = authority.folder / "clients.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    served = await serve_tls(authority.sign("server"), trusted)
    other = Authority(authority.folder, "other")
    client = other.sign("client")
    tls = ClientTls(authority.certificate, client.certificate, client.key)
    assert await served.refusal(tls) is grpc.StatusCode.UNAVAILABLE
    trusted.write_bytes(authority.certificate.read_bytes() + other.certificate.read_bytes())
    assert await served.ask(tls) == "hello"


async def test_what_breaks_between_the_check_and_the_start_is_said(authority: Authority) -> None:
    files = authority.sign("server")
    config = ServiceConfig(tls_certificate=files.certificate, tls_key=files.key)
    files.key.write_text("")
    with pytest.raises(CertificateError, match="not a private key"):
        await GrpcServer(config, Authenticator(None), Metrics("test")).start()


def _encrypted(files: Files) -> Path:
    key = load_pem_private_key(files.key.read_bytes(), password=None)
    path = files.key.with_suffix(".encrypted")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return path


@pytest.fixture
def settings(authority: Authority) -> dict[str, dict[str, Any]]:
    """Faulty sets of settings, by what is wrong with them."""
    server, other = authority.sign("server"), authority.sign("other")
    late = authority.sign("late", ends=timedelta(days=-1))
    early = authority.sign("early", begins=timedelta(hours=1))
    junk = authority.folder / "junk.pem"
    junk.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    absent = authority.folder / "absent.pem"
    certificate, key = server.certificate, server.key
    return {
        "absent": {"tls_certificate": absent, "tls_key": key},
        "junk": {"tls_certificate": junk, "tls_key": key},
        "late": {"tls_certificate": late.certificate, "tls_key": late.key},
        "early": {"tls_certificate": early.certificate, "tls_key": early.key},
        "other key": {"tls_certificate": certificate, "tls_key": other.key},
        "encrypted": {"tls_certificate": certificate, "tls_key": _encrypted(server)},
        "no key": {"tls_certificate": certificate},
        "no certificate": {"tls_key": key},
        "ca alone": {"tls_client_ca": authority.certificate},
        "junk ca": {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": key},
        "both": {"tls_certificate": certificate, "tls_key": key, "insecure": True},
    }


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ("absent", ["tls_certificate = ", "absent.pem: cannot be read (No such file or directory)"]),
        ("junk", ["tls_certificate = ", "junk.pem: no certificate in PEM"]),
        ("late", ["tls_certificate = ", "late.pem: the certificate expired at 20"]),
        ("early", ["tls_certificate = ", "early.pem: the certificate is not valid before 20"]),
        ("other key", ["tls_key = ", "other.key: the key does not fit the certificate ", "server.pem"]),
        ("encrypted", ["tls_key = ", "server.encrypted: the key is encrypted"]),
        ("no key", ["tls_key: is needed with tls_certificate"]),
        ("no certificate", ["tls_certificate: is needed with tls_key"]),
        ("ca alone", ["tls_certificate: is needed with tls_client_ca"]),
        ("junk ca", ["tls_client_ca = ", "server.key: no certificate in PEM"]),
        ("both", ["insecure: ", "unset one"]),
    ],
)
def test_a_faulty_setting_is_one_line_that_names_it(
    settings: dict[str, dict[str, Any]],
    wrong: str,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in settings[wrong].items():
        monkeypatch.setenv(f"PITH_{name.upper()}", str(value))
    with pytest.raises(SystemExit) as exited:
        load(ServiceConfig)
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ServiceConfig: {expected[0]}")
    assert all(part in line for part in expected)


def test_a_client_setting_is_named_too(settings: dict[str, dict[str, Any]], authority: Authority) -> None:
    client = authority.sign("client")
    ca, certificate, key = authority.certificate, client.certificate, client.key
    assert from_settings("to_", None, None, None) is None
    assert from_settings("to_", ca, None, None) == ClientTls(ca)
    assert from_settings("to_", ca, certificate, key) == ClientTls(ca, certificate, key)
    late = settings["late"]
    for given, fault in [
        ((None, certificate, key), "to_ca: is needed"),
        ((ca, certificate, None), "to_certificate and to_key: must be set together"),
        ((ca, None, key), "to_certificate and to_key: must be set together"),
        ((key, None, None), "to_ca: .*no certificate in PEM"),
        ((ca, late["tls_certificate"], late["tls_key"]), "to_certificate: .*expired"),
        ((ca, certificate, late["tls_key"]), "to_key: .*does not fit"),
    ]:
        with pytest.raises(ValueError, match=f"^{fault}"):
            from_settings("to_", *given)


async def test_a_channel_made_after_a_renewal_shows_the_new_certificate(serve_tls: Serve, authority: Authority) -> None:
    other = Authority(authority.folder, "other")
    served = await serve_tls(authority.sign("server"), authority.certificate)
    client = other.sign("client")
    tls = ClientTls(authority.certificate, client.certificate, client.key)
    assert await served.refusal(tls) is grpc.StatusCode.UNAVAILABLE
    authority.sign("client")
    assert await served.ask(tls) == "hello"


async def test_over_a_unix_socket_too(serve_tls: Serve, authority: Authority, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    served = await serve_tls(authority.sign("server", ["router.example.org"]), listen=address)
    assert await served.ask(ClientTls(authority.certificate, server_name="router.example.org"), address) == "hello"
