"""`pithctl review` and `pithctl quality agreement`."""

import getpass
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pith.common.v1.energy_pb2 import Interval
from pith.common.v1.text_pb2 import ROLE_SYSTEM, ROLE_USER, Message
from pith.evaluator.v1.evaluation_pb2 import Agreement
from pith.router.v1.reviews_pb2 import CHOICE_FIRST, CHOICE_SECOND, CHOICE_TIE, Review

from common.errors import unavailable
from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices
from tests.router.cli.terminal import Screen, on_terminal


@pytest.fixture
def pairs(fake: FakeServices) -> None:
    fake.reviews = [pair(number) for number in range(1, 4)]


def pair(number: int, first: str = "", second: str = "") -> Review:
    messages = [Message(role=ROLE_SYSTEM, content="Be kind."), Message(role=ROLE_USER, content=f"Question {number}?")]
    return Review(
        review_id=f"id{number}",
        task="qa",
        messages=messages,
        first=first or f"long {number}",
        second=second or f"short {number}",
    )


def submitted(fake: FakeServices) -> list[tuple[str, str, int]]:
    return [(one.review_id, one.rater, one.choice) for one in fake.called("SubmitRating")]


def test_lines_of_a_pipe_are_choices(pithctl: Pithctl, fake: FakeServices, pairs: None) -> None:
    result = pithctl("review", "--rater", "ann", "--task", "qa", "--count", "3", stdin="1\n  2 \n\nT\n")
    assert result.code == 0
    (asked,) = fake.called("ListPendingReviews")
    assert (asked.rater, asked.task, asked.count) == ("ann", "qa", 3)
    assert submitted(fake) == [
        ("id1", "ann", CHOICE_FIRST), ("id2", "ann", CHOICE_SECOND), ("id3", "ann", CHOICE_TIE),
    ]  # fmt: skip
    assert result.out.splitlines()[-1] == "3 compared by ann."
    first = result.out[result.out.index("Pair 1") : result.out.index("Pair 2")].splitlines()
    assert first[:8] == [
        "Pair 1 of 3, task qa", "Asked:", "│ [system] Be kind.", "│ ", "│ [user] Question 1?", "Answer 1:", "│ long 1",
        "Answer 2:",
    ]  # fmt: skip


def test_what_is_left_comes_again(pithctl: Pithctl, fake: FakeServices, pairs: None) -> None:
    said = pithctl("review", "--rater", "ann", stdin="1\ns\nq\n").out
    assert said.splitlines()[-1] == "1 compared by ann; 2 left, which come again."
    assert "Question 1?" not in pithctl("review", "--rater", "ann", stdin="t\n").out
    assert submitted(fake) == [("id1", "ann", CHOICE_FIRST), ("id2", "ann", CHOICE_TIE)]


def test_the_end_of_input_is_no_choice(pithctl: Pithctl, fake: FakeServices, pairs: None) -> None:
    assert pithctl("review", "--rater", "ann").code == 0
    assert submitted(fake) == []


def test_what_is_no_key_is_asked_again(pithctl: Pithctl, fake: FakeServices, pairs: None) -> None:
    result = pithctl("review", "--rater", "ann", stdin="3\nyes\n\x1b[31m\n2\n")
    assert result.err.count("That is none of the keys.") == 3
    assert "\x1b" not in result.out
    assert submitted(fake) == [("id1", "ann", CHOICE_SECOND)]


