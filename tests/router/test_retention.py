"""What was said is gone when it should be: after its time, and when its tenant wants it, wherever it waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from pith.router.v1 import access_pb2, access_pb2_grpc, feedback_pb2, generation_pb2

from common.errors import from_rpc_error
from router import retention
from router.convert import timestamp
from router.ledger import Record
from router.retention import SWEEP_SECONDS, Erased, Retention
from router.store.database import StoreUnavailable
from tests.router.fake_engine import IDENTITY, FakeEngine, answer
from tests.router.running import Running, ask, running

pb: Any = access_pb2
DAY = 24 * 3600.0
SAID, REFERENCE, ANSWERED, COMMENT = "said-by-a-user", "known-to-a-user", "answered-to-a-user", "thought-by-a-user"
TEXTS = (SAID, REFERENCE, ANSWERED, COMMENT)


@asynccontextmanager
async def sampling(folder: Path, engine: FakeEngine, tenants: str = "acme", **settings: Any) -> AsyncIterator[Running]:
    """Keeps all of the tenants' requests as samples."""
    engine.script = answer(ANSWERED)
    async with running(folder, {"e1": engine}, **settings) as router:
        for tenant in tenants.split():
            await router.policy(name=tenant, tenant=tenant, sample_share=1.0, grader="exact")
        yield router


async def converse(router: Running, request_id: str = "r1", tenant: str = "acme") -> None:
    """One request and its rating, both written to the database."""
    await router.generation.Generate(ask(SAID, request_id=request_id, tenant=tenant, reference=REFERENCE))
    rating = generation_pb2.RateAnswerRequest(request_id=request_id, tenant=tenant, rating=1.0, comment=COMMENT)
    await router.generation.RateAnswer(rating)
    await router.router.ledger.flush()


async def on_disk(router: Running) -> list[str]:
    """Which of the texts the database holds."""
    database = router.router._database
    async with database.reading() as connection:
        dump = await connection.run_sync(
            lambda sync: [
                list(sync.exec_driver_sql(f"SELECT * FROM {table}")) for table in ("samples", "answers", "ratings")
            ]
        )
    return [text for text in TEXTS if text in str(dump)]


async def drawn(router: Running) -> int:
    reply = await router.feedback.DrawSamples(
        feedback_pb2.DrawSamplesRequest(model=IDENTITY, task="qa", directives=["L1"], count=10, evaluator="e")
    )
    return len(reply.samples)


async def waiting(router: Running) -> int:
    plan = await router.feedback.GetEvaluationPlan(feedback_pb2.GetEvaluationPlanRequest())
    return max((target.samples_waiting for target in plan.targets), default=0)


def access(router: Running) -> Any:
    return access_pb2_grpc.AccessStub(router.channel)


async def erase(router: Running, tenant: str = "acme", **fields: Any) -> tuple[int, int]:
    reply = await access(router).EraseTenantText(pb.EraseTenantTextRequest(tenant=tenant, **fields))
    return reply.samples, reply.comments


async def test_text_is_kept_for_its_days_and_not_longer(tmp_path: Path, engine: FakeEngine) -> None:
    async with sampling(tmp_path, engine, sample_days=2) as router:
        keeper = router.router._retention
        await converse(router)
        await router.clock.advance(2 * DAY)
        assert await keeper.sweep() == Erased(0, 0)
        assert await on_disk(router) == [*TEXTS] and await waiting(router) == 1
        await router.clock.advance(1)
        await converse(router, "r2")
        assert await keeper.sweep() == Erased(1, 1)
        assert await on_disk(router) == [*TEXTS], "what is younger stays"
        assert (await waiting(router), await drawn(router)) == (1, 1)
        await router.clock.advance(2 * DAY + 1)
        assert await keeper.sweep() == Erased(1, 1)
        assert await on_disk(router) == []
        assert (await waiting(router), await drawn(router)) == (0, 0)
        report = await router.report()
        assert report.total.requests == 2, "the ledger stays"


async def test_a_router_sweeps_by_itself(tmp_path: Path, engine: FakeEngine) -> None:
    async with sampling(tmp_path, engine, sample_days=1) as router:
        await converse(router)
        for _ in range(2):
            await router.clock.advance(DAY)
        while await on_disk(router):
            await router.clock.advance(SWEEP_SECONDS)


async def test_with_no_days_set_text_is_kept_for_ever(tmp_path: Path, engine: FakeEngine) -> None:
    async with sampling(tmp_path, engine, sample_days=0) as router:
        await converse(router)
        await router.clock.advance(40_000 * DAY)
        assert await router.router._retention.sweep() == Erased(0, 0)
        assert await on_disk(router) == [*TEXTS]


