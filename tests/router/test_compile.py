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


def test_what_is_kept_begins_with_a_question_where_there_is_one() -> None:
    keep_two = Directive("H", history_messages=2)
    # An answer without its question says little, and many chat templates refuse to begin with one.
    assert apply(keep_two, TALK).turns == (TALK[0], TALK[3])
    continued = (*TALK, Turn("assistant", "Because"))
    assert apply(keep_two, continued).turns == (TALK[0], TALK[3], continued[-1])
    # What is answered stays, though it is not among the newest.
    assert apply(Directive("H", history_messages=1), continued).turns == (TALK[0], TALK[3], continued[-1])
    alone = (Turn("assistant", "a"), Turn("assistant", "b"))
    assert apply(Directive("H", history_messages=1), alone).turns == alone[1:]


def test_system_messages_stay_where_they_stand() -> None:
    turns = (Turn("user", "a"), Turn("system", "s"), Turn("user", "b"), Turn("system", "t"), Turn("user", "c"))
    assert apply(Directive("H", history_messages=2), turns).turns == turns[1:]
    assert apply(Directive("H", history_messages=1), turns).turns == (turns[1], turns[3], turns[4])


def test_a_native_directive_gives_variables_and_leaves_the_messages() -> None:
    variables = (("enable_thinking", False),)
    compiled = apply(Directive("N", placement=Placement.NATIVE, template_variables=variables), TALK)
    assert (compiled.turns, compiled.template_variables) == (TALK, variables)
    assert apply(BRIEF, TALK).template_variables == ()


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


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=12), st.integers(1, 8))
def test_truncation_keeps_the_newest_what_is_asked_and_the_order(roles: list[str], kept: int) -> None:
    talk = [Turn(role, str(index)) for index, role in enumerate([*roles, "user"])]
    left = list(apply(Directive("H", history_messages=kept), talk).turns)
    assert [turn for turn in talk if turn in left] == left
    assert [turn for turn in left if turn.role == "system"] == [turn for turn in talk if turn.role == "system"]
    spoken, all_spoken = ([t for t in of if t.role != "system"] for of in (left, talk))
    assert spoken == all_spoken[len(all_spoken) - len(spoken) :]
    assert spoken[-1] == talk[-1]
    assert len(spoken) <= kept
    if len(all_spoken) > kept:
        assert spoken[0].role == "user"
        # No more is left out than that takes.
        assert all(turn.role == "assistant" for turn in all_spoken[-kept : len(all_spoken) - len(spoken)])
    else:
        assert spoken == all_spoken


@given(st.integers(0, 8), st.integers(1, 8))
def test_a_talk_in_turns_stays_one(exchanges: int, kept: int) -> None:
    talk = [Turn(role, "x") for _ in range(exchanges) for role in ("user", "assistant")] + [Turn("user", "?")]
    roles = [turn.role for turn in apply(Directive("H", history_messages=kept), talk).turns]
    assert roles == ["user", *["assistant", "user"] * (len(roles) // 2)]


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
