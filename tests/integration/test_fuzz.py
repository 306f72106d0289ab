"""Every RPC of the three services under random and mutated messages: no internal error, no crash, memory bounded.

`PITH_FUZZ_CASES` sets how many cases each RPC gets, `PITH_FUZZ_SEED` which ones; a failure names the case.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from types import ModuleType

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, inference_pb2
from pith.evaluator.v1 import evaluation_pb2
from pith.router.v1 import (
    access_pb2,
    directives_pb2,
    feedback_pb2,
    generation_pb2,
    policies_pb2,
    reports_pb2,
    reviews_pb2,
    tasks_pb2,
)

from deploy.stack import Stack
from tests.integration.fuzzing import case

CASES = int(os.environ.get("PITH_FUZZ_CASES", "400"))
SEED = os.environ.get("PITH_FUZZ_SEED", "1")
AT_ONCE = 8
GROWTH_MEBIBYTES = 192
"""Of a service's memory over all cases. Some 8 kB a case stay on purpose: policies, samples, kept answers."""

MODULES: dict[str, tuple[ModuleType, ...]] = {
    "engine": (inference_pb2, control_pb2),
    "router": (
        generation_pb2,
        directives_pb2,
        policies_pb2,
        feedback_pb2,
        reviews_pb2,
        reports_pb2,
        access_pb2,
        tasks_pb2,
    ),
    "evaluator": (evaluation_pb2,),
}
METHODS: dict[str, tuple[str, MethodDescriptor]] = {
    f"{descriptor.name}.{method.name}": (service, method)
    for service, modules in MODULES.items()
    for module in modules
    for descriptor in module.DESCRIPTOR.services_by_name.values()
    for method in descriptor.methods
}
FORBIDDEN = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.DATA_LOSS,
}