async def test_a_sweep_goes_on_until_all_batches_are_done(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    async with sampling(tmp_path, engine) as router:
        for n in range(5):
            await converse(router, f"r{n}")
        await router.clock.advance(1)
        assert await erase(router) == (5, 5)


async def test_sweeping_outlives_an_outage(tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sampling(tmp_path, engine) as router:
        sweeps = []

        async def sweep(self: Retention) -> Erased:
            sweeps.append(self)
            raise StoreUnavailable("scripted") if len(sweeps) == 1 else RuntimeError("scripted")

        monkeypatch.setattr(Retention, "sweep", sweep)
        while len(sweeps) < 3:
            await router.clock.advance(SWEEP_SECONDS)


async def test_an_erased_tenants_text_is_gone_and_no_other_tenants(tmp_path: Path, engine: FakeEngine) -> None:
    async with sampling(tmp_path, engine, "acme other") as router:
        await converse(router)
        await router.clock.advance(1)
        assert await erase(router, "nobody") == (0, 0)
        await converse(router, tenant="other")
        assert await erase(router) == (1, 1)
        assert await erase(router) == (0, 0), "a second time there is nothing left"
        assert await on_disk(router) == [*TEXTS]
        await router.clock.advance(1)
        assert await erase(router, "other") == (1, 1)
        assert await on_disk(router) == []
        assert await drawn(router) == 0


async def test_only_what_is_from_before_is_erased(tmp_path: Path, engine: FakeEngine) -> None:
    async with sampling(tmp_path, engine) as router:
        await converse(router)
        await router.clock.advance(10)
        before = timestamp(router.clock.now())
        await converse(router, "r2")
        await router.clock.advance(10)
        assert await erase(router, before=before) == (1, 1)
        assert await drawn(router) == 1
        for request, field in (
            (pb.EraseTenantTextRequest(), "tenant"),
            (pb.EraseTenantTextRequest(tenant="t" * 129), "tenant"),
            (pb.EraseTenantTextRequest(tenant="acme", before=Timestamp(seconds=1 << 60)), "before"),
            (pb.EraseTenantTextRequest(tenant="acme", before=Timestamp(seconds=before.seconds + 11)), "before"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await access(router).EraseTenantText(request)
            error = from_rpc_error(refused.value)
            assert (error.code, error.violations[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


async def test_what_waits_in_an_outbox_never_appears(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One router serves while it cannot write; another erases; then the first, or its successor, writes."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shared = {"database_url": f"sqlite:///{tmp_path / 'router.db'}"}
    async with (
        sampling(here, engine, "acme other", **shared) as first,
        running(there, {"e1": engine}, **shared) as second,
    ):
        write = first.router.ledger._write

        async def away(records: list[Record]) -> None:
            raise StoreUnavailable("scripted")

        first.router.ledger._write = away
        await converse(first)
        await converse(first, tenant="other")
        assert SAID in "".join(path.read_text() for path in sorted(here.glob("outbox*"))), "in the outbox"
        await second.clock.advance(1)
        assert await erase(second) == (0, 0)
        first.router.ledger._write = write
        assert await first.router.ledger.flush()
        async with first.router._database.reading() as connection:
            rows = await connection.run_sync(
                lambda sync: {
                    (table, row[0])
                    for table, text in (("samples", "turns"), ("ratings", "comment"))
                    for row in sync.exec_driver_sql(f"SELECT tenant FROM {table} WHERE {text} NOT IN ('', '[]')")
                }
            )
        assert rows == {("samples", "other"), ("ratings", "other")}
        await first.clock.advance(1)
        assert (await first.report()).total.requests == 2, "both are billed"


async def test_kept_answers_are_forgotten_here_at_once_and_on_other_routers_soon(
    tmp_path: Path, engine: FakeEngine
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shared = {"database_url": f"sqlite:///{tmp_path / 'router.db'}"}

    async def repeated(router: Running, request_id: str, tenant: str = "acme") -> bool:
        """Whether the answer is kept; its id stays taken."""
        try:
            reply = await router.generation.Generate(ask(SAID, request_id=request_id, tenant=tenant))
        except grpc.aio.AioRpcError as error:
            assert from_rpc_error(error).reason == "REQUEST_ANSWERED"
            return False
        assert reply.started.replayed
        return True

    async with sampling(here, engine, **shared) as first, running(there, {"e1": engine}, **shared) as second:
        for router, request_id in ((first, "a"), (second, "b")):
            for tenant in ("acme", "other"):
                await router.generation.Generate(ask(SAID, request_id=request_id, tenant=tenant))
            await router.clock.advance(1)
            assert await repeated(router, request_id)
        await erase(first)
        assert not await repeated(first, "a")
        assert await repeated(first, "a", "other")
        while await repeated(second, "b"):
            pass
        assert await repeated(second, "b", "other")
        await first.generation.Generate(ask(SAID, request_id="c"))
        assert await repeated(first, "c"), "what is said later is kept"


async def test_an_erasure_that_was_cut_short_is_finished_by_the_next_sweep(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampling(tmp_path, engine) as router:
        await converse(router)
        await router.clock.advance(1)

        async def cut(*arguments: Any) -> Erased:
            raise StoreUnavailable("scripted")

        with monkeypatch.context() as patched:
            patched.setattr("router.services.access.erase", cut)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await erase(router)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await router.router._retention.sweep() == Erased(1, 1)
        assert await on_disk(router) == []


async def test_an_evaluators_answer_to_a_sample_erased_meanwhile_is_not_kept(
    tmp_path: Path, engine: FakeEngine
) -> None:
    async with sampling(tmp_path, engine) as router:
        await converse(router)
        reply = await router.feedback.DrawSamples(
            feedback_pb2.DrawSamplesRequest(model=IDENTITY, task="qa", directives=["L1"], count=1, evaluator="e")
        )
        await router.clock.advance(1)
        await erase(router)
        scores = feedback_pb2.SampleScores(
            sample_id=reply.samples[0].sample_id,
            scores=[
                feedback_pb2.Score(
                    directive="L1", directive_revision=1, quality=1.0, baseline_quality=1.0, judge="grader:exact"
                )
            ],
            answers=[feedback_pb2.Answer(directive="L1", directive_revision=1, text=ANSWERED, output_tokens=3)],
        )
        await router.feedback.ReportQuality(feedback_pb2.ReportQualityRequest(evaluator="e", scores=[scores]))
        assert await on_disk(router) == []
        listed = await router.feedback.ListScores(feedback_pb2.ListScoresRequest())
        assert [score.score.quality for score in listed.scores] == [1.0], "the score holds no text"