def test_the_rater_is_who_is_logged_in(pithctl: Pithctl, fake: FakeServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    assert "Nothing to compare for bob" in pithctl("review").out

    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    result = pithctl("review")
    assert result.code == 2 and "--rater" in result.err


def test_json_is_a_pair_a_line_and_a_sum(pithctl: Pithctl, fake: FakeServices, pairs: None) -> None:
    lines = pithctl("review", "--rater", "ann", "--json", stdin="1\nz\ns\n2\n").lines
    assert [line.get("review_id", line.get("error", "sum")) for line in lines] == [
        "id1", "id2", "must be 1, 2, t, s or q", "id3", "sum",
    ]  # fmt: skip
    assert (lines[0]["first"], lines[0]["messages"][1]["content"]) == ("long 1", "Question 1?")
    assert lines[-1] == {"rater": "ann", "compared": 2, "skipped": 1, "left": 1}


def test_answers_cannot_steer_the_terminal_nor_pass_for_what_pithctl_says(pithctl: Pithctl, fake: FakeServices) -> None:
    odd = "ok\x1b[2J\x9b1A\rAnswer 2:\nAnswer 2:\n[red]no markup[/]\x07"
    fake.reviews = [pair(1, first=odd)]
    said = pithctl("review", "--rater", "ann", stdin="1\n").out
    assert not any(ord(character) < 32 and character != "\n" for character in said)
    assert said.splitlines().count("Answer 2:") == 1
    assert "│ [red]no markup[/]\N{REPLACEMENT CHARACTER}" in said.splitlines()


def test_long_answers_are_cut_until_all_is_asked_for(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.reviews = [pair(1, first="a" * 50_000 + "MIDDLE" + "z" * 50_000)]
    said = pithctl("review", "--rater", "ann", stdin="q\n").out
    assert "[… 96,006 characters are not shown …]" in said and "MIDDLE" not in said and len(said) < 6_000
    assert "a (show all)" in said
    whole = pithctl("review", "--rater", "ann", stdin="a\na\n1\n")
    assert "MIDDLE" in whole.out and whole.err.count("none of the keys") == 1
    assert submitted(fake) == [("id1", "ann", CHOICE_FIRST)]


def test_a_service_that_goes_away_loses_nothing_that_was_said(
    pithctl: Pithctl, fake: FakeServices, pairs: None
) -> None:
    fake.failure = unavailable("DATABASE", "the database does not answer")
    result = pithctl("review", "--rater", "ann")
    assert result.code == 5 and "the database does not answer" in result.err
    fake.failure = None
    assert pithctl("review", "--rater", "ann", stdin="1\n").code == 0
    assert submitted(fake) == [("id1", "ann", CHOICE_FIRST)]


@contextmanager
def screen(fake: FakeServices, *arguments: str) -> Iterator[Screen]:
    with on_terminal("review", "--rater", "ann", *arguments, columns=40, PITHCTL_EVALUATOR=fake.address) as shown:
        yield shown


def test_on_a_terminal_a_key_is_enough(fake: FakeServices, pairs: None) -> None:
    with screen(fake) as shown:
        for number, key in enumerate(("2", "T", "q"), start=1):
            shown.until(f"Question {number}?", "q (quit):")
            shown.press(key)
        assert shown.end() == 0
    assert "2 compared by ann; 1 left" in shown.written
    assert submitted(fake) == [("id1", "ann", CHOICE_SECOND), ("id2", "ann", CHOICE_TIE)]


def test_keys_that_send_more_than_one_character_choose_nothing(fake: FakeServices, pairs: None) -> None:
    with screen(fake) as shown:
        shown.until("Question 1?", "q (quit):")
        # Home, which ends in "1~" on some terminals.
        shown.press("\x1b[1~")
        shown.until("none of the keys", "q (quit):")
        shown.press("\x04")
        assert shown.end() == 0
    assert submitted(fake) == []


def test_ctrl_c_ends_and_keeps_what_was_said(fake: FakeServices, pairs: None) -> None:
    with screen(fake) as shown:
        shown.until("Question 1?", "q (quit):")
        shown.press("1")
        shown.until("Question 2?", "q (quit):")
        # This terminal is nobody's, so that no key of it interrupts.
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 0
    assert "1 compared by ann" in shown.written
    assert submitted(fake) == [("id1", "ann", CHOICE_FIRST)]


def test_folded_lines_stay_behind_the_bar(fake: FakeServices) -> None:
    fake.reviews = [pair(1, first="word " * 60)]
    with screen(fake) as shown:
        shown.until("q (quit):")
        shown.press("q")
        assert shown.end() == 0
    lines = [line for line in shown.written.replace("\r", "").split("\n") if "word" in line]
    assert len(lines) > 5
    assert all(line.startswith("│ ") and len(line) <= 40 for line in lines)


@pytest.fixture
def agreement(fake: FakeServices) -> None:
    kappa = Interval(value=0.125, lower=-0.05, upper=0.18, confidence=0.95, method="m; asymptotic")
    rate = Interval(value=0.412, lower=0.35, upper=0.47, confidence=0.95, method="p; asymptotic")
    fake.agreement = Agreement(disagreement_limit=0.8)
    fake.agreement.people.add(
        judge="pairwise:m", task="chat", pairs=120, choices=150, raters=2, agreeing=0.5, kappa=kappa, shared_pairs=30,
        kappa_of_raters=kappa, scored_pairs=2_400, judge_rate=0.61, corrected_rate=rate, judge_weight=0.2, alarm=True,
    )  # fmt: skip
    fake.agreement.people.add(judge="grader:exact@1", pairs=5, choices=5, raters=1, scored_pairs=10, judge_rate=0.5)
    fake.agreement.thumbs.add(judge="grader:exact@1", task="qa", ratings=9, mean_rating=0.9, mean_quality=0.5)
    fake.agreement.thumbs.add(
        judge="grader:exact@1", task="qa", directive="L1", ratings=40, mean_rating=0.75, mean_quality=0.8, agreeing=0.9,
        kappa=kappa,
    )  # fmt: skip


def test_agreement_is_a_table_of_people_and_one_of_thumbs(pithctl: Pithctl, agreement: None) -> None:
    lines = pithctl("quality", "agreement").out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("chat", "any", "qa"))}
    assert "120 by 2" in rows["chat"] and "0.12 (-0.05 to 0.18)" in rows["chat"]
    assert (
        "61.0 % of 2,400" in rows["chat"] and "41.2 % (35.0 % to 47.0 %)" in rows["chat"] and "raised" in rows["chat"]
    )
    assert rows["any"].count("unknown") == 4 and "raised" not in rows["any"]
    assert [line.split()[2] for line in lines if line.startswith("qa")] == ["all", "L1"]
    assert any("above 0.8 " in line for line in lines)


def test_agreement_as_json(pithctl: Pithctl, agreement: None) -> None:
    found = json.loads(pithctl("quality", "agreement", "--json").out)
    assert (found["people"][0]["kappa"]["value"], found["people"][1]["kappa"]) == (0.125, None)
    assert found["thumbs"][1]["directive"] == "L1"
