"""A judge behind an HTTP endpoint: what it says becomes a score, or no score, whatever the endpoint does."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.quality.pairwise import Comparison
from evaluator.judges.base import Judgement, Unscored
from evaluator.judges.openai_judge import OpenAiJudge
from tests.evaluator.judges.judging import Judging, judge_of, judging, sample
from tests.evaluator.openai_server import API_KEY, Asked, OpenAiServer, Reply, in_turn, prefers, says

NAME = judge_of("openai:gpt-x", OpenAiJudge.way)
SECRET = "what the other side wrote"


async def judged(
    reply: Callable[[Asked], Reply], answer: str = "the better one", baseline: str = "another", **settings: Any
) -> tuple[Judgement | Unscored, Judging, OpenAiServer]:
    """One comparison; time goes on by itself."""
    async with OpenAiServer(reply) as server, judging(judge_url=server.url, judge_model="gpt-x", **settings) as bench:
        comparing = asyncio.create_task(bench.judge(answer, baseline))
        while not comparing.done():
            waiting = asyncio.create_task(bench.back_off.asleep())
            await asyncio.wait({comparing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not comparing.done():
                await bench.back_off.advance(1)
        return comparing.result(), bench, server


class TestVerdicts:
    async def test_the_same_preference_in_both_orders_is_a_score(self) -> None:
        result, bench, server = await judged(prefers("better"))
        lengths = len("the better one"), len("another")
        assert result == Judgement(1.0, 0.5, NAME, Comparison(*lengths, shown_first=1.0, shown_second=1.0))
        first, second = server.asked
        assert (first.shown("ANSWER A"), first.shown("ANSWER B")) == ("the better one", "another")
        assert (second.shown("ANSWER A"), second.shown("ANSWER B")) == ("another", "the better one")
        assert bench.calls("verdict") == 2

    async def test_the_worse_answer_scores_nothing(self) -> None:
        result, _, _ = await judged(prefers("another"))
        assert isinstance(result, Judgement)
        assert (result.quality, result.baseline_quality) == (0.0, 0.5)

    @pytest.mark.parametrize(("letter", "shown"), [("A", (1.0, 0.0)), ("B", (0.0, 1.0)), ("C", (0.5, 0.5))])
    async def test_who_goes_by_the_place_or_sees_no_difference_says_a_tie(
        self, letter: str, shown: tuple[float, float]
    ) -> None:
        result, _, _ = await judged(lambda _: says(letter))
        assert result == Judgement(0.5, 0.5, NAME, Comparison(14, 7, *shown))

    async def test_a_tie_in_one_order_counts_half(self) -> None:
        result, _, _ = await judged(in_turn([says("A"), says("C")]))
        assert isinstance(result, Judgement)
        assert result.quality == 0.75

    @pytest.mark.parametrize("content", ["A", " A\n", "**A**", "(A)", '"A".'])
    async def test_a_letter_may_be_dressed_up(self, content: str) -> None:
        result, _, _ = await judged(in_turn([says(content), says("B")]))
        assert isinstance(result, Judgement)
        assert result.quality == 1.0

    async def test_asks_as_the_configuration_says(self) -> None:
        _, _, server = await judged(prefers("better"), judge_token=API_KEY)
        (asked, _) = server.asked
        assert asked.path == "/v1/chat/completions"
        assert asked.headers["authorization"] == f"Bearer {API_KEY}"
        assert (asked.question["model"], asked.question["temperature"]) == ("gpt-x", 0)

    @pytest.mark.parametrize(
        ("answer", "baseline", "quality"),
        [("", "something", 0.0), ("something", " \n", 1.0), ("", "", 0.5), ("same", "same\n", 0.5), (" ", "", 0.5)],
    )
    async def test_what_needs_no_opinion_costs_no_call(self, answer: str, baseline: str, quality: float) -> None:
        result, _, server = await judged(prefers("better"), answer, baseline)
        # A blank answer has no length to be liked or disliked for.
        lengths = [len(text) if text.strip() else 0 for text in (answer, baseline)]
        comparison = Comparison(*lengths, quality, quality)
        assert result == Judgement(quality, 0.5, NAME, comparison)
        assert not server.asked

    async def test_answers_of_100_kb_are_cut_alike(self) -> None:
        long = "x" * 50_000 + "better" + "y" * 50_000
        result, _, server = await judged(lambda _: says("C"), long, "z" * 100_000, judge_answer_characters=1_000)
        assert isinstance(result, Judgement) and result.comparison is not None
        assert (result.comparison.characters, result.comparison.baseline_characters) == (100_006, 100_000)
        shown = [server.asked[0].shown(name) for name in ("ANSWER A", "ANSWER B")]
        assert shown[0] == "x" * 500 + "\n[99,006 characters are left out here]\n" + "y" * 500
        assert shown[1] == "z" * 500 + "\n[99,000 characters are left out here]\n" + "z" * 500


UNPARSABLE = [
    says("Answer A is better because it is more thorough."),
    says("Die erste Antwort ist besser."),
    says("A or B"),
    says("AB"),
    says("a"),
    says(""),
    says(None),
    says("I cannot help with that."),
    says("А"),  # Cyrillic
]
MALFORMED = [
    Reply(body=b"{"),
    Reply(body=b'{"choices": NaN}'),
    Reply(body=b"[" * 100_000),
    Reply(body=b"\xff\xfe"),
    Reply(body=b"[]"),
    Reply(body=b"{}"),
    Reply(body=b'{"choices": []}'),
    Reply(body=b'{"choices": [{"message": "A"}]}'),
    says(["A"]),
    says(1),
    Reply(endless=True),
    Reply(headers={"content-encoding": "gzip"}),
]
AWAY = [Reply(500), Reply(503), Reply(cut=True), Reply(429)]


class TestFaults:
    @pytest.mark.parametrize("reply", UNPARSABLE + MALFORMED)
    async def test_a_reply_that_names_no_choice_is_asked_for_once_more_and_never_guessed(self, reply: Reply) -> None:
        result, bench, server = await judged(lambda _: reply)
        assert isinstance(result, Unscored)
        assert len(server.asked) == 2
        assert bench.value("judge_retries_calls_total") == 1
        assert bench.calls("unparsable" if reply in UNPARSABLE else "malformed") == 2
        # Another sample may fare better.
        assert bench.judges.judges("pairwise")

    @pytest.mark.parametrize("reply", [*UNPARSABLE[:2], *MALFORMED[:2], *AWAY])
    async def test_one_fault_is_survived(self, reply: Reply) -> None:
        result, bench, server = await judged(in_turn([reply, says("A"), reply, says("B")]))
        assert isinstance(result, Judgement)
        assert (result.quality, len(server.asked)) == (1.0, 4)
        assert bench.calls("verdict") == 2

    async def test_the_second_question_has_another_mark(self) -> None:
        _, _, server = await judged(in_turn([says("hm"), says("C")]))
        marks = {asked.user.split("\n")[0] for asked in server.asked}
        assert len(marks) == len(server.asked) == 3

    @pytest.mark.parametrize("reply", AWAY)
    async def test_who_is_away_is_tried_again_and_then_left_alone(self, reply: Reply) -> None:
        with capture_logs() as logs:
            result, bench, server = await judged(lambda _: reply, judge_attempts=3)
        assert isinstance(result, Unscored)
        assert len(server.asked) == 3
        assert bench.back_off.monotonic() == 1 + 2
        assert not bench.judges.judges("pairwise")
        unscored = await bench.judge("a", "b")
        assert isinstance(unscored, Unscored) and unscored.reason.startswith("the judge is left alone for a while: ")
        assert len(server.asked) == 3
        assert [line["event"] for line in logs] == ["the judge is left alone"]

    async def test_a_pause_ends_and_grows_until_a_verdict(self) -> None:
        async with (
            OpenAiServer(lambda _: Reply(500)) as server,
            judging(judge_url=server.url, judge_model="gpt-x", judge_attempts=1) as bench,
        ):
            for pause in (60, 120, 240):
                assert isinstance(await bench.judge("a", "b"), Unscored)
                await bench.back_off.advance(pause - 1)
                assert not bench.judges.judges("pairwise")
                await bench.back_off.advance(1)
                assert bench.judges.judges("pairwise")
            server.reply = lambda _: says("C")
            assert isinstance(await bench.judge("a", "b"), Judgement)
            server.reply = lambda _: Reply(500)
            await bench.judge("a", "b")
            await bench.back_off.advance(60)
            assert bench.judges.judges("pairwise")

    async def test_retry_after_is_honoured(self) -> None:
        limited = Reply(429, headers={"retry-after": "17"})
        result, bench, _ = await judged(in_turn([limited, says("A"), says("B")]))
        assert isinstance(result, Judgement)
        assert bench.back_off.monotonic() == 17
        assert bench.calls("limited") == 1

    async def test_who_wants_to_be_left_alone_for_long_is(self) -> None:
        limited = Reply(429, headers={"retry-after": "7200"})
        result, bench, server = await judged(lambda _: limited)
        assert isinstance(result, Unscored)
        assert (len(server.asked), bench.back_off.monotonic()) == (1, 0)
        await bench.back_off.advance(7199)
        assert not bench.judges.judges("pairwise")
        await bench.back_off.advance(1)
        assert bench.judges.judges("pairwise")

    @pytest.mark.parametrize(
        ("reply", "result", "goes_on"),
        [
            (Reply(401), "refused", False),
            (Reply(404), "refused", False),
            (Reply(400), "rejected", True),
            (Reply(413), "rejected", True),
            (Reply(302, headers={"location": "http://127.0.0.1:1/"}), "rejected", True),
        ],
    )
    async def test_a_refusal_is_not_argued_with(self, reply: Reply, result: str, goes_on: bool) -> None:
        unscored, bench, server = await judged(lambda _: reply)
        assert isinstance(unscored, Unscored)
        assert (len(server.asked), bench.calls(result)) == (1, 1)
        assert bench.judges.judges("pairwise") is goes_on

    async def test_one_that_never_replies_is_given_up(self) -> None:
        result, bench, _ = await judged(lambda _: Reply(hang=True), judge_timeout_seconds=0.05, judge_attempts=2)
        assert result == Unscored("the judge: no reply within 0.05 s")
        assert bench.calls("timeout") == 2

    async def test_nobody_there(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            async with judging(judge_url=url, judge_model="m", judge_attempts=1) as bench:
                assert await bench.judge("a", "b") == Unscored("the judge: cannot be reached (ConnectError)")

    async def test_neither_key_nor_texts_nor_replies_are_told(self) -> None:
        body = Reply(401, body=SECRET.encode())
        with capture_logs() as logs:
            result, _, _ = await judged(lambda _: body, answer="my diary", judge_token=API_KEY)
        told = repr((logs, result))
        assert not any(text in told for text in (SECRET, "my diary", API_KEY))


class TestBudget:
    async def test_requests_of_a_day_run_out_and_come_back(self) -> None:
        async with (
            OpenAiServer(lambda _: says("C")) as server,
            judging(judge_url=server.url, judge_model="gpt-x", judge_requests_per_day=3) as bench,
        ):
            assert isinstance(await bench.judge("a", "b"), Judgement)
            assert bench.value("judge_budget_left_units", of="requests") == 1
            spent = "the judge's 3 requests of this day are used up"
            assert await bench.judge("a", "b") == Unscored(f"the judge: {spent}")
            # Told before an answer is paid for.
            assert bench.judges.refusal(sample()) == Unscored(spent)
            assert not bench.judges.judges("pairwise")
            assert len(server.asked) == 3
            await bench.clock.advance(24 * 3600)
            assert isinstance(await bench.judge("a", "b"), Judgement)

    async def test_declared_grams_run_out(self) -> None:
        async with (
            OpenAiServer(lambda _: says("C", total_tokens=500)) as server,
            judging(
                judge_url=server.url, judge_model="m", judge_grams_per_1000_tokens=2.0, judge_grams_per_day=3.0
            ) as bench,
        ):
            assert isinstance(await bench.judge("a", "b"), Judgement)
            assert bench.value("judge_carbon_grams_total", how="declared") == 2.0
            assert isinstance(await bench.judge("a", "b"), Unscored)
            assert len(server.asked) == 3

    @pytest.mark.parametrize("tokens", [None, "many", -1, True, 1.5])
    async def test_what_is_not_told_is_unknown_and_never_nothing(self, tokens: object) -> None:
        async with (
            OpenAiServer(lambda _: says("C", total_tokens=tokens)) as server,
            judging(
                judge_url=server.url, judge_model="m", judge_grams_per_1000_tokens=2.0, judge_grams_per_day=3.0
            ) as bench,
        ):
            assert isinstance(await bench.judge("a", "b"), Unscored)
            assert bench.value("judge_carbon_unknown_calls_total") == 1
            assert len(server.asked) == 1


class TestQueue:
    async def test_so_many_at_a_time_so_many_wait_and_the_rest_is_turned_away_and_counted(self) -> None:
        async with (
            OpenAiServer(lambda _: Reply(hang=True)) as server,
            judging(judge_url=server.url, judge_model="m", judge_concurrency=2, judge_queue_samples=3) as bench,
        ):
            comparing = [asyncio.create_task(bench.judge(f"a{i}", "b")) for i in range(9)]
            done, waiting = await asyncio.wait(comparing, return_when=asyncio.FIRST_COMPLETED)
            while len(server.asked) < 2:
                server.came.clear()
                await server.came.wait()
            assert {task.result() for task in done} == {Unscored("the judge: 3 comparisons wait for the judge already")}
            assert len(done) == 4
            assert bench.value("judge_queue_dropped_samples_total") == 4
            assert bench.value("judge_queue_samples") == 3
            assert len(server.asked) == 2
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert bench.value("judge_queue_samples") == 0
            # Who gave up left his place.
            server.reply = lambda _: says("C")
            assert isinstance(await bench.judge("a", "b"), Judgement)
