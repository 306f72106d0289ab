"""Who may call what: every RPC of every service with every kind of caller, against the services as processes."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import grpc
import pith
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from pith.router.v1 import generation_pb2

from common.grpc_client import connect
from tests.integration.processes import listening

pytestmark = pytest.mark.timeout(300)

# token: UNAUTHENTICATED. role: PERMISSION_DENIED. yes: let in, whatever comes of an empty request.
TABLE = """
                                                              none     unknown  client   evaluator  engine  admin
/pith.router.v1.Generation/Generate                           token    token    yes      yes        role    yes
/pith.router.v1.Generation/StreamGenerate                     token    token    yes      yes        role    yes
/pith.router.v1.Generation/Decide                             token    token    yes      yes        role    yes
/pith.router.v1.Generation/ReportOutcome                      token    token    yes      role       role    yes
/pith.router.v1.Generation/RateAnswer                         token    token    yes      role       role    yes
/pith.router.v1.Directives/CreateDirective                    token    token    role     role       role    yes
/pith.router.v1.Directives/GetDirective                       token    token    role     role       role    yes
/pith.router.v1.Directives/ListDirectives                     token    token    role     role       role    yes
/pith.router.v1.Directives/UpdateDirective                    token    token    role     role       role    yes
/pith.router.v1.Directives/DeleteDirective                    token    token    role     role       role    yes
/pith.router.v1.Directives/ListDirectiveRevisions             token    token    role     role       role    yes
/pith.router.v1.Directives/RollbackDirective                  token    token    role     role       role    yes
/pith.router.v1.Policies/CreatePolicy                         token    token    role     role       role    yes
/pith.router.v1.Policies/GetPolicy                            token    token    role     role       role    yes
/pith.router.v1.Policies/ListPolicies                         token    token    role     role       role    yes
/pith.router.v1.Policies/UpdatePolicy                         token    token    role     role       role    yes
/pith.router.v1.Policies/DeletePolicy                         token    token    role     role       role    yes
/pith.router.v1.Policies/ListPolicyRevisions                  token    token    role     role       role    yes
/pith.router.v1.Policies/RollbackPolicy                       token    token    role     role       role    yes
/pith.router.v1.Policies/Explain                              token    token    role     role       role    yes
/pith.router.v1.Policies/Simulate                             token    token    role     role       role    yes
/pith.router.v1.Policies/CheckPolicies                        token    token    role     role       role    yes
/pith.router.v1.Policies/Apply                                token    token    role     role       role    yes
/pith.router.v1.Feedback/GetEvaluationPlan                    token    token    role     yes        role    yes
/pith.router.v1.Feedback/DrawSamples                          token    token    role     yes        role    yes
/pith.router.v1.Feedback/ReportQuality                        token    token    role     yes        role    yes
/pith.router.v1.Feedback/ListScores                           token    token    role     yes        role    yes
/pith.router.v1.Reviews/DrawReviews                           token    token    role     yes        role    yes
/pith.router.v1.Reviews/RecordReview                          token    token    role     yes        role    yes
/pith.router.v1.Reviews/ListReviews                           token    token    role     yes        role    yes
/pith.router.v1.Reviews/ListJudgeTotals                       token    token    role     yes        role    yes
/pith.router.v1.Reviews/ListRatedScores                       token    token    role     yes        role    yes
/pith.router.v1.Reports/GetReport                             token    token    role     role       role    yes
/pith.router.v1.Reports/ListBounds                            token    token    role     role       role    yes
/pith.router.v1.Reports/ListQualityHistory                    token    token    role     role       role    yes
/pith.router.v1.Reports/ListEngines                           token    token    role     role       role    yes
/pith.router.v1.Reports/GetIntensity                          token    token    role     role       role    yes
/pith.router.v1.Reports/GetStatus                             token    token    role     role       role    yes
/pith.router.v1.Access/CreateToken                            token    token    role     role       role    yes
/pith.router.v1.Access/ListTokens                             token    token    role     role       role    yes
/pith.router.v1.Access/RevokeToken                            token    token    role     role       role    yes
/pith.router.v1.Access/SetTenantLimits                        token    token    role     role       role    yes
/pith.router.v1.Access/ListTenantLimits                       token    token    role     role       role    yes
/pith.router.v1.Access/EraseTenantText                        token    token    role     role       role    yes
/pith.router.v1.Tasks/SetTaskExamples                         token    token    role     role       role    yes
/pith.router.v1.Tasks/GetTaskClassifier                       token    token    role     role       role    yes
/pith.router.v1.Tasks/TellTask                                token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/Score                           token    token    yes      role       role    yes
/pith.evaluator.v1.Evaluation/RunEvaluation                   token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/ListEstimates                   token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/GetStatus                       token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/TrialDirective                  token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/SubmitRating                    token    token    yes      role       role    yes
/pith.evaluator.v1.Evaluation/ListPendingReviews              token    token    role     role       role    yes
/pith.evaluator.v1.Evaluation/GetAgreement                    token    token    role     role       role    yes
/pith.engine.v1.Inference/Generate                            token    token    role     role       yes     yes
/pith.engine.v1.Inference/StreamGenerate                      token    token    role     role       yes     yes
/pith.engine.v1.Control/GetModelInfo                          token    token    role     role       yes     yes
/pith.engine.v1.Control/GetLoad                               token    token    role     role       yes     yes
/pith.engine.v1.Control/WatchLoad                             token    token    role     role       yes     yes
/pith.engine.v1.Control/Abort                                 token    token    role     role       yes     yes
/pith.engine.v1.Control/Drain                                 token    token    role     role       role    yes
/grpc.health.v1.Health/Check                                  yes      yes      yes      yes        yes     yes
/grpc.health.v1.Health/List                                   yes      yes      yes      yes        yes     yes
/grpc.health.v1.Health/Watch                                  yes      yes      yes      yes        yes     yes
/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo yes     yes      yes      yes        yes     yes
"""
CALLERS, *_ROWS = [line.split() for line in TABLE.strip().splitlines()]
EXPECTED = {path: dict(zip(CALLERS, cells, strict=True)) for path, *cells in _ROWS}
ROLES = ("client", "evaluator", "engine", "admin")
SERVICES = ("router", "evaluator", "engine")
_ANSWERS = {grpc.StatusCode.UNAUTHENTICATED: "token", grpc.StatusCode.PERMISSION_DENIED: "role"}


def rpcs() -> dict[str, MethodDescriptor]:
    """Every RPC of every .proto there is, and of those that gRPC brings."""
    (root,) = map(Path, pith.__path__)
    modules = [
        importlib.import_module(".".join(("pith", *found.relative_to(root).with_suffix("").parts)))
        for found in root.rglob("*_pb2.py")
    ]
    return {
        f"/{service.full_name}/{method.name}": method
        for module in (*modules, health_pb2, reflection_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_the_table_has_every_rpc() -> None:
    assert set(EXPECTED) == set(rpcs())


async def answer(channel: grpc.aio.Channel, path: str, method: MethodDescriptor, caller: str) -> str:
    metadata = None if caller == "none" else (("authorization", f"Bearer {caller}"),)
    request = b""
    if caller == "evaluator" and method.containing_service.name == "Generation":
        # What an evaluator asks for must say so; the door is what is looked at here.
        purpose = generation_pb2.EvaluationPurpose(sample_id="s", directive="L1")
        message = generation_pb2.GenerateRequest(evaluation=purpose)
        decide = generation_pb2.DecideRequest(request=message)
        request = (decide if method.name == "Decide" else message).SerializeToString()
    call: Any
    try:
        if method.client_streaming:
            call = channel.stream_stream(path)(iter([request]), metadata=metadata, timeout=30)
            await call.read()
        elif method.server_streaming:
            call = channel.unary_stream(path)(request, metadata=metadata, timeout=30)
            await call.read()
        else:
            call = channel.unary_unary(path)(request, metadata=metadata, timeout=30)
            await call
    except grpc.aio.AioRpcError as error:
        return _ANSWERS.get(error.code(), "yes")
    call.cancel()
    return "yes"


async def test_every_rpc_lets_in_whom_the_table_says(tmp_path: Path, model_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(
        json.dumps(
            [
                {"sha256": hashlib.sha256(role.encode()).hexdigest(), "role": role, "name": role, "tenant": "acme"}
                for role in ROLES
            ]
        )
    )
    listen = {"listen": "127.0.0.1:0", "tokens_file": tokens}
    database = {"database_url": f"sqlite:///{tmp_path}/router.db", "outbox_path": tmp_path / "outbox.jsonl"}
    seen: dict[str, dict[str, dict[str, str]]] = {name: {} for name in SERVICES}
    async with (
        listening("router", **database, **listen) as router,
        listening("engine", model_path=model_path, kv_cache_bytes=16 << 20, **listen) as engine,
        listening("evaluator", router=router.address, token="evaluator", **listen) as evaluator,
    ):
        # An engine that drains takes no more calls, and is the last row's.
        for name, process in zip(SERVICES, (router, evaluator, engine), strict=True):
            async with connect(process.address, max_attempts=1) as channel:
                for path, method in sorted(rpcs().items(), key=lambda rpc: rpc[1].name == "Drain"):
                    if path.startswith((f"/pith.{name}.", "/grpc.")):
                        seen[name][path] = {caller: await answer(channel, path, method, caller) for caller in CALLERS}
    for name in SERVICES:
        assert seen[name] == {
            path: cells for path, cells in EXPECTED.items() if path.startswith((f"/pith.{name}.", "/grpc."))
        }
