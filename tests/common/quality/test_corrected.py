from __future__ import annotations

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.quality.bound import BoundMethod, Cell, EpochReason, Floor, FloorKind, PairedScore, QualityBound
from common.quality.corrected import LEAST_PAIRS, CellPairs, CorrectedShare
from common.quality.estimates import Estimates
from common.quality.likings import Likings
from common.quality.pairwise import BASELINE_QUALITY, Comparison

ALPHA = 0.05
JUDGE = "pairwise:gpt-x/prompt-1"
START = datetime(2026, 3, 1, tzinfo=UTC)
BRIEF = Cell("demo@abc", "chat", "L1")
BRIEFER = Cell("demo@abc", "chat", "L2")
FLOOR = Floor(0.95, FloorKind.RELATIVE)


def expit(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def compared(
    pairs: int,
    seed: int,
    *,
    strength: float = 0.0,
    liking: float = 0.8,
    place: float = 0.3,
    prompts: float = 0.5,
    longest: float = 0.9,
    shortest: float = 0.2,
) -> list[Comparison]:
    """By a judge who says how sure it is; a directive's answers are between `shortest` and `longest` of L0's."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(pairs):
        baseline = int(rng.lognormal(6.5, 0.5)) + 10
        answer = max(1, int(baseline * rng.uniform(shortest, longest)))
        level = strength + rng.normal(0, prompts) + liking * np.tanh((answer - baseline) / 800)
        found.append(Comparison(answer, baseline, expit(level + place), expit(level - place)))
    return found


def corrected(comparisons: Sequence[Comparison], others: Sequence[Comparison] = ()) -> CorrectedShare | None:
    likings, cell, other = Likings(), CellPairs(), CellPairs()
    for number, comparison in enumerate(others):
        other.take(f"other-{number}", comparison, likings, teaches=True)
    for number, comparison in enumerate(comparisons):
        cell.take(str(number), comparison, likings, teaches=True)
    return cell.corrected(likings, ALPHA)


def known(share: CorrectedShare | None) -> tuple[CorrectedShare, float]:
    """The corrected share, and its estimate."""
    assert share is not None and share.share is not None
    return share, share.share


def raw(comparisons: Sequence[Comparison]) -> float:
    return float(2 * np.mean([comparison.quality for comparison in comparisons]))


def test_a_liking_for_length_does_not_count_against_brief_answers() -> None:
    comparisons = compared(1500, 1)
    found, share = known(corrected(comparisons))
    assert raw(comparisons) < 0.9
    assert share == pytest.approx(1.0, abs=0.05)
    assert found.lower < 1.0 < found.upper
    assert found.upper - found.lower < 0.3


def test_what_brief_answers_truly_lack_does_count() -> None:
    comparisons = compared(1500, 2, strength=-0.6)
    found, share = known(corrected(comparisons))
    assert raw(comparisons) < share - 0.1
    assert found.upper < 0.9


def test_a_judge_without_likings_is_left_as_it_is() -> None:
    comparisons = compared(800, 3, liking=0.0, place=0.0)
    found, share = known(corrected(comparisons))
    assert share == pytest.approx(raw(comparisons), abs=0.03)
    assert found.lower < raw(comparisons) < found.upper


def test_bounds_hold_the_estimate_and_say_nothing_while_pairs_are_few() -> None:
    comparisons = compared(LEAST_PAIRS, 4)
    few, _ = known(corrected(comparisons[:-1]))
    assert (few.lower, few.upper) == (0.0, 2.0)
    enough, share = known(corrected(comparisons))
    assert 0.0 < enough.lower <= share <= enough.upper < 2.0


def test_other_cells_of_the_judge_teach_its_likings() -> None:
    own = compared(400, 5)
    alone, _ = known(corrected(own))
    helped, share = known(corrected(own, compared(3000, 6, shortest=0.5, longest=1.8)))
    assert share == pytest.approx(1.0, abs=0.1)
    assert helped.upper - helped.lower < 0.7 * (alone.upper - alone.lower)


def test_pairs_of_equal_length_are_taken_as_they_are() -> None:
    equal = [Comparison(300, 300, float(number % 3 == 0), float(number % 2)) for number in range(300)]
    assert corrected(equal) is None
    _, share = known(corrected(equal, compared(300, 7)))
    assert share == pytest.approx(raw(equal), abs=1e-9)


def test_an_empty_answer_loses_for_being_empty() -> None:
    empty = [Comparison(0, 2000, 0.0, 0.0)] * 300
    found, share = known(corrected(empty, compared(600, 8)))
    assert share == 0.0
    assert found.upper < 0.1


def test_a_run_of_ties_is_no_proof() -> None:
    ties = [Comparison(300, 300, 0.5, 0.5)] * LEAST_PAIRS
    found, share = known(corrected(ties, compared(300, 9)))
    assert share == 1.0
    assert 0.95 < found.lower < 0.99
    assert 1.01 < found.upper < 1.05


def test_always_the_same_difference_tells_nothing_of_length() -> None:
    """Nor what the share would be without it: strength and slope cannot be told apart."""
    rng = np.random.default_rng(10)
    same = [Comparison(200, 400, *(float(rng.random() < 0.3) for _ in range(2))) for _ in range(600)]
    found, _ = known(corrected(same))
    assert found.lower < 0.3 and found.upper > 1.7


def test_bounds_hold_the_true_share_at_nearly_all_looks() -> None:
    missed = 0
    for seed in range(15):
        likings, cell = Likings(), CellPairs()
        missing = False
        for number, comparison in enumerate(compared(600, 100 + seed, prompts=0.8), start=1):
            cell.take(str(number), comparison, likings, teaches=True)
            if number % 100 == 0 and number >= LEAST_PAIRS:
                found, _ = known(cell.corrected(likings, ALPHA))
                missing |= not found.lower <= 1.0 <= found.upper
        missed += missing
    # Each bound may miss in 5 % of runs.
    assert missed <= 2


def test_the_chance_to_clear_a_floor_grows_with_pairs_and_falls_with_the_floor() -> None:
    found, share = known(corrected(compared(600, 11)))
    chances = [found.chance_to_clear(Floor(0.9, FloorKind.RELATIVE), more) for more in (100, 1_000, 10_000)]
    assert chances == sorted(chances) and chances[-1] > 0.9
    assert found.chance_to_clear(Floor(0.45, FloorKind.ABSOLUTE), 100) == chances[0]
    assert found.chance_to_clear(Floor((share + 0.1) / 2, FloorKind.ABSOLUTE), 10_000) < 0.05
    assert found.chance_to_clear(Floor(0.01, FloorKind.RELATIVE), 0) == 1.0


outcomes = st.sampled_from([0.0, 0.3, 0.5, 1.0])
rows = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 4000), outcomes, outcomes, st.booleans(), st.integers(0, 60)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 8))
def test_whatever_was_compared_bounds_are_in_their_range(
    given_rows: list[tuple[int, int, float, float, bool, int]], times: int
) -> None:
    likings, cells = Likings(), (CellPairs(), CellPairs())
    for round_ in range(times):
        for *comparison, second, sample in given_rows:
            cells[second].take(f"{round_}-{sample}", Comparison(*comparison), likings, teaches=True)
    for cell in cells:
        if (found := cell.corrected(likings, ALPHA)) is not None:
            assert found.share is not None
            assert 0.0 <= found.lower <= found.share + 1e-9 and found.share - 1e-9 <= found.upper <= 2.0


def test_a_copy_goes_its_own_way() -> None:
    likings, cell = Likings(), CellPairs()
    for number, comparison in enumerate(compared(250, 12)):
        cell.take(str(number), comparison, likings, teaches=True)
    before = cell.corrected(likings, ALPHA)
    copied_likings, copied = deepcopy(likings), deepcopy(cell)
    for number, comparison in enumerate(compared(250, 13, strength=-1.0)):
        copied.take(f"more-{number}", comparison, copied_likings, teaches=True)
    assert copied.corrected(copied_likings, ALPHA) != before
    assert cell.corrected(likings, ALPHA) == before
    assert (len(cell), likings.taken) == (250, 250)


# -- what estimates make of it


def scores(
    comparisons: Sequence[Comparison], cell: Cell = BRIEF, first: int = 0, tenant: str = ""
) -> list[PairedScore]:
    return [
        PairedScore(
            cell,
            f"{cell.directive}-{number:05}",
            comparison.quality,
            BASELINE_QUALITY,
            JUDGE,
            "1",
            START + timedelta(minutes=number),
            comparison,
            tenant,
        )
        for number, comparison in enumerate(comparisons, start=first)
    ]


def estimates() -> Estimates:
    return Estimates(lambda cell: (FLOOR,), ALPHA)


def bound_of(state: Estimates, cell: Cell = BRIEF) -> QualityBound:
    bound = state.bound(cell)
    assert bound is not None
    return bound


def test_the_corrected_share_decides_and_the_raw_one_is_told_with_it() -> None:
    state = estimates()
    given_scores = scores(compared(2500, 14, strength=0.12, prompts=0.3))
    state.observe_all(given_scores)
    bound = bound_of(state)
    assert bound.method is BoundMethod.LENGTH_CORRECTED and bound.raw is not None
    assert bound.raw.upper < 0.95 <= bound.lower < bound.upper
    assert bound.absolute_lower == bound.lower / 2
    assert state.settled(BRIEF, 0.95, FloorKind.RELATIVE) == "open"
    assert state.settled(BRIEF, 0.475, FloorKind.ABSOLUTE) == "open"
    assert state.settled(BRIEF, 0.99, FloorKind.ABSOLUTE) == "closed"
    betting = estimates()
    betting.observe_all([replace(one, comparison=None) for one in given_scores])
    without = bound_of(betting)
    assert without.method is BoundMethod.BETTING and without.raw is None
    assert (without.lower, without.upper, without.share) == (bound.raw.lower, bound.raw.upper, bound.raw.share)
    assert betting.settled(BRIEF, 0.95, FloorKind.RELATIVE) == "closed"


def test_few_pairs_open_nothing_though_the_judge_loves_them() -> None:
    state = estimates()
    loved = [Comparison(900, 300, 1.0, 1.0) for _ in range(LEAST_PAIRS - 1)]
    state.observe_all(scores(loved))
    bound = bound_of(state)
    assert bound.raw is not None and bound.raw.lower > 0.95
    assert (bound.lower, state.settled(BRIEF, 0.95, FloorKind.RELATIVE)) == (0.0, "undecided")


def test_what_has_not_been_corrected_yet_opens_nothing() -> None:
    state = estimates()
    for one in scores(compared(LEAST_PAIRS, 15, strength=3.0)):
        state.observe(one)
    assert (bound_of(state).lower, bound_of(state).share) == (0.0, None)
    assert state.chance_to_clear(BRIEF, FLOOR, 100) == 0.0
    state.correct()
    assert bound_of(state).lower > 0.95


def test_ties_alone_need_no_correction_and_no_minimum() -> None:
    state = estimates()
    state.observe_all(scores([Comparison(300, 300, 0.5, 0.5)] * 160))
    assert (bound_of(state).method, state.settled(BRIEF, 0.95, FloorKind.RELATIVE)) == (BoundMethod.BETTING, "open")


def test_a_tenants_pairs_teach_the_judges_likings_once() -> None:
    mixed = compared(500, 16)
    pooled, apart = estimates(), estimates()
    pooled.observe_all(scores(mixed))
    of_two = scores(mixed[:250], tenant="acme") + scores(mixed[250:], first=250, tenant="other")
    apart.observe_all(of_two)
    assert bound_of(apart) == bound_of(pooled)
    own = bound_of(apart, replace(BRIEF, tenant="acme"))
    assert (own.method, own.samples) == (BoundMethod.LENGTH_CORRECTED, 250)
    assert own.lower < bound_of(apart).lower


def test_a_new_epoch_begins_without_a_share() -> None:
    state = estimates()
    state.observe_all(scores(compared(400, 17)))
    edited = replace(scores(compared(1, 18), first=400)[0], revision="2")
    (start,) = state.observe_all([edited])
    assert start.reason is EpochReason.REVISION
    assert (bound_of(state).samples, bound_of(state).lower) == (1, 0.0)


def test_a_drop_of_what_only_the_correction_had_opened_closes_it() -> None:
    state = estimates()
    brief = compared(1200, 19, strength=0.12, prompts=0.3)
    assert state.observe_all(scores(brief)) == ()
    before = bound_of(state)
    assert before.raw is not None and before.raw.upper < 0.95 <= before.lower
    fallen = scores(compared(400, 20, strength=-1.2, prompts=0.3), first=1200)
    starts = state.observe_all(fallen)
    assert [(start.reason, start.floor) for start in starts] == [(EpochReason.DRIFT, FLOOR)]
    assert starts[0].at < START + timedelta(minutes=1200 + 60)
    assert state.settled(BRIEF, 0.95, FloorKind.RELATIVE) != "open"
    rebuilt = estimates()
    assert rebuilt.observe_all(scores(brief) + fallen) == starts
    assert bound_of(rebuilt) == bound_of(state)


def test_without_a_drop_it_stays_open() -> None:
    state = estimates()
    assert state.observe_all(scores(compared(3000, 21, strength=0.12, prompts=0.3))) == ()
    assert state.settled(BRIEF, 0.95, FloorKind.RELATIVE) == "open"


def snapshot(state: Estimates) -> list[object]:
    cells = [*state.cells(), *(own for cell in state.cells() for own in state.of_tenants(cell))]
    return [(state.bound(cell), state.settled(cell, 0.95, FloorKind.RELATIVE)) for cell in cells]


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 520), max_size=4))
def test_a_rebuilt_state_equals_the_one_that_grew(seed: int, cuts: list[int]) -> None:
    """Whenever penalty and scale were chosen, and whatever was only supposed in between."""
    of_each = scores(compared(300, seed), tenant="acme") + scores(compared(220, seed + 1), BRIEFER, 100, "other")
    history = sorted(of_each, key=lambda score: (score.scored_at, score.sample_id))
    grown, rebuilt = estimates(), estimates()
    for start, end in pairwise([0, *sorted(cuts), len(history)]):
        batch = history[start:end]
        supposed, _ = grown.supposing(batch)
        random.Random(seed).shuffle(batch)
        grown.observe_all(batch)
        assert snapshot(supposed) == snapshot(grown)
    rebuilt.observe_all(history)
    assert snapshot(grown) == snapshot(rebuilt)
