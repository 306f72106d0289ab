"""Quality by comparison, where no right answer is known: a directive's answer beside L0's to the same prompt.

A judge says how far it prefers the directive's answer, in [0, 1], a tie being 1/2, once in each order. The mean of both
is the answer's quality. L0's quality is 1/2, a tie with itself. So the share of L0's quality that a directive keeps is
twice the mean preference: a floor of 0.95 asks for a preference of 0.475, and a share above 1 says that the judge likes
the directive's answers better. An absolute floor is one of the preference itself. The mean that decides is not that of
the preferences as they are, but of what they would be at equal length (`corrected`).
"""

from __future__ import annotations

from dataclasses import dataclass

PAIRWISE = "pairwise"
"""Name, as a policy's grader, of judging by a language model."""
BASELINE_QUALITY = 0.5
MAX_COMPARED_CHARACTERS = 10_000_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a judge was shown and said: what an estimate at equal length and balanced order is made from.

    Raises ValueError, naming the field, for a preference outside [0, 1] or lengths below 0 or above
    MAX_COMPARED_CHARACTERS.
    """

    characters: int
    """Of the directive's answer, whole; 0 where it is blank."""
    baseline_characters: int
    shown_first: float
    """Preference for the directive's answer when it was shown first, in [0, 1]."""
    shown_second: float
    """The same when L0's answer was shown first."""

    def __post_init__(self) -> None:
        for name in ("shown_first", "shown_second"):
            value = getattr(self, name)
            if not 0 <= value <= 1:  # also false for NaN
                raise ValueError(f"{name} must be in [0, 1], got {value!r}")
        for name in ("characters", "baseline_characters"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_COMPARED_CHARACTERS:
                raise ValueError(f"{name} must be 0 to {MAX_COMPARED_CHARACTERS:,}, got {value!r}")

    @property
    def quality(self) -> float:
        """Mean over both orders, in hundredths: what bounds keep grows with the number of different scores."""
        return round((self.shown_first + self.shown_second) / 2, 2)
