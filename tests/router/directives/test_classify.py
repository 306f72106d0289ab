"""The task from the text."""

import warnings
import zlib

import numpy as np
import pytest

from router.directives.classify import guarded_places, train, train_on_texts
from router.directives.text_features import features_of, table_of
from tests.router.directives.recorded import needs_data, rows

SUMS = [f"Tom has {number} apples and eats {number // 2}. How many are left?" for number in range(2, 42)]
POEMS = [
    f"write a poem about {thing} in {month}" for thing in ("rain", "love", "bread") for month in ("may", "june", "july")
]
LETTERS = [
    f"Write a formal letter to {name} about the {thing}." for name in ("Ann", "Bob", "Eve") for thing in ("rent", "job")
]


def test_tasks_are_told_apart() -> None:
    classifier = train_on_texts(SUMS[::2] + POEMS[::2] + LETTERS, ["sums"] * 20 + ["poems"] * 5 + ["letters"] * 6)
    assert {classifier.classify(text) for text in SUMS[1::2]} == {"sums"}
    assert {classifier.classify(text) for text in POEMS[1::2]} == {"poems"}
    table = table_of([features_of(text) for text in SUMS])
    assert classifier.likelihoods(table).argmax(axis=1).tolist() == [classifier.tasks.index("sums")] * 40


def test_what_may_well_be_of_a_task_that_claims_it_is_left_for_no_other() -> None:
    likelihoods = np.array([[0.97, 0.02, 0.01], [0.6, 0.3, 0.1], [0.1, 0.85, 0.05], [0.02, 0.08, 0.9]])
    nothing, first = np.array([2.0, 2.0, 2.0]), np.array([0.1, 2.0, 2.0])
    assert guarded_places(likelihoods, nothing).tolist() == [0, 0, 1, 2]
    assert guarded_places(likelihoods, first).tolist() == [0, 0, 3, 2]
    assert guarded_places(likelihoods, np.array([0.02, 0.3, 2.0])).tolist() == [0, 3, 3, 3]


def test_likelihoods_are_of_one_task_or_another_and_calibrated_where_nothing_is_told() -> None:
    sure = train_on_texts(SUMS + POEMS, ["sums"] * 40 + ["poems"] * 9)
    likelihoods = sure.likelihoods(table_of([features_of(text) for text in (SUMS[0], POEMS[0], "")]))
    assert likelihoods.sum(axis=1) == pytest.approx([1.0, 1.0, 1.0])
    assert likelihoods[0, 0] > 0.95
    unsure = train_on_texts(SUMS, ["one", "other"] * 20)
    assert np.log(unsure.held_out[np.arange(40), unsure.labelled]).mean() > np.log(0.35)


def test_confusion_is_of_prompts_left_out() -> None:
    confused = train_on_texts(SUMS, ["one", "other"] * 20)
    confusion = confused.confusion(np.array([2.0, 2.0]))
    assert confusion.sum(axis=1) == pytest.approx([1.0, 1.0])
    # In sample they would be told apart by their numbers.
    assert confusion[0, 0] < 0.9
    assert confusion[:, 2].tolist() == [0.0, 0.0]
    assert confused.confusion(np.array([0.0, 0.0]))[:, 2] == pytest.approx([1.0, 1.0])


def test_one_prompt_unlike_all_others_is_learnt_from_without_a_warning() -> None:
    texts = ["x" * 20_000, "y", "z", "q", "w", "e 1", "r 2", "t 3", "u 4", "i 5"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = train_on_texts(texts, ["a", "b"] * 5)
    assert classifier.likelihoods_of("y").sum() == pytest.approx(1.0)


def test_likelihoods_of_one_prompt_are_those_of_a_table() -> None:
    classifier = train_on_texts(SUMS + POEMS + LETTERS, ["sums"] * 40 + ["poems"] * 9 + ["letters"] * 6)
    texts = [*SUMS[:3], *POEMS, "", "Ann, write in may?"]
    table = classifier.likelihoods(table_of([features_of(text) for text in texts]))
    assert np.array([classifier.likelihoods_of(text) for text in texts]) == pytest.approx(table)


def test_labels_must_be_of_tasks() -> None:
    with pytest.raises(ValueError, match="two tasks, got sums"):
        train_on_texts(SUMS, ["sums"] * 40)
    with pytest.raises(ValueError, match="places must be 0 to 1, got 0 to 2"):
        train(table_of([features_of(text) for text in SUMS[:3]]), np.array([0, 1, 2]), ("a", "b"))


@needs_data
def test_a_hundred_labelled_prompts_a_task_are_enough_for_published_tasks() -> None:
    tasks = sorted({row["task"] for row in rows()})
    task = np.array([tasks.index(row["task"]) for row in rows()])
    fold = np.array([zlib.crc32(row["prompt"].encode()) % 5 for row in rows()])
    rng = np.random.default_rng(0)
    labelled = np.concatenate(
        [rng.permutation(np.flatnonzero((task == t) & (fold > 0)))[:100] for t in range(len(tasks))]
    )
    table = table_of([features_of(row["prompt"]) for row in rows()])
    classifier = train(table.rows(labelled), task[labelled], tasks)
    held_out = np.flatnonzero(fold == 0)
    told = classifier.likelihoods(table.rows(held_out)).argmax(axis=1)
    right = [np.sum((told == t) & (task[held_out] == t)) for t in range(len(tasks))]
    all_of = [np.sum(told == t) + np.sum(task[held_out] == t) for t in range(len(tasks))]
    f1 = 2 * np.array(right) / np.array(all_of)
    assert f1.mean() >= 0.95
    assert f1.min() >= 0.9
