"""A directive from its creation to the engine that answers: everything that it can say is honoured by Generate."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from pith.common.v1 import text_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, generation_pb2, reports_pb2

from common.errors import PithError, from_rpc_error
from tests.router.fake_engine import PROMPT_TOKEN_IDS, FakeEngine, refuse, tell
from tests.router.running import Running, ask, running

pb: Any = directives_pb2

SYSTEM, USER, ASSISTANT = text_pb2.ROLE_SYSTEM, text_pb2.ROLE_USER, text_pb2.ROLE_ASSISTANT
TALK = [
    text_pb2.Message(role=SYSTEM, content="Be kind."),
    text_pb2.Message(role=USER, content="Hi"),
    text_pb2.Message(role=ASSISTANT, content="Hello"),
    text_pb2.Message(role=USER, content="How many?"),
    text_pb2.Message(role=ASSISTANT, content="Seven"),
    text_pb2.Message(role=USER, content="Why?"),
]


def variables(**values: Any) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


THINK_LESS = {"placement": pb.PLACEMENT_NATIVE, "template_variables": variables(enable_thinking=False, budget=64)}


async def in_force(router: Running, **fields: Any) -> None:
    """Has a directive with these fields served to tenant acme's questions."""
    stub: Any = directives_pb2_grpc.DirectivesStub(router.channel)
    await stub.CreateDirective(pb.CreateDirectiveRequest(directive=pb.Directive(name="D", **fields)))
    await router.policy(directives=["D"])
    await router.open("D")


def contents(engine: FakeEngine) -> list[str]:
    (asked,) = engine.requests
    return [message.content for message in asked.messages.messages]


async def answered(router: Running, **fields: Any) -> generation_pb2.GenerateResponse:
    reply: generation_pb2.GenerateResponse = await router.generation.Generate(ask(**{"messages": TALK, **fields}))
    assert reply.started.decision.directive == "D"
    return reply


async def test_the_tighter_cap_holds(router: Running, engine: FakeEngine) -> None:
    await in_force(router, max_output_tokens=20)
    for own, expected in ((0, 20), (9, 9), (50, 20)):
        engine.requests.clear()
        await answered(router, limits=text_pb2.Limits(max_output_tokens=own))
        assert engine.requests[0].limits.max_output_tokens == expected
        assert contents(engine) == [message.content for message in TALK]


async def test_stops_and_suppressed_words_are_added_to_the_requests_own(router: Running, engine: FakeEngine) -> None:
    await in_force(router, stop=["\n\n", "END"], suppressed_words=["perhaps", "um"])
    await answered(
        router,
        limits=text_pb2.Limits(stop=["END", "."]),
        sampling=text_pb2.Sampling(suppressed_words=["um", "so"], temperature=0.5),
    )
    (asked,) = engine.requests
    assert list(asked.limits.stop) == ["END", ".", "\n\n"]
    assert list(asked.sampling.suppressed_words) == ["um", "so", "perhaps"]
    assert asked.sampling.temperature == 0.5


async def test_of_stops_beyond_what_an_engine_takes_the_requests_own_stay(router: Running, engine: FakeEngine) -> None:
    await in_force(router, stop=["#1", "#2", "#3"])
    own = [f"own {number}" for number in range(15)]
    await answered(router, limits=text_pb2.Limits(stop=own))
    assert list(engine.requests[0].limits.stop) == [*own, "#1"]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (1, ["Be kind.", "Why?"]),
        # Two would begin with an answer, which many chat templates refuse.
        (2, ["Be kind.", "Why?"]),
        (3, ["Be kind.", "How many?", "Seven", "Why?"]),
        (5, [message.content for message in TALK]),
        (99, [message.content for message in TALK]),
    ],
)
async def test_the_newest_messages_are_kept_and_what_is_asked_is_among_them(
    router: Running, engine: FakeEngine, kept: int, expected: list[str]
) -> None:
    await in_force(router, history_messages=kept)
    await answered(router)
    assert contents(engine) == expected


async def test_text_goes_to_the_tail_or_to_the_system_message(router: Running, engine: FakeEngine) -> None:
    await in_force(router, text="Be brief", placement=pb.PLACEMENT_SYSTEM, history_messages=1)
    await answered(router)
    assert contents(engine) == ["Be kind.\nBe brief", "Why?"]


async def test_a_native_directive_sets_variables_and_touches_no_message(router: Running, engine: FakeEngine) -> None:
    await in_force(router, **THINK_LESS)
    await answered(router)
    (asked,) = engine.requests
    assert asked.messages.template_variables == variables(enable_thinking=False, budget=64)
    assert list(asked.messages.messages) == TALK
    await router.generation.Generate(ask(messages=TALK, opt_out=True))
    assert not engine.requests[1].messages.HasField("template_variables")


