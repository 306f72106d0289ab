"""What a request may ask for: limits that the router's door and the engine's share, and that the contract states."""

from collections.abc import Sequence

from common.errors import Violations

MAX_ID_CHARACTERS = 128
MAX_TEMPERATURE = 10.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
"""Beyond these, logits would leave the range of their type."""
MAX_LOGIT_BIASES = 4096
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_SUPPRESSED_WORDS = 256
"""Of a request and of a directive: an engine, which gets the words of both, takes twice as many."""
MAX_SUPPRESSED_CHARACTERS = 64


def check_stop(faults: Violations, field: str, stop: Sequence[str]) -> None:
    """Stop strings: any characters, blank ones too."""
    _check_strings(faults, field, stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)


def check_suppressed_words(
    faults: Violations, field: str, words: Sequence[str], most: int = MAX_SUPPRESSED_WORDS
) -> None:
    """Suppressed words: of each, something must be visible."""
    if _check_strings(faults, field, words, most, MAX_SUPPRESSED_CHARACTERS):
        for index, word in enumerate(words):
            faults.require(
                not word or bool(word.strip()), f"{field}[{index}]", "is blank; at least 1 visible character"
            )


def _check_strings(faults: Violations, field: str, values: Sequence[str], most: int, longest: int) -> bool:
    """Whether there are few enough to look at each."""
    if not faults.require(len(values) <= most, field, f"has {len(values):,} entries; at most {most}"):
        return False
    for index, value in enumerate(values):
        at = f"{field}[{index}]"
        faults.require(len(value) > 0, at, "is empty; at least 1 character")
        faults.require(len(value) <= longest, at, f"has {len(value):,} characters; at most {longest}")
    return True
