"""What the evaluator works on: targets of the plan, samples and their answers. Free of protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from common.carbon.intensity import Signal
from common.quality.bound import BoundMethod, Cell, EpochStart, Floor, PairedScore, QualityBound
from common.quality.corrected import LEAST_PAIRS
from common.quality.estimates import Estimates, Verdict
from common.quality.mix import TaskMix

L0 = "L0"
"""The baseline: no directive."""
L0_REVISION = 1
"""L0 is never edited."""
TRIAL = "trial"
"""As what the router serves a directive that is tried and is not one yet."""


@dataclass(frozen=True, slots=True)
class Target:
    """A (model, task, directive) that some policy allows."""

    cell: Cell
    floors: tuple[Floor, ...]
    """Of the policies that allow it, each once: it may be open for one policy and closed for another."""
    grader: str
    revision: int
    """Of the directive; a score of another one does not count."""
    waiting: int
    """Samples with a reference that lack a score of this directive."""
    relative_carbon: float | None
    """Predicted carbon as a share of L0's; None where unknown."""
    judge: str = ""
    """Of the bound in force; empty where there is none."""
    mix: TaskMix | None = None
    """What was asked for when the scores were gathered that it rests on, and what is asked for now; None where that was
    not asked for, or cannot be told yet."""
    worthwhile: int = 0
    """Scores that pay, also where it is known to be open; 0 where its bound serves only to say that."""

    @property
    def label(self) -> str:
        return f"{self.cell.task}/{self.cell.directive}"

    def verdicts(self, estimates: Estimates, own: Cell | None = None) -> dict[Floor, Verdict]:
        """What is known at each floor; with a tenant's own cell, of that tenant's quality."""
        cell = own or self.cell
        bound = estimates.bound(cell)
        if bound is None or bound.revision != str(self.revision):
            return dict.fromkeys(self.floors, "undecided")
        return {floor: estimates.settled(cell, floor.quality, floor.kind) for floor in self.floors}

    def verdict(self, estimates: Estimates) -> Verdict:
        """Undecided while it is so at any floor, else open where it is open at one."""
        verdicts = set(self.verdicts(estimates).values())
        if not verdicts or "undecided" in verdicts:
            return "undecided"
        return "open" if "open" in verdicts else "closed"

    def bounds(
        self, estimates: Estimates, scores: Sequence[PairedScore], starts: Sequence[EpochStart]
    ) -> tuple[QualityBound, ...]:
        """What follows from new scores, and the ends of epochs that they brought: the bound of all tenants, and those
        of the scores' tenants that tell on which side of some floor they are. Within an epoch they go on to do so;
        but one that is corrected may come to tell nothing again, and then has to be in the place of what told.

        Of a tenant only by the method of all: one that leaves a judge's liking for length in would not do as well.
        """
        bound = estimates.bound(self.cell)
        if bound is None:
            return ()
        ended, tenants = {start.cell for start in starts}, {score.tenant for score in scores}
        own = (estimates.bound(cell) for cell in estimates.of_tenants(self.cell) if cell.tenant in tenants)
        found = (bound, *(one for one in own if one and one.method is bound.method and self._tells(estimates, one)))
        # A bound of the few scores since a drop would only blur the withdrawal.
        return tuple(one for one in found if one.cell not in ended)

    def _tells(self, estimates: Estimates, own: QualityBound) -> bool:
        """Whether a tenant's bound tells something, or may have done so since its epoch began."""
        if own.method is BoundMethod.LENGTH_CORRECTED:
            return own.samples >= LEAST_PAIRS
        return bool({*self.verdicts(estimates, own.cell).values()} - {"undecided"})


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What there is to judge, and how clean the grid is."""

    targets: tuple[Target, ...]
    intensities: tuple[tuple[datetime, float], ...]
    """(time, gCO2eq/kWh), hourly, oldest first."""
    now: datetime
    last_reported_at: datetime | None
    withdrawals: tuple[EpochStart, ...] = ()
    """The last of each cell and judge whose reason scores do not show."""

    def target(self, cell: Cell) -> Target | None:
        return next((target for target in self.targets if target.cell == cell), None)

    def floors(self, cell: Cell) -> Sequence[Floor]:
        target = self.target(cell)
        return target.floors if target is not None else ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a sample's prompt at one level."""

    directive: str
    revision: int
    text: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    """"system", "user" or "assistant"."""
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A served request, leased to be judged."""

    sample_id: str
    model: str
    task: str
    reference: str
    grader: str
    served_at: datetime
    answers: tuple[Answer, ...]
    """At hand: the served one, and those generated before."""
    request: bytes
    """pith.router.v1.GenerateRequest with messages, sampling and limits as they were served."""
    turns: tuple[Turn, ...] = ()
    """Its messages."""
    tenant: str = ""

    def answer(self, directive: str, revision: int) -> Answer | None:
        """The answer at hand of a directive's revision; of L0 any."""
        for answer in self.answers:
            if answer.directive == directive and (directive == L0 or answer.revision == revision):
                return answer
        return None


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer that was generated to be judged, and what it cost; None where unknown."""

    answer: Answer
    energy_joules: float | None
    carbon_grams: float | None
    signal: Signal | None
    """What the grams count."""
