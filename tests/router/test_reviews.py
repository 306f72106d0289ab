"""Service Reviews over gRPC: people get pairs of answers, blind, and what they choose is kept beside judges' scores."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pith.router.v1 import feedback_pb2, reviews_pb2

from common.clock import ManualClock
from common.quality.agreement import RatedScore
from common.quality.bound import Cell
from common.quality.pairwise import Comparison
from router.directives.compile import Turn
from router.ledger import Rating
from router.samples import Answer, Sample, Score, sample_id
from router.services.reviews import MAX_DRAWN_BYTES
from router.store.database import Database, StoreUnavailable
from router.store.erasure import ErasureRepository
from router.store.ledger import LedgerRepository
from router.store.quality import QualityRepository
from router.store.ratings import RatingRepository
from router.store.samples import SampleRepository
from tests.postgres import on_both_databases
from tests.router.admin_client import MODEL, AdminClient, faults, refused
from tests.router.ledger_entries import entry

pb: Any = reviews_pb2
JUDGE = "grader:numeric@2"
LONG, SHORT = "The long way round gives 4", "4"


@pytest.fixture
def reviews(client: AdminClient) -> Any:
    return client.reviews("evaluator")


async def score(
    database: Database,
    clock: ManualClock,
    names: Iterable[str],
    *,
    task: str = "sums",
    texts: tuple[str, str] = (LONG, SHORT),
    quality: float = 1.0,
    comparison: Comparison | None = None,
    judge: str = JUDGE,
    directives: tuple[str, ...] = ("L1",),
) -> None:
    """Samples with L0's answer and the directives', all scored."""
    names = list(names)
    plain = Sample(
        sample_id="", tenant="acme", model=MODEL, task=task, turns=(Turn("user", "2 + 2?"),), sampling_json="{}",
        limits_json="{}", reference="4", grader="numeric", served_at=clock.now(),
        answers=(Answer("L0", 1, texts[0], 9), *(Answer(name, 1, texts[1], 1) for name in directives)),
    )  # fmt: skip
    async with database.changing() as connection:
        await SampleRepository(connection).add_many([replace(plain, sample_id=name) for name in names])
        await QualityRepository(connection).add_scores(
            [
                Score(
                    Cell(MODEL, task, directive), 1, name, quality, 0.5 if comparison else 1.0, judge, clock.now(),
                    comparison,
                )
                for name in names
                for directive in directives
            ]
        )  # fmt: skip


async def draw(reviews: Any, count: int = 10, rater: str = "ann", **fields: Any) -> list[Any]:
    return list((await reviews.DrawReviews(pb.DrawReviewsRequest(rater=rater, count=count, **fields))).reviews)


async def choose(reviews: Any, review_id: str, choice: str, rater: str = "ann") -> None:
    request = pb.RecordReviewRequest(review_id=review_id, rater=rater, choice=pb.Choice.Value(f"CHOICE_{choice}"))
    await reviews.RecordReview(request)


async def reviewed(reviews: Any, page_size: int = 0) -> list[Any]:
    request, found = pb.ListReviewsRequest(page_size=page_size), []
    while True:
        reply = await reviews.ListReviews(request)
        found += reply.reviews
        request.page_token = reply.next_page_token
        if not request.page_token:
            return found


@on_both_databases
async def test_a_pair_is_shown_blind_and_the_choice_is_kept_for_the_directive(
    reviews: Any, database: Database, clock: ManualClock
) -> None:
    await score(database, clock, ["s1", "s2", "s3", "s4", "s5", "s6"], quality=0.0)
    drawn = await draw(reviews)
    assert len(drawn) == 6
    assert {field.name for field in pb.Review.DESCRIPTOR.fields} == {
        "review_id", "task", "messages", "first", "second",
    }  # fmt: skip
    for review in drawn:
        assert {review.first, review.second} == {LONG, SHORT}
        assert [(m.role, m.content) for m in review.messages] == [(2, "2 + 2?")]
        assert not any(word in str(review) for word in ("L0", "L1", "s1", MODEL))
    # The order is drawn, so that it tells nothing.
    assert len({review.first for review in drawn}) == 2
    expected = {}
    await clock.advance(60)
    for review, choice in zip(drawn, ("FIRST", "SECOND", "TIE") * 2, strict=True):
        await choose(reviews, review.review_id, choice)
        chosen = {"FIRST": review.first, "SECOND": review.second, "TIE": ""}[choice]
        expected[review.review_id] = {SHORT: 1.0, LONG: 0.0, "": 0.5}[chosen]
    found = await reviewed(reviews, page_size=4)
    assert sorted(one.preference for one in found) == sorted(expected.values())
    assert {(one.sample_id, one.rater) for one in found} == {(f"s{n}", "ann") for n in range(1, 7)}
    for one in found:
        assert one.cell == feedback_pb2.Cell(model=MODEL, task="sums", directive="L1")
        assert (one.score.judge, one.score.quality, one.score.baseline_quality) == (JUDGE, 0.0, 1.0)
        assert one.reviewed_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()
    assert await draw(reviews) == []


@on_both_databases
async def test_a_rater_goes_on_where_it_left_and_never_gets_a_pair_twice(
    reviews: Any, database: Database, clock: ManualClock
) -> None:
    await score(database, clock, [f"s{n}" for n in range(20)])
    first = await draw(reviews, 5)
    assert await draw(reviews, 5) == first
    for review in first[:2]:
        await choose(reviews, review.review_id, "TIE")
    await clock.advance(60)
    again = await draw(reviews, 5)
    assert again[:3] == first[2:]
    seen = {review.review_id for review in first}
    while again:
        for review in again:
            await choose(reviews, review.review_id, "TIE")
        seen |= {review.review_id for review in again}
        again = await draw(reviews, 5)
    assert len(seen) == 20
    samples = Counter(one.sample_id for one in await reviewed(reviews))
    assert len(samples) == 20 and set(samples.values()) == {1}
    # What one rater has seen, another may see too.
    assert len(await draw(reviews, 50, rater="bob")) == 20


@on_both_databases
async def test_two_raters_and_one_twice_at_once(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, [f"s{n}" for n in range(8)])
    pages = await asyncio.gather(*(draw(reviews, 8, rater=rater) for rater in ("ann", "bob", "ann", "bob", "ann")))
    assert all(len(page) == 8 for page in pages)
    ids = {rater: {r.review_id for page in pages[at::2] for r in page} for at, rater in enumerate(("ann", "bob"))}
    assert len(ids["ann"]) == len(ids["bob"]) == 8
    assert not ids["ann"] & ids["bob"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_pairs_are_drawn_uniformly(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, [f"s{n}" for n in range(6)])
    first = 0
    for number in range(300):
        (review,) = await draw(reviews, 1, rater=f"rater {number}")
        await choose(reviews, review.review_id, "TIE", rater=f"rater {number}")
        first += review.first == SHORT
    counts = Counter(one.sample_id for one in await reviewed(reviews))
    # Four standard deviations of a binomial count.
    assert len(counts) == 6 and all(abs(n - 50) < 26 for n in counts.values()), counts
    assert abs(first - 150) < 35


@on_both_databases
async def test_a_changed_mind_replaces_and_a_repeat_changes_nothing(
    reviews: Any, database: Database, clock: ManualClock
) -> None:
    await score(database, clock, ["s1"])
    (review,) = await draw(reviews)
    for choice, preference in (("FIRST", review.first), ("FIRST", review.first), ("SECOND", review.second)):
        await choose(reviews, review.review_id, choice)
        (one,) = await reviewed(reviews)
        assert one.preference == float(preference == SHORT)


@on_both_databases
async def test_only_what_is_scored_and_at_hand_is_shown(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, ["scored"])
    await score(database, clock, ["other"], task="lists")
    async with database.changing() as connection:
        plain = (await SampleRepository(connection).get_many(["scored"]))[0]
        await SampleRepository(connection).add_many(
            [
                replace(plain, sample_id="unscored"),
                replace(plain, sample_id="alone", answers=plain.answers[:1]),
                replace(plain, sample_id="untasked", task=""),
            ]
        )
        cells = {"alone": "sums", "untasked": ""}
        await QualityRepository(connection).add_scores(
            [Score(Cell(MODEL, task, "L1"), 1, name, 1.0, 1.0, JUDGE, clock.now()) for name, task in cells.items()]
        )
    assert {review.task for review in await draw(reviews, task="lists")} == {"lists"}
    assert {review.task for review in await draw(reviews, task="")} == {""}
    assert sorted(review.task for review in await draw(reviews)) == ["", "lists", "sums"]


@on_both_databases
async def test_erased_text_is_not_shown_and_choices_stay(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, ["s1", "s2", "s3"])
    first, *_ = await draw(reviews, 2)
    await choose(reviews, first.review_id, "TIE")
    await clock.advance(60)
    async with database.writing() as connection:
        await ErasureRepository(connection).erase_samples(clock.now(), clock.now(), 100)
    # Neither what was given and not answered nor anything new.
    assert await draw(reviews) == await draw(reviews, rater="bob") == []
    assert [one.preference for one in await reviewed(reviews)] == [0.5]
    (totals,) = (await reviews.ListJudgeTotals(pb.ListJudgeTotalsRequest())).totals
    assert totals.scores == 3


@on_both_databases
async def test_large_answers_come_as_they_are_and_as_many_as_a_message_holds(
    reviews: Any, database: Database, clock: ManualClock
) -> None:
    long = "€\x1b[31m" + "x" * 100_000
    await score(database, clock, [f"s{n}" for n in range(3)], texts=(long, SHORT))
    assert [len(r.first) + len(r.second) for r in await draw(reviews)] == [len(long) + 1] * 3
    huge = "y" * (MAX_DRAWN_BYTES // 2)
    await score(database, clock, ["h1", "h2", "h3"], task="huge", texts=(huge, "z"))
    drawn = await draw(reviews, task="huge")
    assert len(drawn) == 1
    await choose(reviews, drawn[0].review_id, "TIE")
    assert len(await draw(reviews, task="huge")) == 1


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"rater": ""}, "rater", "is empty"),
        ({"rater": "  "}, "rater", "is empty"),
        ({"rater": "r" * 129}, "rater", "has 129 characters; at most 128"),
        ({"rater": "a\x1bb"}, "rater", "has the control character U+001B at 1; none is allowed"),
        ({"task": "t" * 129}, "task", "has 129 characters; at most 128"),
        ({"count": 0}, "count", "is 0; must be 1 to 50"),
        ({"count": 51}, "count", "is 51; must be 1 to 50"),
    ],
)
async def test_what_cannot_be_drawn_is_named(reviews: Any, fields: dict[str, Any], field: str, fault: str) -> None:
    request = pb.DrawReviewsRequest(**{"rater": "ann", "count": 1, **fields})
    assert await faults(reviews.DrawReviews(request)) == {field: fault}


async def test_what_cannot_be_recorded_is_named(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, ["s1"])
    (review,) = await draw(reviews)

    def request(**fields: Any) -> Any:
        return reviews.RecordReview(
            pb.RecordReviewRequest(**{"review_id": review.review_id, "rater": "ann", "choice": 1, **fields})
        )

    for fields, field in (({"review_id": ""}, "review_id"), ({"choice": 0}, "choice"), ({"choice": 9}, "choice")):
        assert list(await faults(request(**fields))) == [field]
    for odd in ("nobody's", "0" * 128, "%' OR 1=1 --"):
        await refused(request(review_id=odd), "NOT_FOUND", "RESOURCE_NOT_FOUND")
    await refused(request(rater="bob"), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    assert await reviewed(reviews) == []


@pytest.mark.parametrize("value", [["a", 1], ["a"], "a", 3, ["\ud800", "b"], [["a"], "b"]])
async def test_a_page_token_of_another_make_is_refused(reviews: Any, value: Any) -> None:
    token = base64.urlsafe_b64encode(json.dumps(["ratings", value]).encode()).decode().rstrip("=")
    request = pb.ListRatedScoresRequest(page_token=token)
    await refused(reviews.ListRatedScores(request), "INVALID_ARGUMENT", "INVALID_FIELDS")


@on_both_databases
async def test_totals_are_of_all_scores_by_judge_and_task(reviews: Any, database: Database, clock: ManualClock) -> None:
    await score(database, clock, ["a1", "a2"], quality=1.0)
    await score(database, clock, ["b1"], quality=0.25)
    compared = Comparison(10, 20, 1.0, 0.5)
    await score(database, clock, ["c1"], task="chat", quality=0.75, comparison=compared, judge="pairwise:m")
    reply = await reviews.ListJudgeTotals(pb.ListJudgeTotalsRequest())
    # L0 scores 1: a tie, a tie, a loss; where answers were compared, the preference itself.
    assert [(t.judge, t.task, t.scores, t.preferences, t.squares) for t in reply.totals] == [
        (JUDGE, "sums", 3, 1.0, 0.5),
        ("pairwise:m", "chat", 1, 0.75, 0.5625),
    ]


@on_both_databases
async def test_ratings_of_answers_that_a_judge_has_graded(reviews: Any, database: Database, clock: ManualClock) -> None:
    started = clock.now() + timedelta(microseconds=123_457)
    served = {"r0": "L0", "r1": "L1", "r2": "L1", "compared": "L0", "unscored": "L1", "unrated": "L1"}
    entries = [
        entry(request_id=name, directive=directive, task="sums", started_at=started)
        for name, directive in served.items()
    ]
    tenant = entries[0].tenant

    def named(*names: str) -> list[str]:
        return [sample_id(b"secret", tenant, name, started) for name in names]

    async with database.writing() as connection:
        await LedgerRepository(connection).add_many(entries)
        await RatingRepository(connection).put_many(
            [Rating(tenant, n, 0.25, "", started, "u") for n in (*served, "never served") if n != "unrated"]
        )
    await score(database, clock, named("r0", "r1", "unrated"), quality=0.5, directives=("L1", "L2"))
    await score(database, clock, named("r2"), quality=0.5, directives=("L2",))
    await score(database, clock, named("compared"), comparison=Comparison(1, 1, 1.0, 1.0), judge="pairwise:m")
    request, found = pb.ListRatedScoresRequest(page_size=2), []
    pages = 0
    while True:
        reply = await reviews.ListRatedScores(request)
        pages += 1
        found += [RatedScore(s.judge, s.task, s.directive, s.rating, s.quality, s.compared) for s in reply.scores]
        request.page_token = reply.next_page_token
        if not request.page_token:
            break
    assert pages == 3
    # L0's once, whatever was compared with it; r2 was served what nobody has judged.
    assert sorted(found, key=lambda one: one.directive) == [
        RatedScore(JUDGE, "sums", "L0", 0.25, 1.0, False),
        RatedScore(JUDGE, "sums", "L1", 0.25, 0.5, False),
    ]


async def test_without_a_database_it_says_so(reviews: Any, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: Database) -> Any:
        raise StoreUnavailable("gone")

    for method in ("reading", "writing"):
        monkeypatch.setattr(Database, method, away)
    await refused(reviews.DrawReviews(pb.DrawReviewsRequest(rater="ann", count=1)), "UNAVAILABLE", "DATABASE")
    record = pb.RecordReviewRequest(review_id="r", rater="ann", choice=1)
    await refused(reviews.RecordReview(record), "UNAVAILABLE", "DATABASE")
    for name in ("ListReviews", "ListJudgeTotals", "ListRatedScores"):
        call = getattr(reviews, name)(getattr(pb, f"{name}Request")())
        await refused(call, "UNAVAILABLE", "DATABASE")
