"""The loop of callers with engines of their own, and users' ratings: counted once, wherever and whenever they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import (
    directives_pb2,
    directives_pb2_grpc,
    generation_pb2,
    policies_pb2,
    reports_pb2,
)

from common.clock import ManualClock
from router.store.database import Database, StoreUnavailable
from router.store.tables import ratings
from tests.postgres import on_both_databases
from tests.router.fake_engine import IDENTITY, FakeEngine
from tests.router.outcome_reports import (
    DAY_SECONDS,
    USAGE,
    decide,
    drawn,
    outcome,
    rating,
    refused,
    rows,
)
from tests.router.running import Running, ask, running

PEOPLE = {
    "alice": ("client", "acme"),
    "eve": ("client", "rival"),
    "judge": ("evaluator", "pith"),
    "root": ("admin", "pith"),
}


def as_(name: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {name}"),)


@pytest.fixture
async def guarded(tmp_path: Path, engine: FakeEngine) -> AsyncIterator[Running]:
    """A router that asks for tokens; its engine need not be reached yet."""
    path = tmp_path / "tokens.json"
    tokens = [
        {"sha256": sha256(name.encode()).hexdigest(), "role": role, "tenant": tenant, "name": name}
        for name, (role, tenant) in PEOPLE.items()
    ]
    path.write_text(json.dumps(tokens))
    async with running(tmp_path, {"e1": engine}, ready=False, tokens_file=path) as router:
        yield router


def metric(router: Running, name: str, *labels: str) -> float:
    values = {
        tuple(sample.labels.values()): sample.value
        for family in router.router.metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    return values.get(labels, 0.0)


@on_both_databases
async def test_an_outcome_enters_the_ledger_as_an_answer_of_ours_does(router: Running) -> None:
    await router.policy()
    await router.open("L1")
    decided_at = router.clock.now()
    decided = await decide(router, request_id="r1")
    await router.clock.advance(600)
    await router.generation.ReportOutcome(outcome(decided))
    (row,) = await rows(router)
    assert (row.tenant, row.request_id, row.task, row.model, row.engine) == ("acme", "r1", "qa", IDENTITY, "")
    assert (row.directive, row.directive_revision, row.reason, row.planned) == ("L1", 1, "planned", "L1")
    assert (row.policy, row.policy_revision, row.eligible, row.evaluation_sample_id) == ("acme-qa", 1, True, "")
    assert (row.prompt_tokens, row.cached_tokens, row.output_tokens) == (31, 8, 12)
    assert (row.energy_joules, row.energy_source, row.busy_seconds, row.seconds) == (20.0, "MEASURED", 2.0, 3.0)
    assert row.operational_grams == pytest.approx(20 / 3.6e6 * 1.5 * 360)
    assert row.embodied_grams == pytest.approx(0.002)
    assert (row.intensity_zone, row.finish_reason, row.seed) == ("TEST", "STOP", "")
    assert row.started_at == decided_at
    report = await router.report(reports_pb2.DIMENSION_DIRECTIVE)
    assert [(line.directive, line.requests, line.output_tokens) for line in report.rows] == [("L1", 1, 12)]
    assert report.total.energy_joules == 20.0


async def test_it_counts_the_carbon_of_the_hour_in_which_it_was_answered(tmp_path: Path, engine: FakeEngine) -> None:
    profile = tmp_path / "profile.csv"
    hours = "\n".join(f"{hour},{100 * (hour + 1)}" for hour in range(24))
    profile.write_text(f"# zone: TEST\nhour,g_per_kwh\n{hours}\n")
    async with running(tmp_path, {"e1": engine}, intensity=f"profile:{profile}") as router:
        decided = await decide(router)
        await router.clock.advance(5 * 3600)
        await router.generation.ReportOutcome(outcome(decided, seconds=2 * 3600))
        (row,) = await rows(router)
        assert row.intensity_g_per_kwh == 300


async def test_without_energy_there_is_no_carbon(router: Running) -> None:
    decided = await decide(router, request_id="r1")
    await router.generation.ReportOutcome(
        generation_pb2.ReportOutcomeRequest(decision_id=decided.decision_id, usage=USAGE)
    )
    (row,) = await rows(router)
    assert (row.energy_joules, row.energy_source, row.operational_grams, row.embodied_grams) == (None,) * 4
    assert (row.intensity_zone, row.finish_reason, row.seconds) == (None, "UNSPECIFIED", 0)
    report = await router.report()
    assert (report.total.requests, report.total.requests_without_energy) == (1, 1)


async def test_the_caller_says_which_model_answered(router: Running) -> None:
    await router.generation.ReportOutcome(outcome(await decide(router, request_id="r1"), model="theirs@beef"))
    await router.generation.ReportOutcome(outcome(await decide(router, request_id="r2", model="other@cafe")))
    assert [row.model for row in await rows(router)] == ["theirs@beef", "other@cafe"]


@on_both_databases
async def test_an_outcome_counts_once(router: Running) -> None:
    await router.policy()
    await router.open("L1")
    decided = await decide(router, request_id="r1")
    await asyncio.gather(*(router.generation.ReportOutcome(outcome(decided)) for _ in range(5)))
    await router.generation.ReportOutcome(outcome(decided, usage=text_pb2.Usage(output_tokens=999)))
    (row,) = await rows(router)
    assert row.output_tokens == 12
    assert metric(router, "pith_router_decisions_requests_total", "L1", "planned") == 1
    assert metric(router, "pith_router_energy_joules_total", "serving") == 20
    carbon = metric(router, "pith_router_carbon_grams_total", "operational", "serving", "average, direct")
    assert carbon == pytest.approx(0.003)


async def test_what_was_generated_under_the_same_id_is_not_billed_again(router: Running, engine: FakeEngine) -> None:
    decided = await decide(router, request_id="r1")
    await router.generation.Generate(ask(request_id="r1"))
    await router.generation.ReportOutcome(outcome(decided))
    (row,) = await rows(router)
    assert (row.engine, row.output_tokens) == ("e1", 2)
    assert metric(router, "pith_router_energy_joules_total", "serving") == 2

    await router.generation.ReportOutcome(outcome(await decide(router, request_id="r2")))
    error = await refused(router.generation.Generate(ask(request_id="r2")))
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
    assert len(engine.requests) == 1


async def test_what_outcomes_cost_guides_the_plan(router: Running) -> None:
    """L1 is dear at the caller's engine, so that the plan goes on without it there; of a model that our engines have,
    a caller teaches nothing."""
    await router.policy()
    for model in ("theirs@beef", IDENTITY):
        await router.open("L1", model=model)
        for number in range(60):
            decided = await decide(router, request_id=f"{model}-{number}", model=model, opt_out=number % 2 == 0)
            joules = 1.0 if number % 2 == 0 else 50.0
            energy = energy_pb2.Energy(joules=joules, source=energy_pb2.ENERGY_SOURCE_MEASURED)
            await router.generation.ReportOutcome(outcome(decided, energy=energy))
        assert (await decide(router, model=model)).decision.directive == "L1"
    await router.clock.advance(300)
    for model, directive in (("theirs@beef", "L0"), (IDENTITY, "L1")):
        await router.open("L1", model=model)
        assert (await decide(router, model=model)).decision.directive == directive


async def test_what_a_caller_tells_of_its_own_engine_spends_no_budget(router: Running) -> None:
    """Nobody can check it, and others' requests share the budget."""
    budget = policies_pb2.CarbonBudget(grams_per_day=0.004, when_spent=policies_pb2.WHEN_SPENT_REFUSE)
    await router.policy(carbon_budget=budget)
    await router.generation.ReportOutcome(outcome(await decide(router, request_id="r1")))
    await rows(router)
    await router.router._spending.refresh()
    await decide(router, request_id="r2")
    (row,) = await rows(router)
    assert row.operational_grams + row.embodied_grams > 0.004


