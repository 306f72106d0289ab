"""The one sentence that an operator reads of a task."""

import pytest

from common.quality.interval import Interval
from router.diagnosis.diagnose import Saving, TaskDiagnosis
from router.diagnosis.published import QUALITY
from router.diagnosis.verdict import Outlook, verdict


def saving(directive: str, value: float, lower: float, upper: float, *, task: str = "", known: bool = True) -> Saving:
    return Saving(directive, Interval(value, lower, upper, 0.95, ""), known, "x", QUALITY.get((task, directive)))


def task(
    *savings: Saving, answers: tuple[float, float] = (0.9, 0.9), lengths: tuple[float, float] = (2000, 28)
) -> TaskDiagnosis:
    return TaskDiagnosis("t", 100, *lengths, 1.0, answers, savings)


@pytest.mark.parametrize(
    ("found", "outlook", "sentence"),
    [
        (task(saving("L1", 0.62, 0.51, 0.70)), Outlook.SAVES, "L1 saves 62 % (51 to 70 %)"),
        (
            task(saving("L1", 0.62, 0.51, 0.70), saving("L2", 0.8, 0.6, 0.9, known=False)),
            Outlook.SAVES,
            "L2 saves 80 % (60 to 90 %), going by other tasks",
        ),
        (
            task(saving("L1", 0.03, -0.01, 0.04)),
            Outlook.HARDLY,
            "hardly anything to save: 28 output tokens after 2,000 input tokens",
        ),
        (
            task(saving("L1", 0.08, 0.02, 0.1), answers=(0.05, 0.12)),
            Outlook.HARDLY,
            "hardly anything to save: 28 output tokens after 2,000 input tokens",
        ),
        (
            task(saving("L1", -0.3, -0.5, -0.1)),
            Outlook.HARDLY,
            "directives would cost energy: 28 output tokens after 2,000 input tokens",
        ),
        (
            task(saving("L1", 0.6, 0.5, 0.7, task="math"), saving("L2", 0.8, 0.7, 0.9, task="math")),
            Outlook.QUALITY,
            "do not expect it: published measurements show that accuracy falls (33.5 -> 14.4 %) with L2, which saves "
            "80 % (70 to 90 %)",
        ),
        (
            task(saving("L2", 0.8, 0.7, 0.9, task="alpaca")),
            Outlook.QUALITY,
            "do not expect it: published measurements show that a judge prefers the answer less often (54.4 -> 20.0 %, "
            "of three) with L2, which saves 80 % (70 to 90 %)",
        ),
        (
            task(saving("L2", 0.9, 0.7, 0.95, task="triviaqa")),
            Outlook.SAVES,
            "L2 saves 90 % (70 to 95 %); published quality holds: accuracy rises (59.8 -> 67.9 %)",
        ),
        (
            task(saving("L2", 0.9, 0.7, 0.95, task="scienceqa")),
            Outlook.SAVES,
            "L2 saves 90 % (70 to 95 %); published quality does not decide it: accuracy falls (73.1 -> 65.4 %)",
        ),
        (
            task(saving("L1", 0.4, -0.05, 0.7, known=False), answers=(0.3, 0.9)),
            Outlook.UNSURE,
            "cannot say: L1 saves between -5 % and 70 %; the task is not known to the evidence; answers are 30 to 90 % "
            "of its energy, by how many decode together",
        ),
        (
            task(saving("L1", -0.1, -0.5, 0.2)),
            Outlook.UNSURE,
            "do not expect any: L1 saves -10 % (-50 to 20 %)",
        ),
        (
            task(Saving("L1", None, False, "")),
            Outlook.UNKNOWN,
            "cannot say: no evidence of these directives",
        ),
    ],
)
def test_verdicts(found: TaskDiagnosis, outlook: Outlook, sentence: str) -> None:
    said = verdict(found, 0.95)
    assert (said.outlook, said.sentence) == (outlook, sentence)


def test_a_lower_floor_lets_quality_pass() -> None:
    found = task(saving("L1", 0.6, 0.5, 0.7, task="math"))
    assert verdict(found, 0.95).outlook is Outlook.QUALITY
    assert verdict(found, 0.4).outlook is Outlook.SAVES


def test_no_zero_is_negative() -> None:
    assert "(0 to 40 %)" in verdict(task(saving("L1", 0.3, 0.001, 0.4)), 0.95).sentence
    assert "(0 to 6 %)" not in verdict(task(saving("L1", 0.03, -0.001, 0.06)), 0.95).sentence
