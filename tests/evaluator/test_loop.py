"""The evaluator left to itself: when it evaluates, and how it lives through the absence of its router."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from prometheus_client import generate_latest

from common.errors import unavailable
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import FakeTarget

HOUR = 3600.0
DOWN = unavailable("DATABASE", "the database does not answer")


class TestWhen:
    async def test_the_first_evaluation_comes_with_the_first_samples(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        loop = await bench.evaluator(router)
        bench.poll(loop)
        await bench.clock.asleep()
        assert (loop.evaluations, loop.reason) == (0, "nothing to decide")
        router.serve("extraction", 8)
        await polls(bench, 1, 60)
        assert (loop.evaluations, loop.reason) == (1, "first evaluation")
        assert len(router.scores) == 8

    async def test_too_few_samples_are_left_to_gather(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        loop = await bench.evaluator(router, batch_samples=8)
        router.serve("extraction", 7)
        bench.poll(loop)
        await bench.clock.asleep()
        assert loop.evaluations == 0

    async def test_waits_for_a_clean_hour(self, bench: Bench) -> None:
        start = bench.clock.now()
        router = await bench.router([FakeTarget("extraction", "L2")], right={("extraction", "L2"): 0.96})
        router.intensities = [(start + timedelta(hours=hour), abs(hour - 9) * 40.0 + 100.0) for hour in range(24)]
        router.serve("extraction", 200)
        loop = await bench.evaluator(router, poll_seconds=HOUR, run_samples=50)
        bench.poll(loop)
        await bench.clock.asleep()
        assert loop.evaluations == 1
        await polls(bench, 9, HOUR)  # the low itself: not known to be one until the next hour
        assert loop.evaluations == 1
        await polls(bench, 1, HOUR)
        assert loop.evaluations == 2
        assert loop.reason == "intensity 140 g/kWh has passed a low"

    async def test_an_undecided_directive_does_not_wait_for_ever(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")], right={("extraction", "L2"): 0.96})
        router.serve("extraction", 200)
        loop = await bench.evaluator(router, poll_seconds=HOUR, run_samples=50)
        bench.poll(loop)
        await bench.clock.asleep()
        await polls(bench, 12, HOUR)
        assert loop.evaluations == 2

    async def test_a_decision_that_stands_is_looked_at_when_it_has_been_idle(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 300)
        loop = await bench.evaluator(router, poll_seconds=12 * HOUR)
        bench.poll(loop)
        await bench.clock.asleep()
        await polls(bench, 5, 12 * HOUR)
        assert loop.evaluations == 1
        router.serve("extraction", 20)
        await polls(bench, 1, 12 * HOUR)
        assert (loop.evaluations, len(router.scores)) == (2, 88)

    async def test_where_nothing_can_change_it_stays_idle(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")], right={("arithmetic", "L2"): 0.0})
        router.serve("arithmetic", 300)
        loop = await bench.evaluator(router, poll_seconds=24 * HOUR)
        bench.poll(loop)
        await bench.clock.asleep()
        await polls(bench, 4, 24 * HOUR)
        assert loop.evaluations == 1
        assert loop.reason == "too few fresh samples to decide anything"

    async def test_a_restart_does_not_forget_when_it_last_evaluated(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")], right={("extraction", "L2"): 0.96})
        router.serve("extraction", 200)
        await bench.evaluate(await bench.evaluator(router, run_samples=50))
        restarted = await bench.evaluator(router)
        bench.poll(restarted)
        await bench.clock.asleep()
        assert restarted.evaluations == 0
        assert restarted.reason.startswith("last evaluation only")


class TestOutages:
    async def test_keeps_trying_while_the_router_is_away(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        await bench.evaluate(await bench.evaluator(router))
        await router.stop()
        loop = await bench.evaluator(router)
        bench.poll(loop)
        await bench.back_off.asleep()
        assert not loop.knowledge.rebuilt.is_set()
        assert loop.last_fault.startswith("UNAVAILABLE")
        await router.start()
        assert bench.channel is not None
        await bench.channel.channel_ready()
        await bench.back_off.advance(1)
        await loop.knowledge.rebuilt.wait()
        await bench.clock.asleep()
        assert loop.last_fault == ""

    async def test_goes_on_where_it_was_when_the_router_comes_back(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 200)
        router.gate, router.gate_after = asyncio.Event(), 20
        loop = await bench.evaluator(router, attempts=1)
        bench.poll(loop)
        await router.at_gate.wait()
        await router.stop()
        await bench.back_off.asleep()
        assert len(router.scores) == 16
        router.gate.set()
        await router.start()
        assert bench.channel is not None
        await bench.channel.channel_ready()
        await bench.back_off.advance(1)
        await bench.clock.asleep()
        assert loop.reason == "goes on with an evaluation that was cut short"
        assert router.open_directives() == {"extraction": ["L2"]}
        assert len(router.scores) == len({score.sample_id for score in router.scores}) == 80
        assert loop.evaluations == 1

    async def test_backs_off_further_with_each_fault(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.faults["GetEvaluationPlan"] = [DOWN] * 3
        loop = await bench.evaluator(router)
        bench.poll(loop)
        for seconds in (1, 2, 4):
            await bench.back_off.asleep()
            await bench.back_off.advance(seconds - 0.1)
            assert await bench.backs_off()
            await bench.back_off.advance(0.1)
        await loop.knowledge.rebuilt.wait()
        assert bench.back_off.monotonic() == 7.0

    async def test_a_plan_that_makes_no_sense_is_a_fault_not_the_end(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2", floor=1.5)
        router = await bench.router([target])
        router.serve("extraction", 8)
        loop = await bench.evaluator(router)
        bench.poll(loop)
        await bench.back_off.asleep()
        assert loop.last_fault.startswith("INTERNAL")
        target.floor = 0.95
        await bench.back_off.advance(1)
        await bench.clock.asleep()
        assert loop.evaluations == 1
        assert loop.last_fault == ""


async def test_counts_what_it_did(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 80)
    loop = await bench.evaluator(router, run_samples=200)
    await bench.evaluate(loop)
    text = generate_latest(bench.metrics.registry).decode()
    for line in (
        'pith_evaluator_ended_evaluations_total{how="completed"} 1.0',
        'pith_evaluator_examined_samples_total{result="scored"} 80.0',
        "pith_evaluator_generated_answers_total 80.0",
        "pith_evaluator_energy_joules_total 160.0",
        "pith_evaluator_energy_unknown_answers_total 0.0",
        'pith_evaluator_quality_bound_ratio{directive="L2",model="demo@abc",task="extraction"} 0.954',
    ):
        assert line in text


async def test_one_evaluation_at_a_time(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 8)
    loop = await bench.evaluator(router)
    assert loop.start() is loop.start("arithmetic")


async def polls(bench: Bench, count: int, seconds: float) -> None:
    """Lets the evaluator look so many times more, `seconds` apart."""
    for _ in range(count):
        await bench.clock.asleep()
        await bench.clock.advance(seconds)
    await bench.clock.asleep()