async def test_a_native_directive_is_returned_as_the_templates_variables(router: Running) -> None:
    variables = Struct()
    variables.update({"enable_thinking": False})
    directive = directives_pb2.Directive(
        name="quick", placement=directives_pb2.PLACEMENT_NATIVE, template_variables=variables
    )
    await directives_pb2_grpc.DirectivesStub(router.channel).CreateDirective(
        directives_pb2.CreateDirectiveRequest(directive=directive, reason="test")
    )
    await router.policy(directives=["quick"])
    await router.open("quick")
    decided = await decide(router, text="Why?")
    assert decided.decision.directive == "quick"
    assert decided.template_variables == variables
    assert [message.content for message in decided.messages] == ["Why?"]


@on_both_databases
async def test_any_router_of_the_database_knows_the_decision(
    tmp_path: Path, engine: FakeEngine, database_url: str
) -> None:
    clock = ManualClock()
    second = {"outbox_path": tmp_path / "second.jsonl", "database_url": database_url, "clock": clock}
    async with (
        running(tmp_path, {"e1": engine}, clock=clock, database_url=database_url) as one,
        running(tmp_path, {"e1": engine}, **second) as other,
    ):
        await one.policy(sample_share=1.0, grader="exact")
        await one.open("L1")
        await other.router._keeper.refresh()  # as it does every second
        decided = await decide(one, request_id="r1", reference="x")
        await other.generation.ReportOutcome(outcome(decided, request=ask(reference="x")))
        await other.generation.RateAnswer(rating("r1", 1.0))
        await rows(other)
        await one.generation.ReportOutcome(outcome(decided, usage=text_pb2.Usage(output_tokens=999)))
        (row,) = await rows(one)
        assert (row.directive, row.output_tokens) == ("L1", 12)
        (sample,) = await drawn(one)
        assert list(sample.answers) == []
        await clock.advance(1)
        await one.generation.RateAnswer(rating("r1", 0.0))
        (kept,) = await rows(one, ratings)
        assert kept.rating == 0
    async with running(tmp_path, {}, clock=clock, database_url=database_url) as later:
        await later.generation.ReportOutcome(outcome(decided))
        assert len(await rows(later)) == 1


