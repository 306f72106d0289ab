"""How much of its words an answer has in common with the right one."""

from __future__ import annotations

from collections import Counter

from common.quality.graders.aliases import aliases_of
from common.quality.graders.normalisation import graded_text, words


def token_f1(answer: str, reference: str, prompt: str = "") -> float:
    """F1 of the words of the graded text and of the reference, the best where ";" separates several; in [0, 1].

    As in the evaluation of SQuAD (Rajpurkar et al. 2016, section 6.1). Precision falls with every word beside the
    answer: it favours brief answers as much as containment favours long ones. Raises ValueError where the reference
    holds no word.
    """
    said = Counter(words(graded_text(answer)))
    return max(overlap(said, Counter(alias)) for alias in aliases_of(reference))


def overlap(said: Counter[str], wanted: Counter[str]) -> float:
    """F1 of two bags of words; 0 where either is empty. Looks up the words of the second in the first."""
    shared = (wanted & said).total()
    return 2 * shared / (said.total() + wanted.total()) if shared else 0.0
