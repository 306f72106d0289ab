"""Which requests are in flight, kept, or only remembered; bounded by age and by size."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.clock import ManualClock
from common.errors import PithError
from router.answers import Answers

KEY = ("acme", "r1")
DAY = 24 * 3600


def answers(clock: ManualClock, *, max_bytes: int = 1_000_000, max_ids: int = 100) -> Answers[str]:
    return Answers(clock, keep_seconds=600, max_bytes=max_bytes, max_ids=max_ids)


def refused(kept: Answers[str], key: tuple[str, str] = KEY) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(PithError) as error:
        kept.begin(key)
    return error.value.code, error.value.reason


async def test_a_request_is_new_then_in_flight_then_kept_then_remembered_then_new() -> None:
    clock = ManualClock()
    kept = answers(clock)
    assert kept.begin(KEY) is None
    assert refused(kept) == (grpc.StatusCode.ABORTED, "REQUEST_IN_FLIGHT")
    kept.finish(KEY, "yes", 3)
    assert kept.begin(KEY) == "yes"
    await clock.advance(599)
    assert kept.begin(KEY) == "yes"
    await clock.advance(1)
    assert refused(kept) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
    await clock.advance(DAY - 601)
    assert refused(kept) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
    await clock.advance(1)
    assert kept.begin(KEY) is None


def test_a_failed_request_frees_its_id() -> None:
    kept = answers(ManualClock())
    kept.begin(KEY)
    kept.release(KEY)
    assert kept.begin(KEY) is None


def test_release_after_the_end_frees_nothing() -> None:
    kept = answers(ManualClock())
    kept.begin(KEY)
    kept.finish(KEY, "yes", 3)
    kept.release(KEY)
    assert kept.begin(KEY) == "yes"


async def test_what_was_answered_is_known_for_a_day_and_what_is_in_flight_is_not() -> None:
    clock = ManualClock()
    kept = answers(clock)
    kept.begin(KEY)
    assert not kept.answered(KEY)
    kept.finish(KEY, "yes", 3)
    kept.remember([("acme", "elsewhere")])
    assert kept.answered(KEY) and kept.answered(("acme", "elsewhere")) and not kept.answered(("other", "r1"))
    await clock.advance(DAY)
    assert not kept.answered(KEY) and not kept.answered(("acme", "elsewhere"))


def test_ids_belong_to_their_tenant() -> None:
    kept = answers(ManualClock())
    kept.begin(KEY)
    kept.finish(KEY, "yes", 3)
    assert kept.begin(("other", "r1")) is None


def test_the_oldest_answers_make_room() -> None:
    kept = answers(ManualClock(), max_bytes=10_000)
    for index in range(4):
        kept.begin(("acme", str(index)))
        kept.finish(("acme", str(index)), "x", 2_000)  # and a thousand for what stands around it
    assert refused(kept, ("acme", "0")) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")
    assert [kept.begin(("acme", str(index))) for index in (1, 2, 3)] == ["x", "x", "x"]


def test_an_answer_larger_than_all_room_is_not_kept_but_remembered() -> None:
    kept = answers(ManualClock(), max_bytes=1_500)
    kept.begin(KEY)
    kept.finish(KEY, "x", 5_000)
    assert refused(kept) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")


def test_ids_from_before_the_start_are_remembered_up_to_the_limit() -> None:
    kept = answers(ManualClock(), max_ids=3)
    kept.remember([("acme", str(index)) for index in range(5)])
    assert [kept.begin(("acme", str(index))) for index in (0, 1)] == [None, None]
    assert refused(kept, ("acme", "2")) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ANSWERED")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["finish", "release"]), st.integers(0, 400))))
async def test_no_id_is_ever_in_flight_twice_nor_answered_anew_while_remembered(
    steps: list[tuple[str, str, int]],
) -> None:
    """Against a model that keeps everything."""
    clock = ManualClock()
    kept = answers(clock)
    answered: dict[str, float] = {}
    for name, end, seconds in steps:
        key = ("acme", name)
        age = clock.monotonic() - answered[name] if name in answered else None
        if age is not None and age < 600:
            assert kept.begin(key) == name
        elif age is not None and age < DAY:
            assert refused(kept, key)[1] == "REQUEST_ANSWERED"
        else:
            assert kept.begin(key) is None
            assert refused(kept, key)[1] == "REQUEST_IN_FLIGHT"
            if end == "finish":
                kept.finish(key, name, 10)
                answered[name] = clock.monotonic()
            else:
                kept.release(key)
        await clock.advance(seconds)


async def test_a_tenants_answers_from_before_a_moment_are_forgotten_and_its_ids_stay_taken() -> None:
    clock = ManualClock()
    kept = answers(clock, max_bytes=3_000)
    for key in (("acme", "a"), ("other", "a")):
        kept.finish(key, "said", 0)
    await clock.advance(10)
    before = clock.now()
    kept.finish(("acme", "b"), "said later", 0)
    kept.forget("acme", before)
    assert refused(kept, ("acme", "a"))[1] == "REQUEST_ANSWERED"
    assert kept.begin(("other", "a")) == "said"
    # What was forgotten makes room: three fit, of a thousand bytes each.
    kept.finish(("acme", "c"), "more", 0)
    assert kept.begin(("other", "a")) == "said"
    assert kept.begin(("acme", "b")) == "said later"
