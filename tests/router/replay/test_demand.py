"""How many requests of which task a load file asks for."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.diagnosis.lines import LogError
from router.replay.demand import PUBLISHED_TASKS, constant_demand, published_demand, read_load
from tests.router.replay.planted import load_file, recorded

LOAD = 300 + 100 * np.sin(np.arange(400) / 3)


@given(st.integers(0, 50), st.integers(1, 200), st.floats(1, 5000))
@settings(deadline=None, max_examples=40)
def test_demand_has_the_wished_mean_and_a_mix_that_is_whole(seed: int, hours: int, mean: float) -> None:
    found = published_demand(LOAD, PUBLISHED_TASKS, hours, mean, seed)
    assert found.requests.shape == (hours,)
    assert found.mix.sum(axis=1) == pytest.approx(1.0)
    assert (found.requests >= 1).all()
    assert found.requests.mean() == pytest.approx(mean, abs=1)


def test_the_mix_stays_about_a_day_and_the_load_with_it() -> None:
    found = published_demand(LOAD, PUBLISHED_TASKS, 960, 1000, 7)
    changed = np.flatnonzero(np.any(np.diff(found.mix, axis=0) != 0, axis=1))
    spans = np.diff(changed)
    assert 20 < spans.mean() < 28
    assert set(np.flatnonzero(np.diff(found.requests))) <= set(changed)


def test_the_order_of_tasks_in_the_file_does_not_matter() -> None:
    one = published_demand(LOAD, PUBLISHED_TASKS, 100, 1000, 3)
    other = published_demand(LOAD, PUBLISHED_TASKS[::-1], 100, 1000, 3)
    assert one.mix == pytest.approx(other.mix[:, ::-1])


def test_start_rows_are_drawn_in_the_published_order() -> None:
    drawn = np.random.RandomState(5)
    rows = {task: drawn.randint(0, 400 - 4) for task in PUBLISHED_TASKS}
    tasks = ("other", *sorted(PUBLISHED_TASKS))
    rows["other"] = drawn.randint(0, 400 - 4)
    counts = np.array([LOAD[rows[task]] for task in tasks])
    assert published_demand(LOAD, tasks, 96, 1000, 5).mix[0] == pytest.approx(counts / counts.sum())


def test_a_load_that_is_shorter_than_its_window_is_refused() -> None:
    with pytest.raises(ValueError, match="720 hours need more than 30 rows, got 30"):
        published_demand(LOAD[:30], PUBLISHED_TASKS, 720, 1000, 0)
    assert len(published_demand(LOAD[:31], PUBLISHED_TASKS, 720, 1000, 0).requests) == 720


def test_without_a_load_every_hour_is_the_same() -> None:
    found = constant_demand(recorded(10), 5, 12.4)
    assert found.requests.tolist() == [12] * 5
    assert found.mix == pytest.approx(np.full((5, 3), 1 / 3))


def test_draws_follow_the_mix() -> None:
    of = recorded(40)
    demand = published_demand(LOAD, of.tasks, 48, 4000, 0)
    for prompts, mix, requests in zip(demand.draws(of, 0), demand.mix, demand.requests, strict=True):
        assert len(prompts) == requests
        assert np.bincount(of.task[prompts], minlength=3) / requests == pytest.approx(mix, abs=0.04)
        assert len(np.unique(prompts)) > 100


def test_a_load_file_is_read_plain_or_packed(tmp_path: Path) -> None:
    plain = load_file(tmp_path)
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    single = tmp_path / "single.csv"
    single.write_text("requests\n5\n\n7.5\n")
    assert np.array_equal(read_load(plain), read_load(packed))
    assert (len(read_load(plain)), read_load(plain)[0]) == (200, 300.0)
    assert read_load(single).tolist() == [5.0, 7.5]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ":1: job_name must be a column; it has nothing"),
        ("a,b\n1,2\n", ":1: job_name must be a column; it has a, b"),
        ("job_name\n", "holds no hour"),
        ("job_name\n5\n-1\n", ":3: job_name must be a number above 0, got '-1'"),
        ("a,job_name\n5\n", ":2: job_name must be a number above 0, got ''"),
        ("job_name\nnan\n", ":2: job_name must be a number above 0, got 'nan'"),
        ('job_name\n"5\n', "is not CSV"),
    ],
    ids=["empty", "column", "rows", "negative", "short", "nan", "quote"],
)
def test_what_is_no_load_is_named(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text)
    with pytest.raises(LogError) as refused:
        read_load(path)
    assert fault in str(refused.value)