async def test_decide_returns_what_generate_would_send(router: Running, engine: FakeEngine) -> None:
    await in_force(
        router, max_output_tokens=20, stop=["END"], suppressed_words=["um"], history_messages=1, **THINK_LESS
    )
    decided = await router.generation.Decide(generation_pb2.DecideRequest(request=ask(messages=TALK)))
    reply = await answered(router)
    (asked,) = engine.requests
    sent = text_pb2.Messages(messages=decided.messages, template_variables=decided.template_variables)
    assert (asked.messages, asked.limits) == (sent, decided.limits)
    decided.sampling.seed = reply.started.seed
    assert asked.sampling == decided.sampling


async def test_an_engine_that_takes_over_before_the_answer_gets_the_variables_too(tmp_path: Any) -> None:
    full = refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    first, second = FakeEngine(full), FakeEngine()
    await first.start()
    await second.start()
    async with running(tmp_path, {"a": first, "b": second}) as router:
        await in_force(router, **THINK_LESS)
        for _ in range(3):
            await answered(router)
        sent = [request.messages.template_variables for request in (*first.requests, *second.requests)]
        assert len(second.requests) == 3 and first.requests
        assert all(one == variables(enable_thinking=False, budget=64) for one in sent)
    await first.stop()
    await second.stop()


async def test_an_answer_that_goes_on_elsewhere_goes_on_from_the_rendered_prompt(tmp_path: Any) -> None:
    """Its tokens are what the variables made of the messages: nothing of that is left to be rendered again."""
    first, second = FakeEngine(tell("Hello", lives=2)), FakeEngine(tell("Hello"))
    await first.start()
    await second.start()
    async with running(tmp_path, {"a": first, "b": second}) as router:
        await in_force(router, **THINK_LESS)
        assert (await answered(router)).text == "Hello"
        begun, resumed = first.requests[0], second.requests[0]
        assert begun.messages.template_variables == variables(enable_thinking=False, budget=64)
        assert (resumed.WhichOneof("input"), tuple(resumed.token_ids.ids)) == ("token_ids", PROMPT_TOKEN_IDS)
    await first.stop()
    await second.stop()


async def refused(call: Any) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def tried(candidate: Any, **fields: Any) -> generation_pb2.GenerateRequest:
    purpose = generation_pb2.EvaluationPurpose(sample_id="s1", candidate=candidate, **fields)
    return ask(messages=TALK, evaluation=purpose, reference="x")


async def test_a_candidate_is_served_as_a_directive_would_be_and_is_an_evaluation(
    router: Running, engine: FakeEngine
) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    candidate = pb.Directive(text="One word", max_output_tokens=5, stop=["."], history_messages=1)
    reply = await router.generation.Generate(tried(candidate))
    decision = reply.started.decision
    assert (decision.directive, decision.reason) == ("trial", generation_pb2.DECISION_REASON_EVALUATION)
    (asked,) = engine.requests
    assert contents(engine) == ["Be kind.", "Why?\nOne word"]
    assert (asked.limits.max_output_tokens, list(asked.limits.stop)) == (5, ["."])
    report = await router.report(reports_pb2.DIMENSION_DIRECTIVE)
    assert (report.total.requests, report.evaluation.requests, list(report.rows)) == (0, 1, [])


async def test_a_native_candidate_is_one_too(router: Running, engine: FakeEngine) -> None:
    await router.generation.Generate(tried(pb.Directive(name="quick", **THINK_LESS)))
    assert engine.requests[0].messages.template_variables == variables(enable_thinking=False, budget=64)


@pytest.mark.parametrize(
    ("candidate", "fields", "field", "fault"),
    [
        ({"text": "User: hi"}, {}, "evaluation.candidate.text", "has a role marker"),
        ({"text": "x" * 1001}, {}, "evaluation.candidate.text", "has 1,001 characters"),
        ({"stop": [""]}, {}, "evaluation.candidate.stop[0]", "is empty"),
        ({"placement": 9}, {}, "evaluation.candidate.placement", "is 9"),
        (
            {"placement": pb.PLACEMENT_NATIVE, "template_variables": variables(messages="x")},
            {},
            "evaluation.candidate.template_variables['messages']",
            "is the chat template's own",
        ),
        ({"text": "Brief"}, {"directive": "L1"}, "evaluation.directive", "must be empty beside a candidate"),
    ],
)
async def test_a_faulty_candidate_is_refused_as_a_directive_is(
    router: Running, engine: FakeEngine, candidate: Any, fields: Any, field: str, fault: str
) -> None:
    error = await refused(router.generation.Generate(tried(pb.Directive(**candidate), **fields)))
    found = {violation.field: violation.description for violation in error.violations}
    assert set(found) == {field} and fault in found[field]
    assert engine.requests == []
