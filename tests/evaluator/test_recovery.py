"""Replies that are lost, reports that fail or come late, restarts: an evaluator ends with what the router has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.errors import PithError, aborted, unavailable
from common.quality.bound import Cell, QualityBound
from evaluator.evaluation import REPORT_TRIES
from evaluator.loop import EvaluationLoop
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import RIGHT_IN_FEW_WORDS, FakeRouter, FakeTarget, targets


def known(loop: EvaluationLoop) -> dict[Cell, tuple[Any, ...] | None]:
    """All that estimates say, but for the times, which are the router's after a restart."""

    def facts(bound: QualityBound | None) -> tuple[Any, ...] | None:
        return None if bound is None else (bound.lower, bound.upper, bound.share, bound.absolute_lower, bound.samples)

    estimates = loop.knowledge.estimates
    return {cell: facts(estimates.bound(cell)) for cell in estimates.cells()}


async def restarted(bench: Bench, router: FakeRouter) -> EvaluationLoop:
    loop = await bench.evaluator(router)
    await loop.knowledge.ensure()
    return loop


async def test_a_lost_reply_does_no_harm(bench: Bench) -> None:
    router = await bench.router(targets("extraction"))
    router.serve("extraction", 300)
    router.lost_replies = 1
    loop = await bench.evaluator(router)
    run = asyncio.create_task(bench.evaluate(loop))
    await bench.back_off.asleep()
    await bench.back_off.advance(1)
    await run
    assert router.reports[0] == router.reports[1]
    assert len(router.scores) == len({s.sample_id for s in router.scores}) == 80
    assert known(await restarted(bench, router)) == known(loop)


async def test_estimates_after_a_failed_report_are_those_of_the_router(bench: Bench) -> None:
    router = await bench.router(targets("extraction"))
    router.serve("extraction", 300)
    router.faults["ReportQuality"] = [None, unavailable("DATABASE", "the database does not answer")]
    loop = await bench.evaluator(router, attempts=1)
    with pytest.raises(PithError, match="DATABASE"):
        await bench.evaluate(loop)
    assert len(router.scores) == 8
    await loop.knowledge.ensure()
    assert known(await restarted(bench, router)) == known(loop)


async def test_what_another_reports_meanwhile_is_in_the_bounds(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 300)
    one = await bench.evaluator(router)
    other = await bench.evaluator(router)
    router.gate = asyncio.Event()
    runs = [asyncio.create_task(bench.evaluate(loop)) for loop in (one, other)]
    await router.at_gate.wait()
    router.gate.set()
    await asyncio.gather(*runs)
    assert len(router.scores) == len({score.sample_id for score in router.scores})
    for number, report in enumerate(router.reports):
        recorded = sum(len(earlier.scores) for earlier in router.reports[: number + 1])
        assert [bound.samples for bound in report.bounds] == [recorded]
    for loop in (one, other):
        await loop.knowledge.ensure()
    assert known(one) == known(other) == known(await restarted(bench, router))


async def test_a_report_that_others_were_faster_than_is_made_anew_at_once(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 8)
    moved = aborted("SCORES_MOVED", "there are others")
    router.faults["ReportQuality"] = [moved, moved, moved]
    events = await bench.evaluate(await bench.evaluator(router))
    assert events.count("extraction/L2: another evaluator reported meanwhile: bounds are made anew") == 1
    assert events[-1] == "done: 8 samples scored, 0 not"
    assert len(router.scores) == 8


async def test_one_that_is_never_fast_enough_gives_up_and_rebuilds(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 8)
    router.faults["ReportQuality"] = [aborted("SCORES_MOVED", "there are others")] * 100
    loop = await bench.evaluator(router)
    with pytest.raises(PithError, match="SCORES_MOVED"):
        await bench.evaluate(loop)
    assert len(router.faults["ReportQuality"]) == 100 - REPORT_TRIES
    assert router.scores == []


async def test_samples_that_another_has_scored_meanwhile_are_left_out(bench: Bench) -> None:
    """Its lease had ended."""
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 12)
    slow, quick = await bench.evaluator(router, batch_samples=8), await bench.evaluator(router, batch_samples=12)
    router.gate, router.gate_after = asyncio.Event(), 0
    run = asyncio.create_task(bench.evaluate(slow))
    await router.at_gate.wait()
    gate, router.gate = router.gate, None
    await bench.clock.advance(slow._config.lease_seconds)
    assert (await bench.evaluate(quick))[-1] == "done: 12 samples scored, 0 not"
    gate.set()
    events = await run
    assert "extraction/L2: 8 samples had been scored by another, or served before a change" in events
    assert events[-1] == "done: 0 samples scored, 0 not"
    assert len(router.reports) == 1 and len(router.scores) == 12
    assert known(slow) == known(quick)


async def test_restarted_midway_it_ends_with_the_same_estimates(bench: Bench) -> None:
    async def world() -> FakeRouter:
        router = await bench.router(targets("arithmetic", "extraction"), right=RIGHT_IN_FEW_WORDS)
        router.serve("arithmetic", 100)
        router.serve("extraction", 150)
        return router

    whole, broken = await world(), await world()
    one = await bench.evaluator(whole)
    await bench.evaluate(one)

    first = await bench.evaluator(broken)
    # Some batches, then the evaluator goes away in the middle of one.
    broken.gate, broken.gate_after = asyncio.Event(), 37
    first.start()
    await broken.at_gate.wait()
    await first.stop(0.0)
    assert len(broken.scores) == 32
    broken.gate.set()
    await bench.clock.advance(6 * 3600)  # the leases end

    second = await bench.evaluator(broken)
    await bench.evaluate(second)
    assert known(second) == known(one)
    assert broken.open_directives() == whole.open_directives()


async def test_stopping_ends_the_batch_in_hand(bench: Bench) -> None:
    router = await bench.router(targets("extraction"))
    router.serve("extraction", 100)
    router.gate = asyncio.Event()
    loop = await bench.evaluator(router)
    run = asyncio.create_task(bench.evaluate(loop))
    await router.at_gate.wait()
    stop = asyncio.create_task(loop.stop(60.0))
    router.gate.set()
    await stop
    assert len(router.scores) == 8
    with pytest.raises(PithError, match="stopping"):
        await run
