"""The text of an answer as its tokens arrive."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.energy.reading import Energy, EnergySource
from engine.request import Answer, FinishReason, GenerationRequest, StopStrings
from engine.sampling import SamplingParams
from engine.tokenizer import Detokenizer

END = 256
BYTES = [bytes([byte]) for byte in range(256)] + [b""]


def answer_of(stop: tuple[str, ...] = (), max_output_tokens: int = 1000) -> Answer:
    request = GenerationRequest(0, [1, 2, 3], SamplingParams(), max_output_tokens, stop, arrived_seconds=10.0)
    return Answer(request, Detokenizer(BYTES, strips_first_space=False))


def run(answer: Answer, token_ids: list[int]) -> tuple[list[str], FinishReason | None, str]:
    """The text that each token released, until the answer ends."""
    pieces = []
    for token_id in token_ids:
        text, reason, stop = answer.take(token_id, frozenset([END]), now_seconds=11.0)
        pieces.append(text)
        if reason is not None:
            return pieces, reason, stop
    return pieces, None, ""


def push_all(stop: list[str], pieces: list[str]) -> tuple[str, str | None]:
    strings = StopStrings(stop)
    text = ""
    for piece in pieces:
        more, found = strings.push(piece)
        text += more
        if found is not None:
            return text, found
    return text + strings.flush(), None


def by_definition(stop: list[str], text: str) -> tuple[str, str | None]:
    """Character by character: the first stop string to be complete, the longest where two are at once."""
    for end in range(1, len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


small_text = st.text(alphabet="abé", max_size=30)


@given(st.lists(st.text(alphabet="abé", min_size=1, max_size=5), max_size=4), st.lists(small_text, max_size=8))
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(stop: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    assert push_all(stop, pieces) == push_all(stop, [text]) == push_all(stop, list(text)) == by_definition(stop, text)


def test_what_may_begin_a_stop_string_is_held_back_and_no_more() -> None:
    strings = StopStrings(["###"])
    assert strings.push("a#") == ("a", None)
    assert strings.push("#b") == ("##b", None)
    assert strings.push("##") == ("", None)
    assert strings.push("#c") == ("", "###")


def test_a_stop_string_inside_split_characters() -> None:
    token_ids = list("héllo wörld".encode())
    pieces, reason, stop = run(answer_of(("ö",)), token_ids)
    assert ("".join(pieces), reason, stop) == ("héllo w", FinishReason.STOP_STRING, "ö")
    assert len(pieces) == len("héllo wö".encode())


@given(st.text(max_size=20))
def test_every_piece_is_whole_characters_and_together_they_are_the_text(text: str) -> None:
    pieces, reason, _ = run(answer_of(), [*text.encode(), END])
    assert "".join(pieces) == text
    assert reason == FinishReason.STOP


def test_half_a_character_at_the_end_is_marked() -> None:
    pieces, reason, _ = run(answer_of(max_output_tokens=2), list("aé".encode()))
    assert (pieces, reason) == (["a", "\N{REPLACEMENT CHARACTER}"], FinishReason.LENGTH)


def test_held_text_comes_out_at_the_end() -> None:
    pieces, reason, stop = run(answer_of(("xyz",), max_output_tokens=3), list(b"axy"))
    assert (pieces, reason, stop) == (["a", "", "xy"], FinishReason.LENGTH, "")


def test_a_stop_string_completed_by_the_last_token_wins_over_the_limit() -> None:
    pieces, reason, stop = run(answer_of(("xy",), max_output_tokens=3), list(b"axy"))
    assert ("".join(pieces), reason, stop) == ("a", FinishReason.STOP_STRING, "xy")


def test_the_account_of_an_answer() -> None:
    answer = answer_of()
    answer.admitted_seconds = 10.5
    for token_id, now_seconds in ((97, 11.0), (98, 12.0), (END, 14.0)):
        answer.charge(0.25, 2.0)
        answer.take(token_id, frozenset([END]), now_seconds)
    finished = answer.finished(FinishReason.STOP, "", EnergySource.MODELLED, 14.0)
    assert (finished.prompt_tokens, finished.output_tokens) == (3, 3)
    assert (finished.queue_seconds, finished.first_token_seconds, finished.decode_seconds) == (0.5, 1.0, 3.0)
    assert finished.busy_seconds == 0.75
    assert finished.energy == Energy(6.0, EnergySource.MODELLED)


def test_energy_that_is_unknown_once_stays_unknown() -> None:
    answer = answer_of()
    for joules in (1.0, None, 1.0):
        answer.charge(0.1, joules)
    assert answer.finished(FinishReason.ABORTED, "", EnergySource.ATTRIBUTED, 11.0).energy is None


def test_an_answer_that_never_ran_only_waited() -> None:
    finished = answer_of().finished(FinishReason.ABORTED, "", EnergySource.MODELLED, 17.0)
    assert (finished.queue_seconds, finished.first_token_seconds, finished.decode_seconds) == (7.0, 0.0, 0.0)
    assert finished.output_tokens == 0


@pytest.mark.parametrize("text", ["", "a", "ab"])
def test_without_stop_strings_nothing_is_held(text: str) -> None:
    assert StopStrings([]).push(text) == (text, None)
