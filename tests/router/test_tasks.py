"""The task of requests that name none: told from their text by prompts that an admin has labelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.common.v1 import text_pb2
from pith.router.v1 import generation_pb2, policies_pb2, tasks_pb2, tasks_pb2_grpc
from structlog.testing import capture_logs

from common.clock import ManualClock
from router import task_keeper
from router.convert import timestamp
from router.directives.classify import TaskClassifier, train_on_texts
from router.directives.compile import Turn
from router.directives.tell import LEAST_LIKELIHOOD, Told, tell_turns
from router.store.database import Database, StoreUnavailable
from router.store.tables import samples, task_examples
from router.task_keeper import TaskKeeper, Trained
from tests.postgres import on_both_databases
from tests.router.directives.recorded import needs_data
from tests.router.directives.recorded import rows as recorded
from tests.router.fake_engine import FakeEngine
from tests.router.outcome_reports import decide, faults, outcome, refused, rows
from tests.router.running import Running, ask, running

pb: Any = tasks_pb2

SUMS = [f"Tom has {number} apples and eats {number // 2}. How many are left?" for number in range(2, 42)]
POEMS = [
    f"write a poem about {thing} in {month}"
    for thing in ("rain", "love", "bread")
    for month in ("may", "june", "july", "august")
]
LABELLED = [("sums", text) for text in SUMS[::2]] + [("poems", text) for text in POEMS]
SUM = "Tom has 7 pears and eats 3. How many are left?"
POEM = "write a poem about snow in may"
UNSURE = "left may a rain"
GET = pb.GetTaskClassifierRequest()


def request_of(labelled: Sequence[tuple[str, str]], **fields: Any) -> Any:
    return pb.SetTaskExamplesRequest(
        examples=[pb.TaskExample(task=task, text=text) for task, text in labelled], **fields
    )


def tasks_of(router: Running) -> Any:
    return tasks_pb2_grpc.TasksStub(router.channel)  # type: ignore[no-untyped-call]


async def label(router: Running, labelled: Sequence[tuple[str, str]] = LABELLED, **fields: Any) -> Any:
    return await tasks_of(router).SetTaskExamples(request_of(labelled, **fields))


async def told_of(router: Running, text: str, **fields: Any) -> tuple[str, bool]:
    decision = (await decide(router, **{"task": "", "text": text, **fields})).decision
    return decision.task, decision.task_told


def classifier() -> TaskClassifier:
    return train_on_texts([text for _, text in LABELLED], [task for task, _ in LABELLED])


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    # Wall time for what a loaded machine may take its time with; nothing waits for it to pass.
    async with asyncio.timeout(60):
        while not await holds():
            pass


async def test_without_examples_no_task_is_told(router: Running) -> None:
    await router.policy(task="sums")
    assert await told_of(router, SUM) == ("", False)
    assert (await decide(router, task="", text=SUM)).decision.policy == "default"
    card = await tasks_of(router).GetTaskClassifier(GET)
    assert (list(card.tasks), card.revision, card.trained) == ([], 0, True)
    assert not card.HasField("macro_f1") and not card.HasField("updated_at")
    assert await tasks_of(router).TellTask(pb.TellTaskRequest(text=SUM)) == pb.TellTaskResponse()


async def test_a_request_is_decided_recorded_and_sampled_under_the_task_that_its_text_shows(
    router: Running, engine: FakeEngine
) -> None:
    await router.policy(task="sums", sample_share=1.0)
    await router.open(task="sums")
    await label(router)
    reply = await router.generation.Generate(ask(SUM, task=""))
    decision = reply.started.decision
    assert (decision.task, decision.task_told) == ("sums", True)
    assert (decision.policy, decision.directive) == ("acme-qa", "L1")
    assert [row.task for row in await rows(router)] == ["sums"]
    assert [row.task for row in await rows(router, samples)] == ["sums"]
    assert "briefly" in engine.requests[-1].messages.messages[-1].content
    streamed = [message async for message in router.generation.StreamGenerate(ask(SUM, task=""))]
    assert streamed[0].started.decision.task == "sums"
    assert await told_of(router, POEM) == ("poems", True)


async def test_the_policy_of_the_told_task_may_refuse_it(router: Running) -> None:
    budget = policies_pb2.CarbonBudget(grams_per_day=1e-9, when_spent=policies_pb2.WHEN_SPENT_REFUSE)
    await router.policy(task="sums", carbon_budget=budget)
    await label(router)
    await router.generation.Generate(ask(SUM, task=""))
    assert (await refused(router.generation.Generate(ask(SUM, task="")))).reason == "CARBON_BUDGET_SPENT"
    await router.generation.Generate(ask(POEM, task=""))


async def test_what_is_unsure_stays_without_a_task_and_what_is_named_is_never_overruled(router: Running) -> None:
    await label(router)
    likeliest = (await tasks_of(router).TellTask(pb.TellTaskRequest(text=UNSURE))).likeliest
    assert 0.5 < likeliest[0].likelihood < LEAST_LIKELIHOOD
    assert await told_of(router, UNSURE) == ("", False)
    assert await told_of(router, SUM, task="poems") == ("poems", False)
    assert await told_of(router, SUM, task="another") == ("another", False)


async def test_an_evaluators_request_is_left_as_it_is(router: Running) -> None:
    await label(router)
    purpose = generation_pb2.EvaluationPurpose(sample_id="s", directive="L1")
    assert await told_of(router, SUM, evaluation=purpose) == ("", False)
    reply = await router.generation.Generate(ask(SUM, task="", evaluation=purpose))
    assert reply.started.decision.task == ""
    assert [row.task for row in await rows(router)] == [""]


def turns(*texts: str) -> Any:
    roles = (text_pb2.ROLE_USER, text_pb2.ROLE_ASSISTANT)
    return [text_pb2.Message(role=roles[index % 2], content=text) for index, text in enumerate(texts)]


async def test_a_conversation_keeps_the_task_of_its_first_message_by_the_user(router: Running) -> None:
    await label(router)
    system = text_pb2.Message(role=text_pb2.ROLE_SYSTEM, content=POEM)
    for history in ((SUM,), (SUM, "4", POEM), (SUM, "4", POEM, "snow", POEM)):
        assert await told_of(router, "", messages=[system, *turns(*history)]) == ("sums", True)


async def test_the_outcome_of_a_decision_is_recorded_under_the_told_task(router: Running) -> None:
    await router.policy(task="sums", sample_share=1.0)
    await label(router)
    decided = await decide(router, task="", text=SUM, request_id="r1")
    assert decided.sample_wanted
    # The request goes back as it came; examples that were forgotten meanwhile do not matter.
    await label(router, [])
    wrong = outcome(decided, request=ask(SUM, task="poems", request_id="r1"))
    assert set(await faults(router.generation.ReportOutcome(wrong))) == {"request.task"}
    await router.generation.ReportOutcome(outcome(decided, request=ask(SUM, task="", request_id="r1")))
    assert [row.task for row in await rows(router)] == ["sums"]
    assert [(row.task, row.turns) for row in await rows(router, samples)] == [("sums", [["user", SUM]])]


async def test_explain_says_first_what_was_told(router: Running) -> None:
    await router.policy(task="sums")
    await label(router)
    likelihood = classifier().likelihoods_of(SUM).max()

    async def explain(**fields: Any) -> Any:
        request = ask(SUM, **fields)
        return await router.policies.Explain(policies_pb2.ExplainRequest(request=request))

    explained = await explain(task="")
    assert explained.steps[0] == f"task 'sums' told from the text (likelihood {likelihood:.2f})"
    assert (explained.decision.task, explained.decision.task_told) == ("sums", True)
    assert explained.decision.policy == "acme-qa"
    named = await explain(task="sums")
    assert list(named.steps) == list(explained.steps)[1:]
    assert (named.decision.task, named.decision.task_told) == ("sums", False)
    assert (await explain(task="", messages=[])).decision.task == ""


async def test_the_card_says_how_well_each_task_is_told(router: Running) -> None:
    card = await label(router, reason="first try")
    assert [(one.task, one.examples) for one in card.tasks] == [("sums", 20), ("poems", 12)]
    for one in card.tasks:
        assert one.told_right + one.told_wrong + one.untold == pytest.approx(1.0)
        assert one.told_right > 0.5
    assert card.macro_f1 == 1.0
    assert (card.least_likelihood, card.revision, card.reason, card.trained) == (LEAST_LIKELIHOOD, 1, "first try", True)
    assert (card.updated_at, card.updated_by) == (timestamp(router.clock.now()), "local")
    assert await tasks_of(router).GetTaskClassifier(GET) == card
    # The same texts under labels that say nothing: each held out, nobody can tell.
    card = await label(router, [(("one", "other")[n % 2], text) for n, text in enumerate(SUMS)])
    assert all(one.told_right < 0.5 for one in card.tasks)
    assert (card.macro_f1 < 0.9, card.revision, card.reason) == (True, 2, "")


async def test_prompts_of_no_task_teach_what_to_leave_without_one(router: Running) -> None:
    card = await label(router, [("sums", text) for text in SUMS] + [("", text) for text in POEMS])
    assert [(one.task, one.told_right, one.untold) for one in card.tasks][1] == ("", 0.0, 1.0)
    assert await told_of(router, POEM) == ("", False)
    assert await told_of(router, SUM) == ("sums", True)
    reply = await tasks_of(router).TellTask(pb.TellTaskRequest(text=POEM))
    assert (reply.told, reply.likeliest[0].task) == ("", "")


async def test_what_is_forgotten_is_told_no_more_and_leaves_no_text(router: Running) -> None:
    await label(router)
    assert len(await rows(router, task_examples)) == len(LABELLED)
    card = await label(router, [], reason="wrong ones")
    assert (list(card.tasks), card.revision, card.reason, card.trained) == ([], 2, "wrong ones", True)
    assert await told_of(router, SUM) == ("", False)
    assert await rows(router, task_examples) == []
    assert await tasks_of(router).GetTaskClassifier(GET) == card


@on_both_databases
async def test_a_router_that_starts_again_tells_the_same(tmp_path: Path, engine: FakeEngine, database_url: str) -> None:
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as first:
        card = await label(first)
        told = [await tasks_of(first).TellTask(pb.TellTaskRequest(text=text)) for text in (SUM, POEM, UNSURE)]
    async with running(tmp_path, {"e1": engine}, database_url=database_url) as again:
        assert await tasks_of(again).GetTaskClassifier(GET) == card
        assert [await tasks_of(again).TellTask(pb.TellTaskRequest(text=t)) for t in (SUM, POEM, UNSURE)] == told
        assert await told_of(again, SUM) == ("sums", True)


@on_both_databases
async def test_two_routers_of_one_database_tell_the_same(tmp_path: Path, engine: FakeEngine, database_url: str) -> None:
    clock = ManualClock()
    here = running(tmp_path / "a", {"e1": engine}, clock=clock, database_url=database_url)
    there = running(tmp_path / "b", {"e1": engine}, clock=clock, database_url=database_url)
    async with here as one, there as other:
        card = await label(one)

        async def learnt() -> bool:
            return bool((await tasks_of(other).GetTaskClassifier(GET)).trained)

        await until(learnt)
        assert await tasks_of(other).GetTaskClassifier(GET) == card
        asked = pb.TellTaskRequest(text=SUM)
        assert await tasks_of(other).TellTask(asked) == await tasks_of(one).TellTask(asked)
        # Decided at one, reported at the other, which knows nothing of the task any more.
        decided = await decide(one, task="", text=SUM, request_id="r1")
        await label(other, [])
        await other.generation.ReportOutcome(outcome(decided, request=ask(SUM, task="", request_id="r1")))
        assert [row.task for row in await rows(other)] == ["sums"]

        async def forgotten() -> bool:
            return await told_of(one, SUM) == ("", False)

        await until(forgotten)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(min_size=1)), max_size=5))
def test_what_is_told_is_what_the_classifier_says_of_the_first_message_by_the_user(history: Any) -> None:
    known = CLASSIFIER
    told = tell_turns(known, [Turn(role, text) for role, text in history])
    first = next((text for role, text in history if role == "user"), None)
    if first is None:
        assert told is None
        return
    likelihoods = known.likelihoods_of(first)
    assert likelihoods.sum() == pytest.approx(1.0)
    sure = likelihoods.max() >= LEAST_LIKELIHOOD
    assert told == (Told(known.classify(first), float(likelihoods.max())) if sure else None)


CLASSIFIER = classifier()


async def test_the_router_tells_what_the_replays_classifier_tells(router: Running) -> None:
    await label(router)
    for text in (*SUMS, *POEMS, SUM, POEM, UNSURE, "?", "may may may", "\u00e4pfel " * 2_000):
        reply = await tasks_of(router).TellTask(pb.TellTaskRequest(text=text))
        likelihoods = CLASSIFIER.likelihoods_of(text)
        assert reply.likeliest[0].task == CLASSIFIER.classify(text)
        assert sorted(one.likelihood for one in reply.likeliest) == pytest.approx(sorted(likelihoods))
        expected = CLASSIFIER.classify(text) if likelihoods.max() >= LEAST_LIKELIHOOD else ""
        assert (reply.told, *await told_of(router, text)) == (expected, expected, expected != "")


@needs_data
async def test_a_hundred_labelled_prompts_a_task_tell_most_right_and_hardly_any_wrong(
    router: Running,
) -> None:
    by_task: dict[str, list[str]] = {}
    for row in random.Random(0).sample(recorded(), 3_000):
        by_task.setdefault(row["task"], []).append(row["prompt"])
    tasks = {task: list(dict.fromkeys(prompts)) for task, prompts in by_task.items()}
    card = await label(router, [(task, prompt) for task, prompts in tasks.items() for prompt in prompts[:100]])
    assert card.macro_f1 >= 0.9
    told = [
        (task, (await told_of(router, prompt))[0]) for task, prompts in tasks.items() for prompt in prompts[100:150]
    ]
    assert sum(task == found for task, found in told) >= 0.85 * len(told)
    # What the card says of the labelled prompts holds for others.
    wrong = sum(found not in ("", task) for task, found in told) / len(told)
    assert wrong <= 0.01
    assert wrong == pytest.approx(sum(one.told_wrong for one in card.tasks) / len(tasks), abs=0.03)


def many(count: int, task: str) -> list[tuple[str, str]]:
    return [(task, f"{task} {number}") for number in range(count)]


@pytest.mark.parametrize(
    ("request_", "field", "words"),
    [
        (request_of(many(10, "a")), "examples", "of 1 task; must be of 2 to 50"),
        (request_of([one for n in range(51) for one in many(10, f"t{n}")]), "examples", "of 51 tasks; must be of 2"),
        (request_of(many(10, "a") + many(9, "b")), "examples", "has 9 examples of task 'b'; must be 10 to 100"),
        (request_of(many(10, "a") + many(101, "")), "examples", "has 101 examples of no task; must be 10 to 100"),
        (request_of([one for n in range(11) for one in many(91, f"t{n}")]), "examples", "has 1,001 examples; at most"),
        (request_of([*LABELLED, ("sums", "")]), "examples[32].text", "is empty"),
        (request_of([*LABELLED, ("sums", "x" * 20_001)]), "examples[32].text", "20,001 characters; at most 20,000"),
        (request_of([*LABELLED, ("sums", "a\0b")]), "examples[32].text", "U+0000 at 1"),
        (request_of([*LABELLED, ("poems", SUMS[2])]), "examples[32].text", "is that of examples[1]"),
        (request_of(LABELLED + many(10, "a\n")), "examples[32].task", "unprintable"),
        (request_of(LABELLED + many(10, "a" * 129)), "examples[32].task", "129 characters; at most 128"),
        (request_of(LABELLED, reason="\n"), "reason", "control character"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
async def test_bad_examples_are_refused_by_name_and_nothing_is_written(
    router: Running, request_: Any, field: str, words: str
) -> None:
    card = await label(router)
    found = await faults(tasks_of(router).SetTaskExamples(request_))
    assert words in found[field]
    assert await tasks_of(router).GetTaskClassifier(GET) == card
    assert len(await rows(router, task_examples)) == len(LABELLED)


async def test_all_faults_are_told_at_once_and_none_quotes_a_text(router: Running) -> None:
    found = await faults(tasks_of(router).SetTaskExamples(request_of([("a\n", "SECRET"), ("b", "SECRET"), ("c", "")])))
    assert set(found) == {"examples", "examples[0].task", "examples[1].text", "examples[2].text"}
    assert "SECRET" not in str(found)


@pytest.mark.parametrize(("text", "words"), [("", "is empty"), ("x" * 60, "has 60 characters; at most 50")])
async def test_a_text_to_tell_is_as_long_as_a_prompt_may_be(
    tmp_path: Path, engine: FakeEngine, text: str, words: str
) -> None:
    async with running(tmp_path, {"e1": engine}, max_prompt_characters=50) as router:
        found = await faults(tasks_of(router).TellTask(pb.TellTaskRequest(text=text)))
        assert words in found["text"]


async def test_where_training_fails_nothing_is_written_and_the_last_classifier_stays(
    router: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = await label(router)

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(task_keeper, "train_on_texts", fail)
    assert (await refused(label(router, LABELLED[1:]))).code is grpc.StatusCode.INTERNAL
    assert await tasks_of(router).GetTaskClassifier(GET) == card
    assert await told_of(router, SUM) == ("sums", True)
    # As another router finds it, which could train it: here it is logged, once.
    keeper = TaskKeeper(router.router._database)
    keeper.put(Trained(0, None))
    with capture_logs() as entries:
        await keeper.load()
        await keeper.load()
    assert [entry["event"] for entry in entries] == ["tasks could not be learnt; the last ones stay in force"]
    assert keeper.trained == Trained(0, None)
    monkeypatch.undo()
    await label(router, LABELLED[1:])
    await keeper.load()
    assert keeper.trained.revision == 2


async def test_while_the_database_is_down_the_last_classifier_stays_and_it_is_looked_for_again(
    router: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await label(router)
    database = router.router._database
    keeper = TaskKeeper(database, retry_seconds=0.001)
    tried = asyncio.Event()

    def down() -> Any:
        tried.set()
        raise StoreUnavailable("gone")

    monkeypatch.setattr(database, "reading", down)
    await keeper.refresh()
    await tried.wait()
    tried.clear()
    await tried.wait()
    assert keeper.trained == Trained(0, None)
    assert await told_of(router, SUM) == ("sums", True)
    monkeypatch.undo()

    async def learnt() -> bool:
        # A call, during which it looks again.
        return await told_of(router, SUM) == ("sums", True) and keeper.trained.revision == 1

    await until(learnt)
    assert keeper.tell([Turn("user", SUM)]) is not None
    await keeper.close()


def test_an_older_classifier_never_replaces_a_newer_one(database_url: str) -> None:
    keeper = TaskKeeper(Database(database_url))
    keeper.put(Trained(2, None))
    keeper.put(Trained(1, CLASSIFIER))
    assert keeper.trained == Trained(2, None)