async def test_a_decision_is_forgotten_after_a_day(router: Running) -> None:
    decided = [await decide(router, request_id=f"r{n}") for n in range(2)]
    await router.clock.advance(DAY_SECONDS - 1)
    await router.generation.ReportOutcome(outcome(decided[0]))
    await router.clock.advance(1)
    error = await refused(router.generation.ReportOutcome(outcome(decided[1])))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert error.metadata == {"resource": "decision_id"}
    assert len(await rows(router)) == 1


async def test_a_tenants_decision_is_no_other_ones(guarded: Running) -> None:
    decided = await decide(guarded, as_("alice"), request_id="r1", model="theirs")
    error = await refused(guarded.generation.ReportOutcome(outcome(decided), metadata=as_("eve")))
    unknown = generation_pb2.ReportOutcomeRequest(decision_id="nonsense", usage=USAGE)
    same = await refused(guarded.generation.ReportOutcome(unknown, metadata=as_("eve")))
    assert error.code is grpc.StatusCode.NOT_FOUND
    assert (error.message, error.metadata) == (same.message, same.metadata)
    assert await rows(guarded) == []
    await guarded.generation.ReportOutcome(outcome(decided), metadata=as_("alice"))
    assert len(await rows(guarded)) == 1


async def test_an_admin_reports_for_every_tenant(guarded: Running) -> None:
    decided = await decide(guarded, as_("alice"), request_id="r1", model="theirs")
    await guarded.generation.ReportOutcome(outcome(decided), metadata=as_("root"))
    (row,) = await rows(guarded)
    assert row.tenant == "acme"


async def test_an_evaluators_decision_is_nobodys_bill(guarded: Running) -> None:
    purpose = generation_pb2.EvaluationPurpose(sample_id="s1", directive="L2")
    decided = await decide(guarded, as_("judge"), evaluation=purpose, model="theirs")
    assert decided.decision.reason == generation_pb2.DECISION_REASON_EVALUATION
    assert not decided.sample_wanted
    for call in (
        guarded.generation.ReportOutcome(outcome(decided), metadata=as_("judge")),
        guarded.generation.RateAnswer(rating(), metadata=as_("judge")),
    ):
        assert (await refused(call)).code is grpc.StatusCode.PERMISSION_DENIED
    await guarded.generation.ReportOutcome(outcome(decided), metadata=as_("root"))
    (row,) = await rows(guarded)
    assert (row.evaluation_sample_id, row.directive, row.reason) == ("s1", "L2", "evaluation")
    assert metric(guarded, "pith_router_energy_joules_total", "evaluation") == 20
    assert metric(guarded, "pith_router_energy_joules_total", "serving") == 0