_ASKED = generation_pb2.GenerateRequest(
    task="counting",
    tenant="fuzz",
    conversation_id="c",
    messages=[
        text_pb2.Message(role=text_pb2.ROLE_SYSTEM, content="Be kind."),
        text_pb2.Message(role=text_pb2.ROLE_USER, content="Count the lines with bus.\n1. car\n2. bus"),
    ],
    sampling=text_pb2.Sampling(temperature=0.5, top_p=0.9, seed=7, suppressed_words=["sure"], logit_bias={3: 0.5}),
    limits=text_pb2.Limits(max_output_tokens=2, stop=["\n\n"]),
    reference="1",
)
_STEPS = inference_pb2.GenerateRequest(
    request_id="fuzz",
    messages=text_pb2.Messages(messages=_ASKED.messages, template_variables=Struct()),
    sampling=_ASKED.sampling,
    limits=_ASKED.limits,
)
_DIRECTIVE = directives_pb2.Directive(name="terse", text="Answer in one line", max_output_tokens=9, stop=["\n\n"])
_POLICY = policies_pb2.Policy(
    name="fuzzed",
    tenant="fuzz",
    task="counting",
    mode=policies_pb2.MODE_ON,
    floor=0.9,
    directives=["L1", "L2"],
    traffic_share=0.5,
    holdback_share=0.1,
    sample_share=1,
    grader="numeric",
    latency=policies_pb2.LatencyObjective(seconds=2, share=0.9),
    carbon_budget=policies_pb2.CarbonBudget(grams_per_day=5, when_spent=policies_pb2.WHEN_SPENT_TIGHTEN),
    quality_budget=policies_pb2.QualityBudget(directive_floor=0.5, scope=policies_pb2.QualityBudget.SCOPE_DAY),
    leave_alone=policies_pb2.LeaveAlone(traits=[generation_pb2.TRAIT_CODE]),
)
_CELL = feedback_pb2.Cell(model="m@d", task="counting", directive="L1")
VALID: dict[str, Message] = {
    "Inference.Generate": _STEPS,
    "Inference.StreamGenerate": _STEPS,
    "Control.GetModelInfo": control_pb2.GetModelInfoRequest(),
    "Control.GetLoad": control_pb2.GetLoadRequest(),
    "Control.WatchLoad": control_pb2.WatchLoadRequest(),
    "Control.Abort": control_pb2.AbortRequest(request_id="fuzz"),
    "Control.Drain": control_pb2.DrainRequest(),
    "Generation.Generate": _ASKED,
    "Generation.StreamGenerate": _ASKED,
    "Generation.Decide": generation_pb2.DecideRequest(request=_ASKED),
    "Generation.ReportOutcome": generation_pb2.ReportOutcomeRequest(
        decision_id="x",
        usage=text_pb2.Usage(prompt_tokens=9, output_tokens=3),
        energy=energy_pb2.Energy(joules=1, source=energy_pb2.ENERGY_SOURCE_MODELLED),
        request=_ASKED,
    ),
    "Generation.RateAnswer": generation_pb2.RateAnswerRequest(request_id="r", tenant="fuzz", rating=1, comment="good"),
    "Directives.CreateDirective": directives_pb2.CreateDirectiveRequest(directive=_DIRECTIVE, reason="fuzz"),
    "Directives.GetDirective": directives_pb2.GetDirectiveRequest(name="L1"),
    "Directives.ListDirectives": directives_pb2.ListDirectivesRequest(page_size=2),
    "Directives.UpdateDirective": directives_pb2.UpdateDirectiveRequest(directive=_DIRECTIVE, reason="fuzz"),
    "Directives.DeleteDirective": directives_pb2.DeleteDirectiveRequest(name="terse", etag="x"),
    "Directives.ListDirectiveRevisions": directives_pb2.ListDirectiveRevisionsRequest(name="L1"),
    "Directives.RollbackDirective": directives_pb2.RollbackDirectiveRequest(name="L1", revision=1, etag="x"),
    "Policies.CreatePolicy": policies_pb2.CreatePolicyRequest(policy=_POLICY, reason="fuzz"),
    "Policies.GetPolicy": policies_pb2.GetPolicyRequest(name="default"),
    "Policies.ListPolicies": policies_pb2.ListPoliciesRequest(page_size=2),
    "Policies.UpdatePolicy": policies_pb2.UpdatePolicyRequest(policy=_POLICY, reason="fuzz"),
    "Policies.DeletePolicy": policies_pb2.DeletePolicyRequest(name="fuzzed", etag="x"),
    "Policies.ListPolicyRevisions": policies_pb2.ListPolicyRevisionsRequest(name="default"),
    "Policies.RollbackPolicy": policies_pb2.RollbackPolicyRequest(name="default", revision=1, etag="x"),
    "Policies.Explain": policies_pb2.ExplainRequest(request=_ASKED),
    "Policies.Simulate": policies_pb2.SimulateRequest(policy=_POLICY),
    "Policies.CheckPolicies": policies_pb2.CheckPoliciesRequest(policies=[_POLICY]),
    "Policies.Apply": policies_pb2.ApplyRequest(directives=[_DIRECTIVE], policies=[_POLICY], validate_only=True),
    "Feedback.GetEvaluationPlan": feedback_pb2.GetEvaluationPlanRequest(),
    "Feedback.DrawSamples": feedback_pb2.DrawSamplesRequest(
        model="m@d", task="counting", directives=["L1"], count=2, evaluator="fuzz"
    ),
    "Feedback.ReportQuality": feedback_pb2.ReportQualityRequest(
        evaluator="fuzz",
        bounds=[
            feedback_pb2.QualityBound(
                cell=_CELL,
                lower=0.9,
                upper=1,
                share=0.95,
                absolute_lower=0.8,
                samples=80,
                judge="j",
                directive_revision=1,
            )
        ],
        withdrawals=[feedback_pb2.Withdrawal(cell=_CELL, judge="grader:exact", reason=2)],
    ),
    "Feedback.ListScores": feedback_pb2.ListScoresRequest(page_size=2),
    "Reviews.DrawReviews": reviews_pb2.DrawReviewsRequest(rater="ann", task="counting", count=2),
    "Reviews.RecordReview": reviews_pb2.RecordReviewRequest(review_id="r", rater="ann", choice=1),
    "Reviews.ListReviews": reviews_pb2.ListReviewsRequest(page_size=2),
    "Reviews.ListJudgeTotals": reviews_pb2.ListJudgeTotalsRequest(),
    "Reviews.ListRatedScores": reviews_pb2.ListRatedScoresRequest(page_size=2),
    "Reports.GetReport": reports_pb2.GetReportRequest(dimensions=[reports_pb2.DIMENSION_TASK], tenant="fuzz"),
    "Reports.ListBounds": reports_pb2.ListBoundsRequest(page_size=2),
    "Reports.ListQualityHistory": reports_pb2.ListQualityHistoryRequest(page_size=2, task="counting", all_steps=True),
    "Reports.ListEngines": reports_pb2.ListEnginesRequest(),
    "Reports.GetIntensity": reports_pb2.GetIntensityRequest(history_hours=48, forecast_hours=48),
    "Reports.GetStatus": reports_pb2.GetStatusRequest(),
    "Access.CreateToken": access_pb2.CreateTokenRequest(name="fuzz", role=access_pb2.TOKEN_ROLE_CLIENT, tenant="fuzz"),
    "Access.ListTokens": access_pb2.ListTokensRequest(page_size=2),
    "Access.RevokeToken": access_pb2.RevokeTokenRequest(name="fuzz"),
    "Access.SetTenantLimits": access_pb2.SetTenantLimitsRequest(
        limits=access_pb2.TenantLimits(tenant="other", requests_per_minute=600, concurrent_requests=9)
    ),
    "Access.ListTenantLimits": access_pb2.ListTenantLimitsRequest(page_size=2),
    "Access.EraseTenantText": access_pb2.EraseTenantTextRequest(tenant="other"),
    "Tasks.SetTaskExamples": tasks_pb2.SetTaskExamplesRequest(
        examples=[
            tasks_pb2.TaskExample(task=task, text=f"{task} {number}") for task in ("a", "b") for number in range(10)
        ],
        reason="fuzz",
    ),
    "Tasks.GetTaskClassifier": tasks_pb2.GetTaskClassifierRequest(),
    "Tasks.TellTask": tasks_pb2.TellTaskRequest(text="a 7"),
    "Evaluation.Score": evaluation_pb2.ScoreRequest(grader="numeric", answer="1", reference="1"),
    "Evaluation.RunEvaluation": evaluation_pb2.RunEvaluationRequest(task="counting"),
    "Evaluation.ListEstimates": evaluation_pb2.ListEstimatesRequest(),
    "Evaluation.GetStatus": evaluation_pb2.GetStatusRequest(),
    "Evaluation.TrialDirective": evaluation_pb2.TrialDirectiveRequest(directive=_DIRECTIVE, task="counting", samples=1),
    "Evaluation.SubmitRating": evaluation_pb2.SubmitRatingRequest(review_id="r", rater="ann", choice=1),
    "Evaluation.ListPendingReviews": evaluation_pb2.ListPendingReviewsRequest(rater="ann", count=2),
    "Evaluation.GetAgreement": evaluation_pb2.GetAgreementRequest(),
}
ENDS_THE_SERVICE = "Control.Drain"
WATCHES = {"Control.WatchLoad": 1, "Evaluation.RunEvaluation": 1, "Evaluation.TrialDirective": 1}
"""How many events of a stream are read; of the others all."""


