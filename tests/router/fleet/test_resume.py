"""An answer whose engine is lost goes on at another: its caller sees one answer, nothing lost, nothing repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.common.v1 import text_pb2
from pith.engine.v1 import inference_pb2
from structlog.testing import capture_logs

from common.errors import FieldViolation, PithError
from common.metrics import Metrics
from router.fleet.breaker import Breaker
from router.fleet.dispatch import Event, Opened
from router.fleet.view import EngineState
from tests.router.fake_engine import (
    DIGEST,
    PROMPT_TOKEN_IDS,
    Death,
    FakeEngine,
    Script,
    gone,
    killed,
    refuse,
    silence,
    stall,
    tell,
)
from tests.router.fleet.conftest import Fleet, collect, dispatch, sticky

TEXT = "Grüße, 世界 — 👋🏽!"
STALL_SECONDS = 30.0


def check(events: Sequence[Event], text: str, engine: str = "a") -> None:
    """One opening, the deltas of one answer, one end."""
    opened, *between, end = events
    assert isinstance(opened, Opened) and opened.engine == engine
    assert isinstance(end, inference_pb2.Finished)
    deltas = [inference_pb2.StreamGenerateResponse.FromString(raw).delta for raw in between if isinstance(raw, bytes)]
    assert len(deltas) == len(between)
    assert "".join(delta.text for delta in deltas) == text
    token_ids: list[int] = []
    for delta in deltas:
        assert delta.offset == len(token_ids)
        token_ids += delta.token_ids
    assert token_ids == list(text.encode())


# Within each of the characters of 2, 3 and 4 bytes, between two, at the beginning and after the last token.
EVERYWHERE = range(1, len(TEXT.encode()) + 1)


@pytest.mark.parametrize("lives", EVERYWHERE)
@pytest.mark.parametrize("death", [gone, killed])
async def test_an_answer_goes_on_wherever_its_engine_is_lost(fleet: Fleet, lives: int, death: Death) -> None:
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=lives, death=death)), FakeEngine(tell(TEXT, tokens=[2, 3])))
    check(await collect(engines), TEXT)
    assert engines.views()[0].in_flight == engines.views()[1].in_flight == 0


@pytest.mark.parametrize("lives", EVERYWHERE)
async def test_an_answer_goes_on_wherever_its_engine_stalls(fleet: Fleet, lives: int) -> None:
    first = FakeEngine(tell(TEXT, lives=lives, death=silence))
    stream = dispatch(await fleet.start(first, FakeEngine(tell(TEXT))), STALL_SECONDS)
    events = [await anext(stream) for _ in range(1 + lives)]
    following = asyncio.ensure_future(anext(stream))
    await fleet.clock.advance(STALL_SECONDS)
    events.append(await following)
    events += [event async for event in stream]
    check(events, TEXT)
    await first.cancelled.wait()


LETTERS = st.text(st.sampled_from("ab#é€👋"), min_size=1, max_size=12)
SIZES = st.lists(st.integers(1, 5), max_size=6)


@given(LETTERS, st.text("ab#", max_size=4), st.lists(st.tuples(SIZES, st.integers(1, 6)), max_size=3), SIZES)
@settings(max_examples=150, deadline=None)
def test_the_text_is_that_of_an_undisturbed_answer(
    text: str, held: str, lost: list[tuple[list[int], int]], last: list[int]
) -> None:
    """Whatever is held back as the beginning of a stop string or of a character, however often an engine is lost."""
    scripts = [tell(text, tokens=sizes, held=held, lives=lives) for sizes, lives in lost]
    scripts.append(tell(text, tokens=last, held=held))

    async def answer() -> list[Event]:
        fleet = Fleet()
        try:
            return await collect(await fleet.start(*map(FakeEngine, scripts)))
        finally:
            await fleet.close()

    check(asyncio.run(answer()), text)


async def test_what_the_second_engine_is_asked(fleet: Fleet) -> None:
    asked = inference_pb2.GenerateRequest(
        model="small",
        text="Hi",
        sampling=text_pb2.Sampling(temperature=0.5, suppressed_words=["um"], logit_bias={3: -1.5}, logprobs=2),
        limits=text_pb2.Limits(max_output_tokens=99, stop=["#"]),
    )
    first, second = FakeEngine(tell("añb", tokens=[2], lives=1)), FakeEngine(tell("añb"))

    async def seeded(engine: FakeEngine, request: inference_pb2.GenerateRequest, context: object) -> object:
        request.sampling.seed = 7  # an engine draws one where none is asked for, and says so
        async for message in tell("añb", tokens=[2], lives=1)(engine, request, context):
            yield message

    first.script = seeded
    engines = await fleet.start(first, second)
    prepared: list[str] = []
    check(await collect(engines, prepare=lambda engine, _: prepared.append(engine.name) or (engine, asked)), "añb")
    assert prepared == ["a"], "what an answer has begun with is never decided anew"
    (resumed,) = second.requests
    assert list(resumed.token_ids.ids) == list(PROMPT_TOKEN_IDS)
    assert resumed.resume == inference_pb2.Resume(token_ids=[97, 195], model_digest=DIGEST, delivered_bytes=1)
    assert resumed.sampling.seed == 7
    resumed.ClearField("resume")
    resumed.text = "Hi"
    resumed.sampling.ClearField("seed")
    assert resumed == asked


async def test_each_engine_is_tried_once(fleet: Fleet) -> None:
    fakes = [FakeEngine(tell(TEXT, lives=1)) for _ in range(3)]
    engines = await fleet.start(*fakes, make_breaker=lambda: Breaker(9))
    events: list[Event] = []
    with pytest.raises(PithError) as lost:
        await collect(engines, into=events)
    assert (lost.value.code, lost.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
    assert [len(fake.requests) for fake in fakes] == [1, 1, 1]
    assert [type(event) for event in events] == [Opened, bytes, bytes, bytes]


@pytest.mark.parametrize(
    "model",
    [{"digest": DIGEST[:12] + "f" * 52}, {"digest": "f" * 64}, {"model": "large"}],
    ids=["the same short digest", "another digest", "another name"],
)
async def test_only_the_very_same_model_goes_on(fleet: Fleet, model: dict[str, str]) -> None:
    other = FakeEngine(tell(TEXT), **model)
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=3)), other)
    with pytest.raises(PithError) as lost:
        await collect(engines)
    assert lost.value.reason == "ENGINE_LOST"
    assert not other.requests


async def test_an_engine_that_cannot_resume_is_not_asked_to(fleet: Fleet) -> None:
    plain, able = FakeEngine(tell(TEXT)), FakeEngine(tell(TEXT))
    plain.info.accepts_resume = False
    check(await collect(await fleet.start(FakeEngine(tell(TEXT, lives=3)), plain, able)), TEXT)
    assert not plain.requests and able.requests


async def test_an_engine_that_has_changed_its_weights_meanwhile_is_passed_over(fleet: Fleet) -> None:
    changed, same = FakeEngine(), FakeEngine(tell(TEXT))

    async def other_weights(engine: FakeEngine, request: inference_pb2.GenerateRequest, context: object) -> object:
        started = engine.started(request)
        started.started.model_digest = DIGEST[:12] + "f" * 52
        yield started

    changed.script = other_weights
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=3)), changed, same, make_breaker=sticky())
    check(await collect(engines), TEXT)
    assert engines.views()[1].state is EngineState.READY


REFUSALS = [
    (refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after_seconds=3.0), True),
    (refuse(grpc.StatusCode.UNAVAILABLE, "DRAINING"), True),
    (refuse(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"), True),
    (
        refuse(
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELDS",
            violations=[FieldViolation("resume.token_ids", "has 9 tokens; the answer may have 5")],
        ),
        True,
    ),
    (refuse(grpc.StatusCode.UNIMPLEMENTED, "NOT_YET"), True),
    (refuse(grpc.StatusCode.UNAVAILABLE), False),
]


@pytest.mark.parametrize(("refusal", "well"), REFUSALS)
async def test_where_one_refuses_to_go_on_the_next_is_asked(fleet: Fleet, refusal: Script, well: bool) -> None:
    engines = await fleet.start(
        FakeEngine(tell(TEXT, lives=3)), FakeEngine(refusal), FakeEngine(tell(TEXT)), make_breaker=sticky()
    )
    check(await collect(engines), TEXT)
    assert (engines.views()[1].state is EngineState.READY) == well


@pytest.mark.parametrize(("refusal", "well"), REFUSALS)
async def test_where_all_refuse_the_answer_is_lost(fleet: Fleet, refusal: Script, well: bool) -> None:
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=3)), FakeEngine(refusal))
    with pytest.raises(PithError) as lost:
        await collect(engines)
    assert (lost.value.code, lost.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
    assert lost.value.retry_after_seconds
    assert not lost.value.violations, "no field of what the caller sent is at fault"


async def test_a_resumed_answer_that_breaks_its_engine_is_passed_on_no_further(fleet: Fleet) -> None:
    third = FakeEngine(tell(TEXT))
    engines = await fleet.start(
        FakeEngine(tell(TEXT, lives=3)), FakeEngine(refuse(grpc.StatusCode.INTERNAL, after=("started",))), third
    )
    with pytest.raises(PithError) as broken:
        await collect(engines)
    assert broken.value.code is grpc.StatusCode.INTERNAL
    assert not third.requests


async def test_the_callers_deadline_ends_a_resumed_answer_too(fleet: Fleet) -> None:
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=3)), FakeEngine(stall("started")), make_breaker=sticky(2))
    with pytest.raises(PithError) as late:
        await collect(engines, timeout_seconds=0.2)
    assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert engines.views()[1].state is EngineState.READY


async def test_leaving_a_resumed_answer_stops_the_engine_that_goes_on_with_it(fleet: Fleet) -> None:
    second = FakeEngine(tell(TEXT, lives=2, death=silence))
    engines = await fleet.start(FakeEngine(tell(TEXT, lives=1)), second)
    stream = dispatch(engines)
    for _ in range(4):
        await anext(stream)
    await stream.aclose()
    await second.cancelled.wait()
    assert [view.in_flight for view in engines.views()] == [0, 0]


async def test_timings_are_those_that_the_caller_saw(fleet: Fleet) -> None:
    first, second = FakeEngine(), FakeEngine(tell("abc"))
    asked, told = asyncio.Event(), asyncio.Event()

    async def slow(engine: FakeEngine, request: inference_pb2.GenerateRequest, context: object) -> object:
        asked.set()
        await told.wait()
        async for message in tell("abc", lives=1, death=silence)(engine, request, context):
            yield message

    first.script = slow
    engines = await fleet.start(first, second)
    stream = dispatch(engines, STALL_SECONDS)
    opening = asyncio.ensure_future(anext(stream))
    await asked.wait()
    await fleet.clock.advance(2)
    told.set()
    assert isinstance(await opening, Opened)
    assert isinstance(await anext(stream), bytes)
    following = asyncio.ensure_future(anext(stream))
    await fleet.clock.advance(STALL_SECONDS)
    await following
    end = [event async for event in stream][-1]
    assert isinstance(end, inference_pb2.Finished)
    assert (end.timings.first_token_seconds, end.timings.decode_seconds) == (2.0, STALL_SECONDS)


async def test_it_is_counted_and_logged_without_a_word_of_the_answer(fleet: Fleet) -> None:
    metrics = Metrics("router")
    engines = await fleet.start(FakeEngine(tell("secret", lives=3)), FakeEngine(tell("secret", lives=2)))

    def counted(outcome: str) -> float | None:
        return metrics.registry.get_sample_value("pith_router_interrupted_answers_total", {"outcome": outcome})

    with capture_logs() as logs, pytest.raises(PithError):
        await collect(engines, metrics=metrics)
    assert (counted("resumed"), counted("lost")) == (1, 1)
    (line,) = [line for line in logs if line["event"] == "answer resumed"]
    assert (line["lost"], line["engine"], line["kept_tokens"]) == ("a", "b", 3)
    assert "sec" not in str(logs)
