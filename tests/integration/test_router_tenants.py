"""Tokens, roles and tenants: who may ask for what, and in whose name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from pith.router.v1 import generation_pb2, policies_pb2

from common.errors import PithError, from_rpc_error
from tests.router.fake_engine import FakeEngine
from tests.router.running import Running, ask, running

PEOPLE = {"alice": ("client", "acme"), "judge": ("evaluator", "pith"), "root": ("admin", "pith")}
TOKENS = [
    {"sha256": sha256(name.encode()).hexdigest(), "role": role, "tenant": tenant, "name": name}
    for name, (role, tenant) in PEOPLE.items()
]
PURPOSE = generation_pb2.EvaluationPurpose(sample_id="s1", directive="L1")


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_text(json.dumps(TOKENS))
    return path


@pytest.fixture
async def router(tmp_path: Path, tokens: Path, engine: FakeEngine) -> AsyncIterator[Running]:
    async with running(tmp_path, {"e1": engine}, ready=False, tokens_file=tokens) as router:
        yield router


async def generate(router: Running, token: str | None, **fields: Any) -> generation_pb2.GenerateResponse:
    metadata = None if token is None else (("authorization", f"Bearer {token}"),)
    while True:
        try:
            return await router.generation.Generate(ask(**fields), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason != "NO_ENGINE":  # not reached yet
                raise


async def refused(router: Running, token: str | None, **fields: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await generate(router, token, **fields)
    return from_rpc_error(error.value)


@pytest.mark.parametrize("token", [None, "mallory"])
async def test_without_a_known_token_nothing_is_done(router: Running, engine: FakeEngine, token: str | None) -> None:
    error = await refused(router, token)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    assert not engine.requests


async def test_a_client_speaks_for_its_own_tenant(router: Running) -> None:
    await generate(router, "alice", tenant="")
    await generate(router, "alice", tenant="acme")


async def test_a_client_speaks_for_no_other_tenant(router: Running, engine: FakeEngine) -> None:
    error = await refused(router, "alice", tenant="rival")
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    assert "own tenant" in error.message
    assert not engine.requests


@pytest.mark.parametrize("token", ["judge", "root"])
async def test_others_may_name_a_tenant(router: Running, token: str) -> None:
    await generate(router, token, tenant="acme")


async def test_a_client_may_not_ask_for_an_evaluation(router: Running, engine: FakeEngine) -> None:
    error = await refused(router, "alice", evaluation=PURPOSE)
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")
    assert not engine.requests


@pytest.mark.parametrize("token", ["judge", "root"])
async def test_an_evaluator_may(router: Running, token: str) -> None:
    reply = await generate(router, token, evaluation=PURPOSE)
    assert reply.started.decision.reason == generation_pb2.DECISION_REASON_EVALUATION


async def test_a_client_has_no_say_in_policies(router: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await router.policies.ListPolicies(
            policies_pb2.ListPoliciesRequest(), metadata=(("authorization", "Bearer alice"),)
        )
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_policies_match_the_tokens_tenant(router: Running) -> None:
    root = (("authorization", "Bearer root"),)
    policy = policies_pb2.Policy(name="acme", tenant="acme", mode=policies_pb2.MODE_OFF, floor=0.9)
    await router.policies.CreatePolicy(policies_pb2.CreatePolicyRequest(policy=policy), metadata=root)
    assert (await generate(router, "alice", tenant="")).started.decision.policy == "acme"
    assert (await generate(router, "judge", tenant="")).started.decision.policy == "default"