def test_every_rpc_is_fuzzed_and_often_enough() -> None:
    assert set(VALID) == set(METHODS)
    assert CASES * len(METHODS) >= 20_000


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three processes that serve; at the end they must still be there, about as big, and their logs without a fault."""
    stack = Stack(
        tmp_path_factory.mktemp("fuzzed"),
        settings={"engine": {"PITH_ENGINE_MAX_OUTPUT_TOKENS": "4"}},
    )
    asyncio.run(stack.start())
    before = {name: _mebibytes(stack, name) for name in MODULES}
    yield stack
    try:
        stack.check()
        after = {name: _mebibytes(stack, name) for name in MODULES}
    finally:
        codes = asyncio.run(stack.stop())
    assert codes == dict.fromkeys(MODULES, 0)
    assert {name: after[name] - before[name] for name in MODULES if after[name] - before[name] > GROWTH_MEBIBYTES} == {}
    assert [line for name in MODULES for line in _faults(stack.log(name))] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in METHODS if name != ENDS_THE_SERVICE])
def test_no_message_is_too_odd(stack: Stack, name: str) -> None:
    service, method = METHODS[name]
    codes = asyncio.run(_fuzzed(stack.addresses[service], name, method))
    stack.check()
    assert codes.total() == CASES


@pytest.mark.timeout(600)
def test_a_drain_can_be_asked_for_in_any_way(tmp_path: Path) -> None:
    _, method = METHODS[ENDS_THE_SERVICE]
    stack = Stack(tmp_path)
    stack.start_service("engine")

    async def drained() -> Counter[grpc.StatusCode]:
        try:
            await stack.serving("engine")
            return await _fuzzed(stack.addresses["engine"], ENDS_THE_SERVICE, method)
        finally:
            assert await stack.stop() == {"engine": 0}

    assert asyncio.run(drained()).total() == CASES
    assert _faults(stack.log("engine")) == []


async def _fuzzed(address: str, name: str, method: MethodDescriptor) -> Counter[grpc.StatusCode]:
    """The codes of all cases; a forbidden one fails with the case that it came from."""
    codes: Counter[grpc.StatusCode] = Counter()
    numbers = iter(range(CASES))
    assert method.containing_service is not None
    path = f"/{method.containing_service.full_name}/{method.name}"
    async with grpc.aio.insecure_channel(address) as channel:

        async def worker() -> None:
            for number in numbers:
                raw = case(Random(f"{SEED} {name} {number}"), VALID[name])
                code, message = await _answer(channel, path, method, raw, WATCHES.get(name, 0))
                assert code not in FORBIDDEN, f"{name}, case {number}: {code.name}: {message}\n{_shown(name, raw)}"
                codes[code] += 1

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return codes


async def _answer(
    channel: grpc.aio.Channel, path: str, method: MethodDescriptor, raw: bytes, events: int
) -> tuple[grpc.StatusCode, str]:
    try:
        if method.server_streaming:
            stream: AsyncIterator[bytes] = channel.unary_stream(path)(raw, timeout=60)
            seen = 0
            async for _ in stream:
                seen += 1
                # Some streams last as long as their reader wants, or as an evaluation takes.
                if seen == events:
                    break
        else:
            await channel.unary_unary(path)(raw, timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def _shown(name: str, raw: bytes) -> str:
    try:
        return str(type(VALID[name]).FromString(raw))[:4_000]
    except Exception:
        return raw[:2_000].hex()


def _mebibytes(stack: Stack, name: str) -> int:
    status = Path(f"/proc/{stack.process(name).pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) >> 10


def _faults(log: Path) -> list[str]:
    """What a service found wrong with itself; an unreachable peer at the start is none of that."""
    lines = log.read_text(errors="replace").splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    plain = [line for line in lines if not line.startswith("{")]
    return plain + [json.dumps(event) for event in events if event.get("level") in ("error", "critical")]
