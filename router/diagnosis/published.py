"""What others have measured of directives, for a diagnosis without evidence of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from router.diagnosis.effect import Effect
from router.diagnosis.evidence import Evidence

_FITTED: Final = (
    # task, directive, requests, center, intercept, slope, covariance, dispersion, shortest, longest, extra input tokens
    ("alpaca", "L1", 994, 6.0, 4.793, 0.6399, (0.0006748, 0.0002539, 0.01034), 0.4534, 15.3, 950.1, 18.0),
    ("alpaca", "L2", 994, 5.927, 4.398, 0.5601, (0.001081, 0.0004387, 0.01047), 0.686, 15.3, 950.1, 18.0),
    ("math", "L1", 1007, 5.237, 4.179, 0.6394, (0.0006875, 0.0005277, 0.0132), 0.6118, 66.15, 386.6, 18.0),
    ("math", "L2", 1007, 5.208, 3.72, 0.5085, (0.0008301, 0.0005218, 0.01352), 0.771, 66.15, 386.6, 18.0),
    ("mmlu", "L1", 991, 5.526, 3.935, 0.7579, (0.001281, 0.0008995, 0.01286), 1.015, 45.75, 463.5, 18.0),
    ("mmlu", "L2", 991, 5.497, 3.359, 0.6413, (0.00164, 0.001177, 0.014), 1.328, 45.75, 463.5, 18.0),
    ("naturalqa", "L1", 1014, 5.52, 3.389, 0.3845, (0.001149, 0.0008541, 0.01132), 0.7713, 27.93, 688.9, 18.0),
    ("naturalqa", "L2", 1014, 5.426, 2.968, 0.2718, (0.0009462, 0.0005157, 0.01119), 0.7989, 27.93, 688.9, 18.0),
    ("scienceqa", "L1", 987, 4.502, 3.323, 0.4291, (0.0005673, 0.000376, 0.01109), 0.4677, 17.0, 212.7, 17.37),
    ("scienceqa", "L2", 987, 4.465, 2.904, 0.3147, (0.0005397, 0.0002513, 0.01122), 0.4893, 17.0, 212.7, 18.37),
    ("triviaqa", "L1", 975, 4.769, 2.945, 0.2387, (0.001084, 0.0007844, 0.01187), 0.8347, 16.64, 444.6, 18.0),
    ("triviaqa", "L2", 975, 4.747, 2.481, 0.2106, (0.001776, 0.001325, 0.01315), 1.392, 16.64, 444.6, 18.0),
)
"""`fit_effect` on half of the requests whose energies SPROUT's authors published (Llama-2-13B-chat, one at a time on an
A100), tokens reckoned by their energy law; `python -m tests.bench.diagnosis --published` prints the rows anew."""

LOG_SHARES_BY_MODEL: Final[Mapping[str, float]] = MappingProxyType(
    {
        "Llama-2-13B-chat, L1": -1.23,
        "gpt-4-0613, concise": -0.588,
        "gpt-4-1106-preview, concise": -0.562,
        "gpt-3.5-turbo-1106, concise": -0.613,
        "claude-2.1, concise": -0.634,
        "Mixtral-8x7B-Instruct, concise": -0.399,
        "alpaca-7b, concise": -0.172,
    }
)
"""Log of the share of characters that answers to general instructions keep: from AlpacaEval's published outputs of six
models with and without a request to be as concise as possible, beside SPROUT's on its set of the same kind. Models and
wordings are mixed in it, as they are between a published effect and somebody's model."""


def _published() -> Evidence:
    shares = [*LOG_SHARES_BY_MODEL.values()]
    mean = sum(shares) / len(shares)
    variance = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
    return Evidence(
        effects=tuple(Effect(*row) for row in _FITTED),
        source="published measurements of Llama-2-13B (SPROUT, EMNLP 2024)",
        # Of the difference of two models: one was measured, the other is the log's.
        transfer_deviation=(2 * variance) ** 0.5,
        transfer_freedom=len(shares) - 1,
    )


PUBLISHED: Final = _published()

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"gsm8k": "math", "maths": "math", "nq": "naturalqa", "naturalquestions": "naturalqa", "instructions": "alpaca"}
)
"""Names of tasks that mean a published one."""


@dataclass(frozen=True, slots=True)
class PublishedQuality:
    """What a directive left of a task's quality, where others have measured it."""

    before: float
    after: float
    deviation: float
    """Standard error of the share that is kept."""
    judged: bool = False
    """The share of answers that a judge preferred among three, which favours long ones; else accuracy."""

    @property
    def kept(self) -> float:
        return self.after / self.before

    def falls_below(self, floor: float) -> bool:
        """Beyond what chance explains, at two standard errors."""
        return self.kept + 2 * self.deviation < floor

    def stays_above(self, floor: float) -> bool:
        """As well."""
        return self.kept - 2 * self.deviation >= floor


QUALITY: Final[Mapping[tuple[str, str], PublishedQuality]] = MappingProxyType(
    {
        ("math", "L1"): PublishedQuality(0.335, 0.180, 0.04),
        ("math", "L2"): PublishedQuality(0.335, 0.144, 0.04),
        ("mmlu", "L1"): PublishedQuality(0.509, 0.505, 0.05),
        ("mmlu", "L2"): PublishedQuality(0.509, 0.503, 0.05),
        ("naturalqa", "L1"): PublishedQuality(0.504, 0.469, 0.05),
        ("naturalqa", "L2"): PublishedQuality(0.504, 0.455, 0.05),
        ("triviaqa", "L1"): PublishedQuality(0.598, 0.683, 0.05),
        ("triviaqa", "L2"): PublishedQuality(0.598, 0.679, 0.05),
        ("scienceqa", "L1"): PublishedQuality(0.731, 0.666, 0.03),
        ("scienceqa", "L2"): PublishedQuality(0.731, 0.654, 0.03),
        ("alpaca", "L1"): PublishedQuality(0.544, 0.256, 0.03, judged=True),
        ("alpaca", "L2"): PublishedQuality(0.544, 0.200, 0.03, judged=True),
    }
)
"""From SPROUT's published results: accuracy against references (800 to 2,000 answers), and its judge's preference among
L0, L1 and L2 where there is no reference. For math it is counted from the published answers: the last number is the
reference's."""


def published_name(task: str) -> str:
    """The published task that a task's name means; the name itself where it means none."""
    plain = task.strip().lower()
    return ALIASES.get(plain, plain)
