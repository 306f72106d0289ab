"""What callers of Generation get: answers, decisions, carbon, and what is written down about them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import feedback_pb2, generation_pb2, policies_pb2, reports_pb2
from structlog.testing import capture_logs

from common.errors import PithError, from_rpc_error
from router.directives.assign import uniform
from tests.router.fake_engine import IDENTITY, FakeEngine, answer, delta, finished, refuse, stall, tell
from tests.router.running import Running, ask, running

STREAM = "/pith.router.v1.Generation/StreamGenerate"


async def refused(call: object) -> PithError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call  # type: ignore[misc]
    return from_rpc_error(error.value)


async def test_the_access_log_names_the_callers_own_id(tmp_path: Path, engine: FakeEngine) -> None:
    with capture_logs() as logs:
        async with running(tmp_path, {"e1": engine}) as router:
            await router.generation.Generate(ask(request_id="order 7"))
            await router.generation.StreamGenerate(ask(request_id="order 8")).read()
            await router.generation.Decide(generation_pb2.DecideRequest(request=ask(request_id="order 9")))
            await refused(router.generation.Generate(ask(request_id="order 10", task="x" * 1000)))
            await router.generation.Generate(ask())
    asked = [log.get("asked") for log in logs if log["event"] == "call" and "Generation" in log["method"]]
    assert sorted(map(str, asked)) == ["None", "order 10", "order 7", "order 8", "order 9"]


async def test_an_answer_carries_decision_usage_energy_and_carbon(router: Running) -> None:
    await router.policy()
    await router.open("L1", lower=0.97)
    reply = await router.generation.Generate(ask(request_id="r1", sampling=text_pb2.Sampling(seed=7)))
    assert reply.text == "Hello, world."
    assert (reply.started.request_id, reply.started.engine, reply.started.seed) == ("r1", "e1", 7)
    assert not reply.started.replayed
    decision = reply.started.decision
    assert (decision.directive, decision.reason) == ("L1", generation_pb2.DECISION_REASON_PLANNED)
    assert (decision.policy, decision.policy_revision, decision.bound, decision.floor) == ("acme-qa", 1, 0.97, 0.95)
    end = reply.finished
    assert end.reason == text_pb2.FINISH_REASON_STOP
    assert (end.usage.prompt_tokens, end.usage.output_tokens) == (5, 2)
    assert (end.energy.joules, end.energy.source) == (2.0, energy_pb2.ENERGY_SOURCE_MODELLED)
    # 2 J at 360 g/kWh and PUE 1.5; half a second of a device that costs a milligram a second.
    assert end.carbon.operational_grams == pytest.approx(2 / 3.6e6 * 1.5 * 360)
    assert end.carbon.embodied_grams == pytest.approx(0.0005)
    assert (end.carbon.intensity.g_per_kwh, end.carbon.intensity.zone) == (360, "TEST")


async def test_a_stream_is_started_deltas_as_the_engine_sent_them_and_finished(
    router: Running, engine: FakeEngine
) -> None:
    odd = b"\x12\x0b\x18\x02\x0a\x02hi\x7a\x03xyz"  # fields out of order, and one that nobody here knows

    async def script(engine: FakeEngine, request: object, context: object) -> object:
        yield engine.started(request)
        yield delta("Hello")
        yield odd
        yield finished(3)

    engine.script = script
    raw = router.channel.unary_stream(STREAM, request_serializer=generation_pb2.GenerateRequest.SerializeToString)
    messages = [message async for message in raw(ask())]
    assert messages[1:3] == [delta("Hello").SerializeToString(), odd]
    first, last = (generation_pb2.StreamGenerateResponse.FromString(m) for m in (messages[0], messages[-1]))
    assert first.started.decision.directive == "L0"
    assert last.finished.usage.output_tokens == 3
    assert last.finished.carbon.operational_grams > 0


async def test_deltas_arrive_while_the_engine_is_at_work(router: Running, engine: FakeEngine) -> None:
    go = asyncio.Event()
    engine.script = stall("started", delta("early"), until=go)
    stream = router.generation.StreamGenerate(ask())
    assert (await stream.read()).HasField("started")
    assert (await stream.read()).delta.text == "early"
    go.set()
    assert (await stream.read()).delta.text == "late"
    assert (await stream.read()).HasField("finished")
    assert await stream.read() is grpc.aio.EOF


async def test_the_engine_gets_the_directive_at_the_tail_and_the_rest_as_it_came(
    router: Running, engine: FakeEngine
) -> None:
    await router.policy()
    await router.open("L2")
    messages = [
        text_pb2.Message(role=text_pb2.ROLE_SYSTEM, content="Be kind."),
        text_pb2.Message(role=text_pb2.ROLE_USER, content="Why?"),
    ]
    sampling = text_pb2.Sampling(temperature=0.5, top_p=0.9, top_k=3, suppressed_words=["um"], logit_bias={3: -1.5})
    limits = text_pb2.Limits(max_output_tokens=9, stop=["\n\n"])
    reply = await router.generation.Generate(
        ask(messages=messages, sampling=sampling, limits=limits, reference="secret")
    )
    (asked,) = engine.requests
    assert asked.messages.messages[0].content == "Be kind."
    assert asked.messages.messages[1].content == "Why?\nAlways answer very briefly"
    sampling.seed = reply.started.seed
    assert (asked.sampling, asked.limits, asked.model) == (sampling, limits, "small")
    assert "secret" not in str(asked), "the reference is never sent to an engine"


async def test_seeds_that_the_router_draws_differ(router: Running) -> None:
    seeds = {(await router.generation.Generate(ask())).started.seed for _ in range(5)}
    assert len(seeds) == 5


async def test_an_engine_that_reports_no_energy_leaves_it_unknown(router: Running, engine: FakeEngine) -> None:
    engine.script = answer("x", joules=None)
    reply = await router.generation.Generate(ask())
    assert not reply.finished.HasField("energy") and not reply.finished.HasField("carbon")
    report = await router.report()
    assert (report.total.requests, report.total.requests_without_energy) == (1, 1)


async def test_every_answer_is_in_the_ledger_once(router: Running) -> None:
    await router.policy()
    await router.open("L1")
    await router.generation.Generate(ask(request_id="a"))
    await router.generation.Generate(ask(request_id="b", task="other"))
    async for _ in router.generation.StreamGenerate(ask(request_id="c")):
        pass
    report = await router.report(reports_pb2.DIMENSION_TASK, reports_pb2.DIMENSION_DIRECTIVE)
    rows = {(row.task, row.directive): (row.requests, row.output_tokens, row.energy_joules) for row in report.rows}
    assert rows == {("qa", "L1"): (2, 4, 4.0), ("other", "L0"): (1, 2, 2.0)}


@pytest.mark.parametrize(
    ("mode", "directive", "reason", "planned"),
    [
        (policies_pb2.MODE_ON, "L1", generation_pb2.DECISION_REASON_PLANNED, ""),
        (policies_pb2.MODE_SHADOW, "L0", generation_pb2.DECISION_REASON_SHADOW, "L1"),
        (policies_pb2.MODE_OFF, "L0", generation_pb2.DECISION_REASON_MODE_OFF, ""),
    ],
)
async def test_the_mode_decides_what_is_served(
    router: Running, engine: FakeEngine, mode: int, directive: str, reason: int, planned: str
) -> None:
    await router.policy(mode=mode)
    await router.open("L1")
    reply = await router.generation.Generate(ask())
    decision = reply.started.decision
    assert (decision.directive, decision.reason, decision.planned_directive) == (directive, reason, planned)
    assert ("briefly" in str(engine.requests[0])) == (directive == "L1")


async def test_a_bound_of_another_digest_opens_nothing(router: Running) -> None:
    await router.policy()
    await router.open("L1", model="small@ffffffffffff")
    reply = await router.generation.Generate(ask())
    assert reply.started.decision.reason == generation_pb2.DECISION_REASON_NONE_OPEN


async def test_each_engine_is_decided_for_by_its_own_digest(tmp_path: Path) -> None:
    judged, other = FakeEngine(refuse(grpc.StatusCode.UNAVAILABLE)), FakeEngine(digest="f" * 64)
    await judged.start()
    await other.start()
    async with running(tmp_path, {"a": judged, "b": other}) as router:
        await router.policy()
        await router.open("L1")
        reply = await router.generation.Generate(ask())
        assert reply.started.engine == "b"
        assert reply.started.decision.directive == "L0", "its model was never judged"
        assert "briefly" in str(judged.requests[0]) and "briefly" not in str(other.requests[0])
    await judged.stop()
    await other.stop()


async def test_an_answer_that_another_engine_goes_on_with_is_one_answer(tmp_path: Path) -> None:
    first, second = FakeEngine(tell("Grüße!", lives=3)), FakeEngine(tell("Grüße!"))
    await first.start()
    await second.start()
    async with running(tmp_path, {"a": first, "b": second}) as router:
        await router.policy(sample_share=1.0, grader="exact")
        await router.open("L1")

        async def closing(engine: FakeEngine, request: object, context: object) -> object:
            await router.open("L1", lower=0.1)  # a directive that closes now does not change what has begun
            async for message in tell("Grüße!", lives=3)(engine, request, context):
                yield message

        first.script = closing
        events = [event async for event in router.generation.StreamGenerate(ask(request_id="r1", reference="x"))]
        assert [event.WhichOneof("event") for event in events] == ["started", *["delta"] * 8, "finished"]
        assert [event.delta.offset for event in events[1:-1]] == list(range(8))
        assert "".join(event.delta.text for event in events) == "Grüße!"
        assert (events[0].started.engine, events[0].started.decision.directive) == ("a", "L1")
        kept = await router.generation.Generate(ask(request_id="r1", reference="x"))
        assert (kept.text, kept.started.replayed, kept.finished) == ("Grüße!", True, events[-1].finished)
        assert len(first.requests) == len(second.requests) == 1
        assert (await router.report()).total.requests == 1
        (sample,) = await drawn(router)
        assert [served.text for served in sample.answers] == ["Grüße!"]
    await first.stop()
    await second.stop()


async def test_opting_out_serves_without_and_keeps_no_sample(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    await router.open("L1")
    reply = await router.generation.Generate(ask(opt_out=True, reference="x"))
    assert reply.started.decision.reason == generation_pb2.DECISION_REASON_OPT_OUT
    assert await drawn(router) == []


async def test_a_callers_floor_above_the_bound_closes_the_directive(router: Running) -> None:
    await router.policy()
    await router.open("L1", lower=0.97)
    strict = await router.generation.Generate(ask(floor=0.98))
    lax = await router.generation.Generate(ask(floor=0.5))
    assert [reply.started.decision.directive for reply in (strict, lax)] == ["L0", "L1"]


async def test_held_back_requests_are_the_drawn_share_and_are_marked(router: Running) -> None:
    await router.policy(holdback_share=0.3)
    await router.open("L1")
    names = [f"request-{index}" for index in range(300)]
    replies = [await router.generation.Generate(ask(request_id=name)) for name in names]
    held = {
        r.started.request_id for r in replies if r.started.decision.reason == generation_pb2.DECISION_REASON_HOLDBACK
    }
    assert held == {name for name in names if uniform("holdback", "acme-qa", name) < 0.3}
    # Four standard deviations of a binomial share around 90.
    assert 58 <= len(held) <= 122
    for reply in replies:
        served_at_l0 = reply.started.request_id in held
        assert (reply.started.decision.directive == "L0") == served_at_l0
        assert (reply.started.decision.planned_directive == "L1") == served_at_l0
    report = await router.report()
    assert report.counterfactual.held_back_requests == len(held)


async def test_a_conversation_keeps_its_directive(router: Running) -> None:
    await router.policy(traffic_share=0.5)
    await router.open("L1")
    for conversation in range(10):
        replies = [await router.generation.Generate(ask(conversation_id=f"c{conversation}")) for _ in range(5)]
        assert len({reply.started.decision.directive for reply in replies}) == 1


async def drawn(router: Running, task: str = "qa") -> list[feedback_pb2.Sample]:
    await router.router.ledger.flush()
    request = feedback_pb2.DrawSamplesRequest(
        model=IDENTITY, task=task, directives=["L1"], count=200, evaluator="judge"
    )
    return list((await router.feedback.DrawSamples(request)).samples)


async def test_a_sample_is_the_request_as_it_came_with_the_answer_served(router: Running) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    await router.open("L1")
    reply = await router.generation.Generate(
        ask(
            "Why?", reference="because", sampling=text_pb2.Sampling(temperature=0.5), limits=text_pb2.Limits(stop=["#"])
        )
    )
    (sample,) = await drawn(router)
    assert [message.content for message in sample.messages] == ["Why?"]
    assert (sample.reference, sample.grader, sample.task, sample.model) == ("because", "exact", "qa", IDENTITY)
    assert (sample.sampling.temperature, sample.sampling.seed) == (0.5, reply.started.seed)
    assert list(sample.limits.stop) == ["#"]
    (served,) = sample.answers
    assert (served.directive, served.directive_revision, served.text, served.output_tokens) == (
        "L1",
        1,
        "Hello, world.",
        2,
    )


async def test_samples_are_the_drawn_share_whatever_was_served(router: Running) -> None:
    await router.policy(sample_share=0.4, holdback_share=0.5, grader="exact")
    await router.open("L1")
    names = [f"request-{index}" for index in range(100)]
    for name in names:
        await router.generation.Generate(ask(name, request_id=name, reference="x"))
    previews = [generation_pb2.DecideRequest(request=ask(request_id=name)) for name in names]
    expected = {p.request.request_id for p in previews if (await router.generation.Decide(p)).sample_wanted}
    samples = await drawn(router)
    assert {sample.messages[0].content for sample in samples} == expected
    assert len(samples) == len(expected) > 20
    assert {sample.answers[0].directive for sample in samples} == {"L0", "L1"}


async def test_an_evaluators_request_gets_its_directive_and_is_nobodys_bill(
    router: Running, engine: FakeEngine
) -> None:
    await router.policy(sample_share=1.0, grader="exact", mode=policies_pb2.MODE_OFF)
    purpose = generation_pb2.EvaluationPurpose(sample_id="s1", directive="L2")
    reply = await router.generation.Generate(ask(evaluation=purpose, reference="x"))
    decision = reply.started.decision
    assert (decision.directive, decision.reason) == ("L2", generation_pb2.DECISION_REASON_EVALUATION)
    assert "Always answer very briefly" in engine.requests[0].messages.messages[0].content
    assert await drawn(router) == []
    report = await router.report()
    assert (report.total.requests, report.evaluation.requests) == (0, 1)


async def test_what_evaluation_costs_is_no_guide_to_what_traffic_costs(router: Running, engine: FakeEngine) -> None:
    """An engine that judges alone at night spends more on a request than one that shares its steps by day."""
    await router.policy()
    await router.open("L1")
    engine.script = answer("x", joules=1.0)
    await router.generation.Generate(ask(opt_out=True))
    engine.script = answer("x", joules=50.0)
    await router.generation.Generate(ask(evaluation=generation_pb2.EvaluationPurpose(sample_id="s", directive="L1")))
    await router.clock.advance(300)
    await router.open("L1")
    assert (await router.generation.Generate(ask())).started.decision.directive == "L1"


async def test_an_evaluators_unknown_directive_is_not_found(router: Running, engine: FakeEngine) -> None:
    purpose = generation_pb2.EvaluationPurpose(sample_id="s1", directive="L9")
    error = await refused(router.generation.Generate(ask(evaluation=purpose)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert error.metadata == {"resource": "directive", "name": "L9"}
    assert not engine.requests


async def test_an_unknown_model_is_not_found(router: Running, engine: FakeEngine) -> None:
    error = await refused(router.generation.Generate(ask(model="huge")))
    assert (error.code, error.metadata) == (grpc.StatusCode.NOT_FOUND, {"resource": "model", "name": "huge"})
    assert not engine.requests


async def test_decide_returns_what_to_send_and_sends_nothing(router: Running, engine: FakeEngine) -> None:
    await router.policy()
    await router.open("L1")
    request = generation_pb2.DecideRequest(
        request=ask("Why?", request_id="d1", sampling=text_pb2.Sampling(temperature=0.5))
    )
    first, again = [await router.generation.Decide(request) for _ in range(2)]
    assert first == again and first.decision_id
    assert first.decision.directive == "L1"
    assert [message.content for message in first.messages] == ["Why?\nAlways answer briefly"]
    assert first.sampling == text_pb2.Sampling(temperature=0.5)
    assert not engine.requests
    assert (await router.report()).total.requests == 0


async def test_decide_takes_the_word_of_a_caller_with_a_model_of_its_own(router: Running) -> None:
    await router.policy()
    await router.open("L1", model="theirs@abc")
    request = generation_pb2.DecideRequest(request=ask(model="theirs@abc"))
    assert (await router.generation.Decide(request)).decision.directive == "L1"
