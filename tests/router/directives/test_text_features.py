"""What is seen of a prompt: the same in every process, bounded, and something for any text."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.directives.text_features import BUCKETS, SURFACE, features_of, table_of


@given(st.text(max_size=3_000))
def test_any_text_has_finite_features(text: str) -> None:
    found = features_of(text)
    assert found.surface.shape == (len(SURFACE),)
    assert np.isfinite(found.surface).all()
    assert len(set(found.buckets.tolist())) == len(found.buckets)
    assert ((found.buckets >= 0) & (found.buckets < BUCKETS)).all()


def test_features_do_not_depend_on_the_process() -> None:
    text = "Who wrote Ulysses in 1922?"
    code = (
        f"from router.directives.text_features import features_of;print(sorted(features_of({text!r}).buckets.tolist()))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"}
    )
    assert printed.stdout.strip() == str(sorted(features_of(text).buckets.tolist()))


def test_words_count_whatever_their_case_and_order_counts_by_pairs() -> None:
    one, other = (set(features_of(text).buckets.tolist()) for text in ("dog bites man", "man bites dog"))
    assert one & other
    assert one != other
    upper = set(features_of("DOG BITES MAN").buckets.tolist())
    assert len(one & upper) >= 5  # words and pairs; the shapes differ


def test_a_long_text_is_read_at_both_ends_only() -> None:
    middle = " ".join(f"filler{number}x" for number in range(50_000))
    one, other = features_of("begin " + middle + " end"), features_of("begin " + middle + " stop")
    assert len(one.buckets) < 2_000
    assert set(one.buckets.tolist()) != set(other.buckets.tolist())


def test_rows_of_a_table_have_length_one_or_none() -> None:
    table = table_of([features_of(text) for text in ("a few words", "", "so many more words than that")])
    lengths = np.sqrt((table.words * table.words).sum(axis=1))
    assert lengths == pytest.approx([1.0, 0.0, 1.0])
    with pytest.raises(ValueError, match="at least one prompt"):
        table_of([])
