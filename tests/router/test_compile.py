"""What a directive makes of a request: text at the tail, tighter limits, and nothing else touched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.limits import MAX_STOP_STRINGS
from router.directives.compile import Turn, apply
from router.directives.levels import L0, Directive, Placement

BRIEF = Directive("L1", "Always answer briefly")
TALK = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Why?"))


def test_the_text_stands_at_the_end_of_the_last_user_message() -> None:
    assert apply(BRIEF, TALK).turns == (*TALK[:3], Turn("user", "Why?\nAlways answer briefly"))


def test_a_request_that_continues_an_assistant_message_keeps_it_last() -> None:
    turns = (*TALK, Turn("assistant", "Because"))
    assert apply(BRIEF, turns).turns == (*TALK[:3], Turn("user", "Why?\nAlways answer briefly"), turns[-1])


def test_system_placement_goes_into_the_system_message_or_makes_one() -> None:
    directive = Directive("S", "Be brief", Placement.SYSTEM)
    assert apply(directive, TALK).turns == (Turn("system", "Be kind.\nBe brief"), *TALK[1:])
    assert apply(directive, TALK[1:]).turns == (Turn("system", "Be brief"), *TALK[1:])


def test_the_newest_messages_and_the_system_message_are_kept() -> None:
    assert apply(Directive("H", history_messages=1), TALK).turns == (TALK[0], TALK[3])
    assert apply(Directive("H", history_messages=3), TALK).turns == TALK


def test_limits_are_only_tightened() -> None:
    capped = Directive("C", max_output_tokens=10)
    assert apply(capped, TALK, max_output_tokens=5).max_output_tokens == 5
    assert apply(capped, TALK, max_output_tokens=50).max_output_tokens == 10
    assert apply(capped, TALK).max_output_tokens == 10
    assert apply(BRIEF, TALK, max_output_tokens=50).max_output_tokens == 50
    assert apply(BRIEF, TALK).max_output_tokens == 0


def test_stops_and_words_are_added_once_the_requests_own_first() -> None:
    directive = Directive("D", stop=("\n\n", "#"), suppressed_words=("um", "uh"))
    compiled = apply(directive, TALK, stop=("#", "END"), suppressed_words=("uh",))
    assert compiled.stop == ("#", "END", "\n\n")
    assert compiled.suppressed_words == ("uh", "um")


def test_a_request_that_names_all_stops_it_may_keeps_them() -> None:
    own = [str(index) for index in range(MAX_STOP_STRINGS)]
    assert apply(Directive("D", stop=("#",)), TALK, stop=own).stop == tuple(own)


turns = st.lists(
    st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text(min_size=1, max_size=20)),
    min_size=1,
    max_size=6,
)


@given(turns, st.integers(0, 100), st.lists(st.text(min_size=1, max_size=3), max_size=3, unique=True))
def test_l0_changes_nothing(turns: list[Turn], cap: int, stop: list[str]) -> None:
    compiled = apply(L0, turns, cap, stop)
    assert (compiled.turns, compiled.max_output_tokens, compiled.stop) == (tuple(turns), cap, tuple(stop))


@given(turns)
def test_all_before_the_directive_is_a_prefix_that_a_cache_may_hold(turns: list[Turn]) -> None:
    """Rendered turn by turn, the steered prompt begins with the whole unsteered one up to the end of the last user
    message, which is where most prompts end."""
    asked = [*turns, Turn("user", "?")]
    plain = "".join(f"<{turn.role}>{turn.content}" for turn in asked)
    steered = "".join(f"<{turn.role}>{turn.content}" for turn in apply(BRIEF, asked).turns)
    assert steered == plain + "\nAlways answer briefly"


@given(turns)
def test_the_request_itself_is_left_as_it_is(turns: list[Turn]) -> None:
    before = list(turns)
    apply(BRIEF, turns)
    assert turns == before
