"""Diagnoses of logs whose replay is known: their intervals hold it, and their figures are what they say they are."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.energy.sweet_spot import SweetSpot
from router.diagnosis.diagnose import Diagnosis, diagnose
from router.diagnosis.evidence import Evidence
from router.diagnosis.law import Law, assumed_law
from router.diagnosis.log import Log, LoggedRequest
from router.diagnosis.published import PUBLISHED
from tests.router.diagnosis.planted import LAW, TASKS, Served, Task, evidence_of, log_of, saved, serve

SPROUT = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "sprout" / "requests_dev.jsonl.gz"


def worlds(seed: int, requests: int, tasks: dict[str, Task] | None = None) -> list[Served]:
    generator = np.random.default_rng(seed)
    return [serve(name, task, requests, generator) for name, task in (tasks or dict(TASKS)).items()]


def held(found: Diagnosis, served: list[Served]) -> dict[str, bool]:
    """By task and in all: whether the interval holds what serving the log with the directive saved."""
    truths = {part.task: saved([part]) for part in served} | {"all": saved(served)}
    intervals = {task.task: task.savings[0].share for task in found.tasks} | {"all": found.savings[0].share}
    return {name: bool(i and i.lower <= truths[name] <= i.upper) for name, i in intervals.items()}


@pytest.mark.parametrize(("evidence", "requests"), [(300, 300), (40, 400), (500, 5)])
def test_intervals_hold_the_replay_and_are_narrow(evidence: int, requests: int) -> None:
    inside: list[dict[str, bool]] = []
    widths = []
    for seed in range(40):
        served = worlds(seed, requests)
        known = [evidence_of(worlds(1_000 + seed, evidence))]
        found = diagnose(log_of(served), known, LAW, holdback_share=0.0, seed=seed)
        inside.append(held(found, served))
        share = found.savings[0].share
        assert share
        widths.append(share.upper - share.lower)
    assert np.mean([splits["all"] for splits in inside]) >= 0.9
    for task in TASKS:
        assert np.mean([splits[task] for splits in inside]) >= 0.85
    if min(evidence, requests) >= 300:
        assert np.mean(widths) < 0.06


def test_intervals_hold_the_replay_of_tasks_that_the_evidence_does_not_know() -> None:
    inside, widths = [], []
    for seed in range(40):
        generator = np.random.default_rng([7, seed])

        def task(draw: np.random.Generator = generator) -> Task:
            kept = 1 / (1 + math.exp(draw.normal(1.2, 0.6)))
            return Task(float(draw.uniform(100, 400)), kept, float(draw.uniform(0.3, 0.8)), 0.7)

        known = evidence_of(worlds(seed, 200, {f"known-{i}": task() for i in range(6)}))
        served = worlds(seed + 1_000, 300, {"new": task()})
        found = diagnose(log_of(served), [known], LAW, holdback_share=0.0, seed=seed)
        assert not found.tasks[0].savings[0].known
        inside.append(held(found, served)["all"])
        share = found.savings[0].share
        assert share
        widths.append(share.upper - share.lower)
    assert np.mean(inside) >= 0.9
    assert np.mean(widths) < 0.7


def test_intervals_hold_the_replay_where_the_log_has_longer_answers_than_the_evidence() -> None:
    inside = []
    for seed in range(40):
        generator = np.random.default_rng([8, seed])
        short = [serve(name, replace(task, tokens=task.tokens), 300, generator) for name, task in TASKS.items()]
        cut = [part.before < np.quantile(part.before, 0.6) for part in short]
        known = evidence_of(
            [Served(p.task, p.inputs[c], p.before[c], p.after[c]) for p, c in zip(short, cut, strict=True)]
        )
        served = [serve(name, task, 300, generator) for name, task in TASKS.items()]
        long = [part.before >= np.quantile(part.before, 0.4) for part in served]
        asked = [Served(p.task, p.inputs[c], p.before[c], p.after[c]) for p, c in zip(served, long, strict=True)]
        inside.append(held(diagnose(log_of(asked), [known], LAW, holdback_share=0.0, seed=seed), asked)["all"])
    assert np.mean(inside) >= 0.9


def test_answers_of_other_lengths_than_the_evidences_are_foretold_less_surely() -> None:
    known = [evidence_of(worlds(12, 2_000))]
    widths = []
    for tokens in (250, 2_500):
        found = diagnose(Log([LoggedRequest(60, tokens, "facts")] * 5_000), known, LAW).tasks[0].savings[0]
        assert found.share
        kept = 1 - found.share.value
        widths.append((found.share.upper - found.share.lower) / kept)
    assert widths[1] > 2 * widths[0]
    assert found.extrapolated_share == 1


def test_published_requests_are_foretold_by_their_other_half() -> None:
    """The whole of it, with 200 splits of many kinds, is `tests/bench/diagnosis.py`."""
    if not SPROUT.exists():
        pytest.skip("needs sprout from PITH_DATA_DIR")
    from tests.bench import diagnosis as bench

    prompts = bench.read_prompts(SPROUT)
    whole = bench.held(prompts, bench.halves, 10, 3, "halves")
    assert whole[bench.TOTAL]["coverage"] >= 0.8
    assert whole[bench.TOTAL]["mean_width_points"] < 4
    assert np.mean([part["coverage"] for part in whole.values()]) >= 0.88
    strange = bench.strange_tasks(prompts, 2, 3)
    assert strange[bench.TOTAL]["coverage"] >= 0.9
    assert strange[bench.TOTAL]["mean_width_points"] < 65


def test_prompts_that_cost_nearly_all_leave_nothing_to_save() -> None:
    log = Log([LoggedRequest(4_000, 10, "code")] * 500)
    found = diagnose(log, [PUBLISHED], assumed_law(64.0))
    (task,) = found.tasks
    assert task.answers_share[1] < 0.02
    for saving in task.savings:
        assert saving.share
        assert saving.share.upper < task.answers_share[1]
        assert saving.share.lower < 0


def test_a_directive_may_cost_more_than_it_saves() -> None:
    """18 tokens read again in each request, and answers that have hardly any to give."""
    generator = np.random.default_rng(9)
    stubborn = serve("yes-no", Task(5, 1.0, 1.0, 0.1, input_tokens=10), 2_000, generator)
    law = Law(SweetSpot(input_joules=1.0, output_joules=1.0), "planted")
    found = diagnose(log_of([stubborn]), [evidence_of([stubborn])], law)
    share = found.tasks[0].savings[0].share
    assert share
    assert share.upper < -0.5
    assert found.mix.directives == {"yes-no": "L0"}
    assert found.mix.share.value == 0


def test_an_unknown_load_spans_its_ends_and_a_known_one_does_not() -> None:
    log = Log([LoggedRequest(2_000, 100, "")] * 50)
    alone, full = (diagnose(log, [PUBLISHED], assumed_law(batch)) for batch in (1.0, 64.0))
    wide = diagnose(log, [PUBLISHED], assumed_law())
    ends = [found.savings[1].share for found in (alone, full, wide)]
    assert all(ends)
    one, many, any_ = (end for end in ends if end)
    assert (any_.lower, any_.upper) == (min(one.lower, many.lower), max(one.upper, many.upper))
    assert many.value < any_.value < one.value
    assert wide.tasks[0].answers_share == (full.tasks[0].answers_share[0], alone.tasks[0].answers_share[0])


def test_what_is_held_back_saves_nothing() -> None:
    served = worlds(1, 100)
    evidence = [evidence_of(served)]
    whole = diagnose(log_of(served), evidence, LAW, holdback_share=0.0).savings[0].share
    held_back = diagnose(log_of(served), evidence, LAW, holdback_share=0.25).savings[0].share
    assert whole
    assert held_back
    assert held_back.value == pytest.approx(0.75 * whole.value)


def test_recorded_energies_weigh_the_requests() -> None:
    """By the law, both tasks cost the same; by the record, the one that saves nothing costs nearly all."""
    saver, miser = Task(200, 0.1, 1.0, 0.2), Task(200, 1.0, 1.0, 0.2)
    served = worlds(2, 300, {"saver": saver, "miser": miser})
    evidence, log = [evidence_of(served)], log_of(served)
    weighed = Log([replace(r, energy_joules=1.0 if r.task == "saver" else 99.0) for r in log])
    partly = Log([replace(r, energy_joules=1.0 if r.task == "saver" else None) for r in log])
    by_law, by_record, by_part = (diagnose(found, evidence, LAW) for found in (log, weighed, partly))
    assert by_record.recorded_joules == pytest.approx(300 * 100.0)
    assert {task.task: round(task.energy_share, 2) for task in by_record.tasks} == {"miser": 0.99, "saver": 0.01}
    shares = [found.savings[0].share for found in (by_law, by_record, by_part)]
    assert all(shares)
    law, record, part = (share for share in shares if share)
    assert record.value < 0.05 < 0.3 < law.value
    assert part == law
    assert any("only 300 of 600 requests" in note for note in by_part.notes)


def test_what_was_recorded_of_requests_that_cost_nothing_by_the_law_stays() -> None:
    """A fit may find no cost of prompts; a request that ended before its first token then has none by it."""
    law = Law(SweetSpot(output_joules=2.0), "")
    answered = [LoggedRequest(50, 200, "faq", energy_joules=400.0)] * 50
    ended = [LoggedRequest(50, 0, "faq", energy_joules=joules) for joules in (1e9, *[400.0] * 49)]
    alone, beside = (diagnose(Log(log), [PUBLISHED], law) for log in (answered, [*answered, *ended]))
    assert alone.savings[0].share
    assert alone.savings[0].share.value > 0.3
    assert beside.savings[0].share
    assert 0 <= beside.savings[0].share.upper < 1e-3
    assert beside.bands[0].energy_share == pytest.approx(1, abs=1e-3)


def test_own_evidence_goes_before_what_is_published_and_that_before_other_tasks() -> None:
    log = Log([LoggedRequest(50, 200, task) for task in ("sums", "maths", "riddles") for _ in range(30)])
    own = evidence_of(worlds(3, 100), "L1")
    found = {task.task: task.savings[0] for task in diagnose(log, [own, PUBLISHED], LAW).tasks}
    assert {name: (s.known, s.evidence) for name, s in found.items()} == {
        "sums": (True, "planted"),
        "maths": (True, PUBLISHED.source),
        "riddles": (False, "planted"),
    }
    widths = {name: s.share.upper - s.share.lower for name, s in found.items() if s.share}
    assert widths["sums"] < widths["maths"]


def test_nothing_is_said_of_a_directive_that_too_few_tasks_know() -> None:
    log = Log([LoggedRequest(50, 200, "riddles")] * 30)
    found = diagnose(log, [evidence_of(worlds(3, 100)[:2])], LAW)
    assert found.tasks[0].savings[0].share is None
    assert found.savings[0].share is None
    assert found.mix.directives == {"riddles": "L0"}


def test_tasks_that_published_quality_speaks_against_stay_out_of_the_mix() -> None:
    log = Log([LoggedRequest(50, 200, task) for task in ("gsm8k", "triviaqa") for _ in range(30)])
    found = diagnose(log, [PUBLISHED], LAW)
    assert found.mix.directives == {"gsm8k": "L0", "triviaqa": "L2"}
    assert diagnose(log, [PUBLISHED], LAW, floor=0.4).mix.directives["gsm8k"] == "L2"
    every = found.savings[1].share
    assert every
    assert 0.3 < found.mix.share.value < every.value


def test_bands_and_tasks_add_up() -> None:
    log = log_of(worlds(4, 200))
    found = diagnose(log, [PUBLISHED], LAW)
    assert sum(band.requests for band in found.bands) == found.requests == 800
    assert math.fsum(band.energy_share for band in found.bands) == pytest.approx(1)
    assert math.fsum(task.energy_share for task in found.tasks) == pytest.approx(1)
    assert [task.energy_share for task in found.tasks] == sorted((t.energy_share for t in found.tasks), reverse=True)


def test_the_same_seed_says_the_same_and_order_does_not_matter_to_what_is_known() -> None:
    log = log_of(worlds(5, 50))
    once, again, other = (diagnose(log, [PUBLISHED], LAW, seed=seed) for seed in (1, 1, 2))
    assert once == again
    assert once.savings[0].share != other.savings[0].share


@pytest.mark.parametrize(
    ("log", "law", "fault"),
    [
        (Log(), LAW, "holds no request"),
        (Log([LoggedRequest(0, 0)]), Law(SweetSpot(output_joules=1.0), ""), "cost nothing"),
        (Log([LoggedRequest(5, 5)]), Law(SweetSpot(), ""), "cost nothing"),
    ],
)
def test_logs_of_nothing(log: Log, law: Law, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        diagnose(log, [PUBLISHED], law)


REQUESTS = st.builds(
    LoggedRequest,
    st.integers(1, 100_000),
    st.integers(0, 100_000),
    st.sampled_from(["", "math", "faq", "gsm8k"]),
    energy_joules=st.none() | st.floats(0.01, 1e6),
)
COSTS = st.sampled_from([0.0, 1e-6, 0.02, 5.0])


@given(
    st.lists(REQUESTS, min_size=1, max_size=30),
    st.builds(
        SweetSpot,
        request_joules=COSTS,
        input_joules=st.sampled_from([1e-4, 0.1]),
        output_joules=COSTS,
        output_shared_joules=COSTS,
        pair_joules=st.sampled_from([0.0, 1e-6]),
        output_squared_joules=st.sampled_from([0.0, 1e-5]),
    ),
    st.floats(0, 0.5),
)
@hypothesis_settings(deadline=None, max_examples=30)
def test_no_saving_is_beyond_what_answers_cost(requests: list[LoggedRequest], model: SweetSpot, held: float) -> None:
    found = diagnose(Log(requests), [PUBLISHED], Law(model, "", 1.0, 8.0), holdback_share=held)
    for task in found.tasks:
        for saving in task.savings:
            assert saving.share
            assert saving.share.lower <= saving.share.value <= saving.share.upper
            # Equal where answers would vanish; to rounding.
            assert saving.share.upper <= task.answers_share[1] * (1 - held) + 1e-6
    for whole in (*(s.share for s in found.savings), found.mix.share):
        assert whole
        assert -20 < whole.lower <= whole.upper <= 1 - held
    assert found.mix.share.value >= 0 or found.mix.share.value == pytest.approx(0, abs=0.05)


def test_more_of_the_same_narrows_the_interval() -> None:
    evidence: list[Evidence] = [evidence_of(worlds(6, 500))]
    log = log_of(worlds(7, 10))
    few, many = (diagnose(Log([*log] * times), evidence, LAW).savings[0].share for times in (1, 30))
    assert few
    assert many
    assert many.upper - many.lower < 0.6 * (few.upper - few.lower)
