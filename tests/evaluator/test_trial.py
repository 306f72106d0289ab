"""Trials of directives on a router: what is asked of it, what comes of it, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from pith.router.v1 import directives_pb2

from common.errors import FieldViolation, PithError, invalid_argument, not_found, unavailable
from common.quality.trial import Recommendation
from evaluator.trial import TrialOutcome, TrialStep
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import MODEL, FakeRouter, FakeTarget

SUMS = FakeTarget("sums", "L1")
BRIEF = directives_pb2.Directive(text="Answer in one word")


async def started(bench: Bench, count: int = 100, reference: str = "7", **facts: Any) -> FakeRouter:
    """A router whose users were served so many sums."""
    router = await bench.router([SUMS], **facts)
    router.serve("sums", count, reference=reference)
    await bench.evaluator(router, attempts=1)
    return router


async def steps(bench: Bench, samples: int = 30, **fields: Any) -> list[TrialStep]:
    given: dict[str, Any] = {"candidate": BRIEF.SerializeToString(), "task": "sums", "model": "", "floor": 0.95}
    async with aclosing(bench.trials.run(samples=samples, **{**given, **fields})) as running:
        return [step async for step in running]


async def outcome(bench: Bench, samples: int = 30, **fields: Any) -> TrialOutcome:
    last = (await steps(bench, samples, **fields))[-1]
    assert last.outcome is not None
    return last.outcome


async def refused(bench: Bench, **fields: Any) -> PithError:
    with pytest.raises(PithError) as caught:
        await steps(bench, **fields)
    return caught.value


async def test_progress_comes_first_and_the_outcome_last(bench: Bench) -> None:
    await started(bench)
    seen = await steps(bench, 5)
    assert [step.samples_done for step in seen] == [0, 1, 2, 3, 4, 5, 5]
    assert {step.samples_planned for step in seen} == {5}
    assert [step.outcome is not None for step in seen] == [False] * 6 + [True]


async def test_a_good_directive_is_adopted(bench: Bench) -> None:
    await started(bench)
    found = await outcome(bench, 80)
    result = found.result
    assert (found.model, found.failed, result.samples) == (MODEL, 0, 80)
    assert result.recommendation is Recommendation.ADOPT
    assert (result.output_tokens, result.baseline_output_tokens) == (30, 100)
    assert result.energy_share is not None and result.energy_share.value == pytest.approx(0.3)


async def test_a_bad_one_is_rejected_and_shown_where_it_fails(bench: Bench) -> None:
    await started(bench, right={("sums", "trial"): 0.2})
    result = (await outcome(bench)).result
    assert result.recommendation is Recommendation.REJECT_QUALITY
    assert [(p.baseline.quality, p.answer.quality) for p in result.pairs] == [(1.0, 0.0)] * 3


async def test_both_answers_are_made_anew_alike_but_for_the_directive(bench: Bench) -> None:
    router = await started(bench, count=3)
    await steps(bench)
    asked: dict[str, dict[str, Any]] = {}
    for request in router.generation_requests:
        how = "trial" if request.evaluation.HasField("candidate") else request.evaluation.directive
        asked.setdefault(request.evaluation.sample_id, {})[how] = request
    assert len(asked) == 3
    for sample_id, by_directive in asked.items():
        assert set(by_directive) == {"trial", "L0"}
        tried, plain = by_directive["trial"], by_directive["L0"]
        assert tried.evaluation.candidate == BRIEF
        assert tried.sampling.seed == plain.sampling.seed == router.samples[sample_id].message.sampling.seed
        assert tried.request_id != plain.request_id
        for request in (tried, plain):
            request.ClearField("evaluation")
            request.ClearField("request_id")
        assert tried == plain


async def test_a_sample_without_a_seed_gets_one_for_both(bench: Bench) -> None:
    router = await started(bench, count=1)
    for sample in router.samples.values():
        sample.message.sampling.ClearField("seed")
    await steps(bench)
    first, second = (request.sampling for request in router.generation_requests)
    assert first.HasField("seed") and first.seed == second.seed


async def test_nothing_is_recorded_but_what_it_cost(bench: Bench) -> None:
    router = await started(bench, count=4)
    await steps(bench)
    assert (router.reports, router.scores, router.leased()) == ([], [], 0)
    assert bench.metrics.registry.get_sample_value("pith_evaluator_generated_answers_total") == 8
    assert bench.metrics.registry.get_sample_value("pith_evaluator_energy_joules_total") == pytest.approx(4 * 13)


async def test_unknown_energy_stays_unknown(bench: Bench) -> None:
    await started(bench, energy_known=False)
    assert (await outcome(bench)).result.energy_share is None


async def test_answers_that_fail_are_left_out_and_counted(bench: Bench) -> None:
    router = await started(bench, count=10)
    gone = unavailable("NO_ENGINE", "no engine")
    router.faults["Generate"] = [None, gone, None, None, gone]
    found = await outcome(bench)
    assert (found.failed, found.result.samples) == (2, 8)


async def test_samples_that_no_grader_can_use_are_left_out_before_they_cost_anything(bench: Bench) -> None:
    router = await started(bench, count=4)
    router.serve("sums", 3, reference="seven")
    found = await outcome(bench)
    assert (found.failed, found.result.samples, router.generations.total()) == (3, 4, 8)


async def test_where_every_answer_fails_the_cause_is_told(bench: Bench) -> None:
    router = await started(bench, count=3)
    router.faults["Generate"] = [not_found("model", MODEL)] * 3
    error = await refused(bench)
    assert (error.code.name, error.message) == ("NOT_FOUND", f"model '{MODEL}' does not exist")


async def test_without_a_sample_there_is_nothing_to_try_on(bench: Bench) -> None:
    router = await started(bench, count=0)
    told = "no sample of task 'sums' can be graded: it takes requests that bring a reference"
    for fields in ({}, {"model": "huge"}):
        error = await refused(bench, **fields)
        assert error.code.name == "NOT_FOUND" and error.message.startswith(told)
    router.serve("sums", 2, reference="seven")
    assert (await refused(bench)).message.startswith(told)


async def test_what_the_router_finds_wrong_with_the_directive_is_told_by_the_callers_fields(bench: Bench) -> None:
    router = await started(bench)
    fault = FieldViolation("evaluation.candidate.text", "has a role marker")
    router.faults["Generate"] = [invalid_argument([fault])] * 200
    error = await refused(bench)
    assert error.code.name == "INVALID_ARGUMENT"
    assert error.violations == (FieldViolation("directive.text", "has a role marker"),)
    # It is the candidate that is asked for first: no answer was paid for.
    assert router.generations.total() == 0


async def test_a_router_that_is_away_is_told(bench: Bench) -> None:
    router = await started(bench)
    await router.stop()
    assert (await refused(bench)).code.name == "UNAVAILABLE"


async def test_leaving_ends_what_is_under_way(bench: Bench) -> None:
    router = await started(bench)
    router.gate, router.gate_after = asyncio.Event(), 6
    before = asyncio.all_tasks()
    running = bench.trials.run(BRIEF.SerializeToString(), "sums", "", 30, 0.95)
    assert (await anext(running)).samples_done == 0
    waiting = asyncio.create_task(anext(running))
    await router.at_gate.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    await running.aclose()
    assert not [task for task in asyncio.all_tasks() - before if "Trials._try" in repr(task)]
    router.gate.set()
    await bench.client.plan()
    # Of sixty, those that were through, and what each of the four that waited may have got in the meantime.
    assert router.generations.total() <= 6 + 2 * 4


async def test_trials_share_one_bound_on_answers_at_a_time(bench: Bench) -> None:
    router = await started(bench)
    await bench.evaluator(router, attempts=1, concurrency=3)
    router.gate = asyncio.Event()
    both = [asyncio.create_task(steps(bench, 10)) for _ in range(2)]
    while router.waiting < 3:
        await bench.client.plan()
    # Whatever was sent before this call has come by the time it is answered.
    await bench.client.plan()
    assert router.waiting == 3
    router.gate.set()
    await asyncio.gather(*both)
    assert router.generations.total() == 40