@on_both_databases
async def test_the_last_rating_of_an_answer_counts(router: Running) -> None:
    await router.generation.Generate(ask(request_id="r1"))
    await router.generation.ReportOutcome(outcome(await decide(router, request_id="r2")))
    made = (await router.generation.Generate(ask())).started.request_id
    for request_id in ("r1", "r2", made):
        await router.generation.RateAnswer(rating(request_id, 1.0, comment="so-so,\nno: good"))
    await router.clock.advance(5)
    await router.generation.RateAnswer(rating("r1", 0.0))
    for _ in range(2):
        found = {row.request_id: (row.tenant, row.rating, row.comment) for row in await rows(router, ratings)}
        assert found == {
            "r1": ("acme", 0.0, ""),
            "r2": ("acme", 1.0, "so-so,\nno: good"),
            made: ("acme", 1.0, "so-so,\nno: good"),
        }
        await router.generation.RateAnswer(rating("r1", 0.0))
    assert {row.rated_by for row in await rows(router, ratings)} == {"local"}


@on_both_databases
async def test_answers_of_long_ago_are_rated_too(tmp_path: Path, engine: FakeEngine, database_url: str) -> None:
    settings: dict[str, Any] = {"remembered_requests": 0, "database_url": database_url}
    async with running(tmp_path, {"e1": engine}, **settings) as router:
        await router.generation.Generate(ask(request_id="r1"))
        await router.router.ledger.flush()
        await router.generation.RateAnswer(rating("r1"))
        assert len(await rows(router, ratings)) == 1


async def test_what_was_never_answered_cannot_be_rated(router: Running) -> None:
    await router.generation.Generate(ask(request_id="r1"))
    await decide(router, request_id="r2")
    rival = generation_pb2.RateAnswerRequest(request_id="r1", tenant="rival", rating=1)
    for call in (rating("r2"), rival):
        error = await refused(router.generation.RateAnswer(call))
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert await rows(router, ratings) == []


async def test_a_tenant_rates_its_own_answers(guarded: Running) -> None:
    decided = await decide(guarded, as_("alice"), request_id="r1", model="theirs")
    await guarded.generation.ReportOutcome(outcome(decided), metadata=as_("alice"))
    error = await refused(guarded.generation.RateAnswer(rating(), metadata=as_("eve")))
    assert error.code is grpc.StatusCode.PERMISSION_DENIED
    own = generation_pb2.RateAnswerRequest(request_id="r1", rating=0.5)
    assert (await refused(guarded.generation.RateAnswer(own, metadata=as_("eve")))).code is grpc.StatusCode.NOT_FOUND
    await guarded.generation.RateAnswer(own, metadata=as_("alice"))
    await guarded.clock.advance(1)
    await guarded.generation.RateAnswer(rating(value=0.25), metadata=as_("root"))
    (kept,) = await rows(guarded, ratings)
    assert (kept.tenant, kept.rating, kept.rated_by) == ("acme", 0.25, "root")


@on_both_databases
async def test_while_the_database_is_away_outcomes_and_ratings_wait_and_arrive_once(
    router: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await router.policy(sample_share=1.0, grader="exact")
    decided = [await decide(router, request_id=f"r{n}", reference="x") for n in range(3)]

    def away(_: Database) -> None:
        raise StoreUnavailable("scripted")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "writing", away)
        patch.setattr(Database, "reading", away)
        decided.append(await decide(router, request_id="r3", reference="x"))
        for one in decided:
            for _ in range(2):
                await router.generation.ReportOutcome(outcome(one, request=ask(reference="x")))
        for value in (1.0, 0.0):
            await router.generation.RateAnswer(rating("r0", value))
            await router.clock.advance(1)
        error = await refused(router.generation.RateAnswer(rating("unknown")))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DATABASE")
        assert not await router.router.ledger.flush()
    assert [row.request_id for row in await rows(router)] == ["r0", "r1", "r2", "r3"]
    assert [(row.request_id, row.rating) for row in await rows(router, ratings)] == [("r0", 0.0)]
    assert len(await drawn(router)) == 4
