"""The token that a router shows an engine, taken away and given back, with the engine as a process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import cast

import grpc
import pytest
from pith.router.v1 import reports_pb2

from common.errors import from_rpc_error
from tests.integration.processes import listening
from tests.router.fake_engine import FakeEngine
from tests.router.running import ask, running

pytestmark = pytest.mark.timeout(300)


def put(file: Path, token: str) -> None:
    digest = hashlib.sha256(token.encode()).hexdigest()
    file.write_text(json.dumps([{"sha256": digest, "role": "engine", "name": "router"}]))


async def test_an_engine_that_no_longer_knows_the_routers_token_is_unreachable_until_it_does(
    tmp_path: Path, model_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    put(tokens, "secret")
    engine = listening(
        "engine", listen="127.0.0.1:0", model_path=model_path, kv_cache_bytes=16 << 20, tokens_file=tokens
    )
    async with engine as process:
        fleet = {"e1": cast("FakeEngine", process)}
        async with running(tmp_path, fleet, engine_token="secret") as router:
            request = ask()
            request.limits.max_output_tokens = 1
            await router.generation.Generate(request)
            put(tokens, "another")
            while True:
                try:
                    await router.generation.Generate(request)
                except grpc.aio.AioRpcError as fault:
                    error = from_rpc_error(fault)
                    break
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_ENGINE")
            (shown,) = await router.engines()
            assert shown.state == reports_pb2.ENGINE_STATE_UNREACHABLE
            assert "UNAUTHENTICATED" in shown.fault and "PITH_ROUTER_ENGINE_TOKEN" in shown.fault
            put(tokens, "secret")
            await router.until_ready(1)
            await router.generation.Generate(request)
