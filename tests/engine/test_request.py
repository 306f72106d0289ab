"""The text of an answer as its tokens arrive."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.energy.reading import Energy, EnergySource
from engine.request import Answer, FinishReason, GenerationRequest, ResumeError, StopStrings, replay
from engine.sampling import SamplingParams
from engine.suppression import Suppression, TokenIndex
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


TEXT = st.lists(st.sampled_from(["a", "b", "é", "ñ", "€", "😀", "ab"]), max_size=12).map("".join)
STOP = st.lists(st.sampled_from(["ab", "é", "aab", "€b", "bbbbb", "😀a"]), max_size=3, unique=True)


@given(TEXT, STOP, st.integers(1, 30), st.data())
def test_an_answer_resumed_anywhere_goes_on_as_it_would_have(
    text: str, stop: list[str], max_output_tokens: int, data: st.DataObject
) -> None:
    token_ids = [*text.encode(), END, 97, 98] * 2
    whole, reason, found = run(answer_of(tuple(stop), max_output_tokens), token_ids)
    if reason is None:
        return
    position = data.draw(st.integers(0, len(whole)))
    released = "".join(whole[:position])
    delivered = released[: data.draw(st.integers(0, len(released)))]
    request = replace(
        answer_of(tuple(stop), max_output_tokens).request,
        resumed_token_ids=token_ids[:position],
        delivered_bytes=len(delivered.encode()),
    )
    rest = replay(request, detokenizer(), frozenset([END]), EnergySource.MODELLED)
    assert (rest is not None) == (position == len(whole))
    if rest is not None and rest.finished is not None:
        assert delivered + rest.text == "".join(whole)
        assert (rest.finished.reason, rest.finished.stop, rest.token_ids) == (reason, found, ())
        assert rest.finished.output_tokens == len(whole)
        return
    resumed = Answer(request, detokenizer())
    assert resumed.token_ids == [1, 2, 3, *token_ids[:position]]
    more, reason_again, found_again = run(resumed, token_ids[position:])
    assert delivered + "".join(more) == "".join(whole)
    assert (reason_again, found_again) == (reason, found)
    assert resumed.output_tokens == len(whole)


def detokenizer() -> Detokenizer:
    return Detokenizer(BYTES, strips_first_space=False)


@pytest.mark.parametrize(
    ("token_ids", "delivered_bytes", "field", "fault"),
    [
        ([97, END, 98], 0, "token_ids", "the answer ends with the first 2 (STOP)"),
        ([97, 120, 98], 0, "token_ids", "the answer ends with the first 2 (STOP_STRING)"),
        ([97] * 6, 0, "token_ids", "the answer ends with the first 5 (LENGTH)"),
        ([97, 98], 3, "delivered_bytes", "is 3; the tokens have released 2 bytes"),
        ([97, 195], 2, "delivered_bytes", "is 2; the tokens have released 1 bytes"),
        ([195, 169], 1, "delivered_bytes", "is 1, inside of a character"),
    ],
)
def test_a_resume_that_cannot_be_right_is_refused(
    token_ids: list[int], delivered_bytes: int, field: str, fault: str
) -> None:
    request = replace(answer_of(("x",), 5).request, resumed_token_ids=token_ids, delivered_bytes=delivered_bytes)
    with pytest.raises(ResumeError) as raised:
        replay(request, detokenizer(), frozenset([END]), EnergySource.MODELLED)
    assert raised.value.field == field and fault in str(raised.value)


def test_a_resumed_answer_knows_what_it_has_said() -> None:
    """Penalties and suppressed words take what was said before the resume into account."""
    suppression = Suppression(TokenIndex(BYTES), ["ab"])
    params = SamplingParams(repetition_penalty=2.0, suppression=suppression)
    request = GenerationRequest(0, [1], params, 9, (), 0.0, resumed_token_ids=[98, 97], delivered_bytes=2)
    history = Answer(request, detokenizer()).history
    assert history is not None
    assert history.penalised.tolist() == [1, 98, 97]
    assert 98 in history.forbidden and 97 not in history.forbidden


def test_timings_of_a_resumed_answer_are_its_own() -> None:
    request = GenerationRequest(0, [1], SamplingParams(), 9, (), 10.0, resumed_token_ids=[98, 97], delivered_bytes=2)
    answer = Answer(request, detokenizer())
    answer.take(98, frozenset([END]), now_seconds=13.0)
    answer.take(END, frozenset([END]), now_seconds=15.0)
    finished = answer.finished(FinishReason.STOP, "", EnergySource.MODELLED, 15.0)
    assert (finished.first_token_seconds, finished.decode_seconds, finished.output_tokens) == (3.0, 2.0, 4)


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
