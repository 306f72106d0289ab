"""pithctl at a router that speaks TLS, and asks for a certificate."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.certificates import Authority
from tests.router.cli.conftest import Pithctl
from tests.router.running import running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_router_by_tls_with_and_without_a_certificate(
    tmp_path: Path, authority: Authority, command_line: Pithctl
) -> None:
    server, ours = authority.sign("server"), authority.sign("admin")
    stranger = Authority(tmp_path, "stranger")
    settings = {
        "tls_certificate": server.certificate,
        "tls_key": server.key,
        "tls_client_ca": authority.certificate,
    }
    ca, pair = ("--ca", str(authority.certificate)), ("--certificate", str(ours.certificate), "--key", str(ours.key))
    with capture_logs():
        async with running(tmp_path, {}, ready=False, **settings) as router:

            async def run(*arguments: str, code: int, **variables: str) -> str:
                line = ("policy", "list", "--router", router.address, *arguments)
                result = await asyncio.to_thread(command_line, *line, **variables)
                assert result.code == code, result
                return result.err

            await run(*ca, *pair, code=0)
            assert "PITHCTL_CA" in await run(code=5)
            assert "--ca must name who signed" in await run("--ca", str(stranger.certificate), *pair, code=5)
            await run(*ca, code=5)
            named = {
                "PITHCTL_CA": str(authority.certificate),
                "PITHCTL_CERTIFICATE": str(ours.certificate),
                "PITHCTL_KEY": str(ours.key),
            }
            await run(code=0, **named)


def test_files_that_cannot_be_used_are_wrong_usage(tmp_path: Path, authority: Authority, command_line: Pithctl) -> None:
    ours = authority.sign("admin")
    line = ("policy", "list", "--router", "127.0.0.1:1")
    for more, says in (
        (("--ca", str(tmp_path / "none.pem")), "none.pem"),
        (("--certificate", str(ours.certificate)), "--ca"),
        (("--ca", str(authority.certificate), "--key", str(ours.key)), "together"),
        (("--ca", str(ours.key)), "--ca"),
    ):
        result = command_line(*line, *more)
        assert result.code == 2, result
        assert says in result.err
        assert "PRIVATE KEY" not in result.err
