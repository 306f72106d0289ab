"""One evaluation, against a router with a seeded coin: what opens, what closes, and what it costs to know."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pith.common.v1 import energy_pb2
from structlog.testing import capture_logs

from common.errors import FieldViolation, invalid_argument, resource_exhausted, unavailable
from common.quality.bound import Cell
from tests.evaluator.bench import Bench
from tests.evaluator.fake_router import MODEL, RIGHT_IN_FEW_WORDS, FakeTarget, targets


class TestDecisions:
    async def test_opens_what_keeps_quality_and_closes_what_does_not(self, bench: Bench) -> None:
        router = await bench.router(targets("arithmetic", "extraction"), right=RIGHT_IN_FEW_WORDS)
        router.serve("arithmetic", 300)
        router.serve("extraction", 300)
        loop = await bench.evaluator(router)
        events = await bench.evaluate(loop)
        assert router.open_directives() == {"extraction": ["L2"]}
        assert any(event.startswith("extraction/L2 opened: bound 0.95") for event in events)
        assert any(event.startswith("arithmetic/L2 closed: share at most") for event in events)
        assert any(event.startswith("arithmetic/L1 closed") for event in events)

    async def test_spends_few_generations(self, bench: Bench) -> None:
        router = await bench.router(targets("arithmetic", "extraction"), right=RIGHT_IN_FEW_WORDS)
        router.serve("arithmetic", 300)
        router.serve("extraction", 300)
        await bench.evaluate(await bench.evaluator(router))
        # 74 pairs without a loss open a floor of 0.95, rounded up to a batch. L1 is not tried under an open L2, and
        # every question was served at L0.
        assert router.generations["extraction", "L2"] == 80
        assert router.generations["extraction", "L1"] == 0
        assert router.generations["arithmetic", "L2"] <= 16
        assert router.generations["arithmetic", "L0"] == router.generations["extraction", "L0"] == 0

    async def test_generates_the_baseline_where_a_directive_was_served(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 8, directive="L2")
        await bench.evaluate(await bench.evaluator(router))
        assert router.generations == {("extraction", "L0"): 8}
        assert len(router.scores) == 8

    async def test_generated_answers_are_kept_for_the_next_directive(self, bench: Bench) -> None:
        router = await bench.router(targets("arithmetic"), right=RIGHT_IN_FEW_WORDS)
        router.serve("arithmetic", 40, directive="L2")
        await bench.evaluate(await bench.evaluator(router))
        assert router.generations["arithmetic", "L2"] == 0
        # L1 was judged on the same questions, with the baselines that L2 had needed.
        assert router.generations["arithmetic", "L0"] == len({s.sample_id for s in router.scores})

    async def test_asks_as_the_user_was_served(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 8)
        await bench.evaluate(await bench.evaluator(router))
        assert len({request.request_id for request in router.generation_requests}) == 8
        for request in router.generation_requests:
            sample = router.samples[request.evaluation.sample_id].message
            assert request.evaluation.directive == "L2"
            assert (request.messages, request.sampling, request.limits) == (
                sample.messages,
                sample.sampling,
                sample.limits,
            )
            assert request.reference == ""

    async def test_never_exceeds_the_budget(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("listing", "L2")], right={("listing", "L2"): 0.96})
        router.serve("listing", 300)
        loop = await bench.evaluator(router, run_samples=50)
        await bench.evaluate(loop)
        assert len(router.scores) == 50
        await bench.evaluate(loop)
        assert len(router.scores) == 100

    async def test_one_task_alone(self, bench: Bench) -> None:
        router = await bench.router(targets("arithmetic", "extraction"))
        router.serve("arithmetic", 8)
        router.serve("extraction", 8)
        await bench.evaluate(await bench.evaluator(router), task="extraction")
        assert {score.cell.task for score in router.scores} == {"extraction"}

    async def test_an_absolute_floor_is_held_against_quality_itself(self, bench: Bench) -> None:
        target = FakeTarget("listing", "L2", floor=None, absolute_floor=0.8)
        router = await bench.router([target], right={("listing", "L2"): 0.3, ("listing", "L0"): 0.3})
        router.serve("listing", 100)
        events = await bench.evaluate(await bench.evaluator(router))
        assert "listing/L2 closed: its mean quality is below 0.800" in events


class TestDrift:
    async def test_a_drop_withdraws_the_directive_at_once_and_then_closes_it(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 700)
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        assert router.open_directives() == {"extraction": ["L2"]}

        await bench.clock.advance(3600)
        router.right["extraction", "L2"] = 0.2
        router.serve("extraction", 100, directive="L2")
        events = await bench.evaluate(loop)
        assert any(event.startswith("extraction/L2 withdrawn: quality has") for event in events)
        assert router.withdrawn == [("extraction", "L2")]
        assert not any(report.bounds for report in router.reports if report.withdrawals)
        assert router.open_directives() == {}
        assert loop.knowledge.estimates.drift_alarms(Cell(MODEL, "extraction", "L2")) == 1
        # It was seen in what was served since, whatever waits from before, and the rest is there for the next draw.
        late = set(list(router.samples)[700:])
        assert {score.sample_id for score in router.scores[80:]} <= late
        assert router.leased() == 0

        # What becomes of the directive is judged by what is served from then on, after a restart as well.
        await bench.clock.advance(3600)
        router.serve("extraction", 50, directive="L2")
        events = await bench.evaluate(await bench.evaluator(router))
        assert any(event.startswith("extraction/L2 closed") for event in events)
        later = set(list(router.samples)[800:])
        assert {score.sample_id for score in router.scores} & later
        assert {score.sample_id for score in router.scores[80:]} <= late | later

    async def test_an_open_directive_that_holds_is_looked_at_and_left(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 100)
        loop = await bench.evaluator(router, maintenance_samples=6)
        await bench.evaluate(loop)
        await bench.clock.advance(3600)
        router.serve("extraction", 20, directive="L2")
        await bench.evaluate(loop)
        # Spread over all that was served since, not its beginning.
        looked_at = [score.sample_id for score in router.scores[80:]]
        assert len(looked_at) == 6
        assert min(looked_at) >= "extraction-00100" and sorted(looked_at) != list(router.samples)[100:106]
        assert router.open_directives() == {"extraction": ["L2"]}

    async def test_an_edited_directive_is_judged_anew(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2")
        router = await bench.router([target])
        router.serve("extraction", 80)
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        target.revision = 2
        router.right["extraction", "L2"] = 0.0
        await bench.evaluate(loop)
        bound = router.bounds["extraction", "L2"]
        assert bound.directive_revision == 2 and bound.upper < 0.95
        assert router.withdrawn == []

    async def test_answers_of_a_directive_that_is_edited_meanwhile_are_not_scored(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2")
        router = await bench.router([target])
        router.serve("extraction", 8)
        router.gate = asyncio.Event()
        run = asyncio.create_task(bench.evaluate(await bench.evaluator(router)))
        await router.at_gate.wait()
        target.revision = 2
        router.gate.set()
        assert "extraction/L2 was edited meanwhile: 8 samples left unscored" in await run
        assert router.scores == []


class TestUnscored:
    async def test_a_grader_without_a_judge_costs_nothing(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("poetry", "L2", grader="beauty")])
        router.serve("poetry", 20)
        events = await bench.evaluate(await bench.evaluator(router))
        assert events[0] == "left out: no judge for grader 'beauty'"
        assert router.generations == {}

    async def test_a_reference_that_cannot_grade_costs_nothing(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 3, reference="seven")
        router.serve("arithmetic", 5)
        events = await bench.evaluate(await bench.evaluator(router))
        assert "arithmetic/L2: 3 samples unscored: reference must hold a number" in events
        assert router.generations["arithmetic", "L2"] == 5
        assert len(router.scores) == 5

    async def test_waits_as_long_as_a_full_engine_asks_for(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 1)
        router.faults["Generate"] = [resource_exhausted("QUEUE_FULL", "all engines are full", 7.0)]
        run = asyncio.create_task(bench.evaluate(await bench.evaluator(router)))
        await bench.back_off.asleep()
        await bench.back_off.advance(6.9)
        assert await bench.backs_off()
        await bench.back_off.advance(0.1)
        await run
        assert len(router.scores) == 1

    async def test_gives_a_sample_up_after_some_tries(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 8)
        no_engine = unavailable("NO_ENGINE", "no engine serves the model")
        router.faults["Generate"] = [no_engine] * 3
        loop = await bench.evaluator(router, concurrency=1, attempts=3)
        run = asyncio.create_task(bench.evaluate(loop))
        for seconds in (1, 2):
            await bench.back_off.asleep()
            await bench.back_off.advance(seconds)
        events = await run
        assert any(e.startswith("arithmetic/L2: 1 samples unscored: no answer: UNAVAILABLE") for e in events)
        assert len(router.scores) == 7

    async def test_ends_when_a_whole_batch_came_to_nothing(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 100)
        router.faults["Generate"] = [unavailable("NO_ENGINE", "no engine")] * 100
        await bench.evaluate(await bench.evaluator(router, attempts=1))
        assert len(router.faults["Generate"]) == 92
        assert router.reports == []

    async def test_an_answer_under_another_directive_is_refused(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 8)
        generate = router._generate

        def serve_l0(request: Any) -> Any:
            reply = generate(request)
            reply.started.decision.directive = "L0"
            return reply

        router._generate = serve_l0  # type: ignore[method-assign]
        events = await bench.evaluate(await bench.evaluator(router))
        assert any("the router served 'L0' where 'L2' was asked for" in event for event in events)
        assert router.scores == []

    async def test_what_is_unscored_is_a_warning_that_says_of_what(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("arithmetic", "L2")])
        router.serve("arithmetic", 3, reference="seven")
        with capture_logs() as logs:
            await bench.evaluate(await bench.evaluator(router))
        (warning,) = [line for line in logs if line["log_level"] == "warning"]
        assert "3 samples unscored: reference must hold a number" in warning["event"]
        assert (warning["task"], warning["directive"], warning["grader"]) == ("arithmetic", "L2", "numeric")


class TestJudges:
    """Two policies name different graders for one task: one of them counts."""

    async def test_samples_of_another_grader_cost_nothing_and_change_nothing(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 80)
        router.targets[0].grader = "exact"
        router.serve("extraction", 40)
        router.targets[0].grader = "numeric"
        loop = await bench.evaluator(router)
        events = await bench.evaluate(loop)
        assert router.open_directives() == {"extraction": ["L2"]}
        assert router.generations["extraction", "L2"] == len(router.scores) < 80
        assert all(int(score.sample_id.rpartition("-")[2]) < 80 for score in router.scores)
        assert {score.score.judge for score in router.scores} == {"grader:numeric@2"}
        assert any("unscored: their grader is exact, and numeric is what counts for the task" in e for e in events)

    async def test_what_one_judge_found_outlasts_another(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2")
        router = await bench.router([target])
        router.serve("extraction", 100)
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        before = router.bounds["extraction", "L2"]
        await bench.clock.advance(3600)
        target.grader = "exact"
        router.right["extraction", "L2"] = 0.0
        router.serve("extraction", 16)
        with capture_logs() as logs:
            await bench.evaluate(loop)
        assert (router.bounds["extraction", "L2"].judge, router.open_directives()) == ("grader:exact@1", {})
        (warning,) = [line for line in logs if line["event"].startswith("another judge")]
        assert warning["log_level"] == "warning"
        assert (warning["task"], warning["directive"]) == ("extraction", "L2")
        assert (warning["judge"], warning["earlier_judges"]) == ("grader:exact@1", ["grader:numeric@2"])

        target.grader = "numeric"
        for evaluator in (loop, await bench.evaluator(router)):
            with capture_logs() as logs:
                await evaluator.knowledge.ensure()
                await evaluator.knowledge.refresh()
            bound = evaluator.knowledge.estimates.bound(Cell(MODEL, "extraction", "L2"))
            assert bound is not None
            assert (bound.judge, bound.samples, bound.lower) == ("grader:numeric@2", before.samples, before.lower)
            assert logs == []

    async def test_a_grader_that_is_changed_meanwhile_leaves_the_batch_unscored(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2")
        router = await bench.router([target])
        router.serve("extraction", 8)
        router.gate = asyncio.Event()
        run = asyncio.create_task(bench.evaluate(await bench.evaluator(router)))
        await router.at_gate.wait()
        target.grader = "exact"
        router.gate.set()
        assert "extraction/L2 was edited meanwhile: 8 samples left unscored" in await run
        assert router.scores == []


class TestSpending:
    async def test_is_the_sum_of_generated_answers(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 3)
        router.serve("extraction", 2, directive="L2")
        loop = await bench.evaluator(router)
        last = [progress async for progress in loop.start().progress.watch()][-1]
        assert last.done
        assert last.energy_joules == loop.spending.energy_joules == pytest.approx(3 * 2.0 + 2 * 10.0)
        assert last.carbon_grams == loop.spending.carbon_grams == pytest.approx(2.6 + 5 * 0.5)

    async def test_grams_under_two_signals_are_never_added(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")])
        router.serve("extraction", 3, directive="L2")
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        assert loop.spending.carbon_grams == pytest.approx(3 * 1.5)
        router.signal_kind = energy_pb2.SIGNAL_KIND_MARGINAL
        router.serve("extraction", 2, directive="L2")
        await bench.evaluate(loop)
        # Of the newest answers' signal alone; energy has none.
        assert loop.spending.carbon_grams == pytest.approx(2 * 1.5)
        assert loop.spending.energy_joules == pytest.approx(5 * 10.0)
        # Under no signal that is known, carbon is unknown.
        router.signal_kind = energy_pb2.SIGNAL_KIND_UNSPECIFIED
        router.serve("extraction", 1, directive="L2")
        await bench.evaluate(loop)
        assert loop.spending.carbon_grams == pytest.approx(2 * 1.5)

    async def test_is_unknown_where_no_figure_came(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2")], energy_known=False)
        router.serve("extraction", 8)
        loop = await bench.evaluator(router)
        last = [progress async for progress in loop.start().progress.watch()][-1]
        assert loop.spending.answers == 8
        assert (last.energy_joules, last.carbon_grams) == (None, None)
        assert (loop.spending.energy_joules, loop.spending.carbon_grams) == (None, None)


async def test_progress_shrinks_when_a_decision_settles_early(bench: Bench) -> None:
    router = await bench.router([FakeTarget("extraction", "L2")])
    router.serve("extraction", 150)
    loop = await bench.evaluator(router)
    seen = [progress async for progress in loop.start().progress.watch()]
    assert seen[0].samples_planned == 150
    assert [p.samples_done for p in seen] == sorted(p.samples_done for p in seen)
    assert seen[-1].samples_done == seen[-1].samples_planned == 80


class TestNarrowing:
    """A directive that is open is sampled on for as long as that pays."""

    async def test_goes_on_beyond_the_verdict_and_the_budget_and_no_further(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=130)])
        router.serve("extraction", 300)
        loop = await bench.evaluator(router, run_samples=90)
        planned = [progress.samples_planned async for progress in loop.start().progress.watch()]
        assert len(router.scores) == 130
        # From the verdict on, at the tenth batch, what is planned is what is done.
        assert set(planned[10:]) == {130}
        await bench.evaluate(loop)
        assert len(router.scores) == 130

    async def test_what_is_undecided_comes_before(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=150), FakeTarget("listing", "L2")])
        router.serve("extraction", 200)
        router.serve("listing", 200)
        await bench.evaluate(await bench.evaluator(router))
        tasks = [score.cell.task for score in router.scores]
        assert tasks[160:] == ["extraction"] * 70
        assert tasks[:160].count("listing") == 80

    async def test_takes_what_was_served_before_where_nothing_is_fresh(self, bench: Bench) -> None:
        """As after a fault: what was reported just before it leaves nothing to look at."""
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=130)])
        router.serve("extraction", 300)
        router.faults["ReportQuality"] = [None] * 12 + [resource_exhausted("DATABASE", "full", 1.0)]
        loop = await bench.evaluator(router, attempts=1)
        with pytest.raises(Exception, match="full"):
            await bench.evaluate(loop)
        assert len(router.scores) == 96
        await bench.clock.advance(7 * 3600)
        await bench.evaluate(await bench.evaluator(router))
        assert len(router.scores) == 130

    async def test_calls_for_an_evaluation_of_its_own(self, bench: Bench) -> None:
        target = FakeTarget("extraction", "L2")
        router = await bench.router([target])
        router.serve("extraction", 300)
        loop = await bench.evaluator(router, maintenance_samples=0)
        bench.poll(loop)
        await bench.clock.asleep()
        assert len(router.scores) == 80
        await bench.clock.advance(13 * 3600)
        await bench.clock.asleep()
        assert len(router.scores) == 80
        target.worthwhile = 120
        await bench.clock.advance(3600)
        await bench.clock.asleep()
        assert len(router.scores) == 120

    async def test_ends_where_the_rest_is_held_by_another(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=250)])
        router.serve("extraction", 300)
        held = list(router.samples.values())[100:]
        for sample in held:
            sample.leased_until = bench.clock.now() + timedelta(hours=6)
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        assert len(router.scores) == 100
        await bench.clock.advance(7 * 3600)
        await bench.evaluate(loop)
        assert len(router.scores) == 250

    async def test_two_side_by_side_score_no_more_than_pays_but_for_a_batch(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=150)])
        router.serve("extraction", 300)
        loops = [await bench.evaluator(router, name=name) for name in ("one", "two")]
        async with asyncio.timeout(60):
            await asyncio.gather(*map(bench.evaluate, loops))
        assert 150 <= len(router.scores) <= 150 + 8
        assert len({score.sample_id for score in router.scores}) == len(router.scores)

    async def test_ends_where_answers_cannot_be_had(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=250)])
        router.serve("extraction", 300)
        loop = await bench.evaluator(router)
        await bench.evaluate(loop)
        assert len(router.scores) == 250
        router.targets[0].worthwhile = 290
        refused = invalid_argument([FieldViolation("messages", "too long")])
        router.faults["Generate"] = [refused] * 1000
        before = router.generations.total()
        async with asyncio.timeout(60):
            await bench.evaluate(loop)
        assert (len(router.scores), router.generations.total()) == (250, before)
        assert 1000 - len(router.faults["Generate"]) <= 2 * 8

    async def test_ends_where_references_grade_nothing_though_their_leases_end_meanwhile(self, bench: Bench) -> None:
        router = await bench.router([FakeTarget("extraction", "L2", worthwhile=250)])
        router.serve("extraction", 100)
        router.serve("extraction", 200, reference="no number")
        draw, draws = router.DrawSamples, 0

        async def slow(request: Any, context: Any) -> Any:
            nonlocal draws
            draws += 1
            await bench.clock.advance(600)
            return await draw(request, context)

        router.DrawSamples = slow  # type: ignore[method-assign]
        await router.stop()
        await router.start()
        loop = await bench.evaluator(router, lease_seconds=3600.0)
        async with asyncio.timeout(60):
            await bench.evaluate(loop)
        # 200 are refused once, and some of them again before the last of them were: no more often than all that wait.
        assert 0 < len(router.scores) <= 100
        assert draws <= 60
