"""The same text."""

from __future__ import annotations

from common.quality.graders.normalisation import graded_text, normalised


def exact(answer: str, reference: str, prompt: str = "") -> float:
    """1.0 where graded text and reference are equal once normalised, else 0.0.

    Normalised are Unicode form (NFKC), digits of other scripts, case, whitespace, surrounding quotes and final
    punctuation. Raises ValueError where the reference is blank.
    """
    expected = normalised(graded_text(reference))
    if not expected:
        raise ValueError("reference must not be blank")
    return float(normalised(graded_text(answer)) == expected)
