"""Which bounds no longer hold, for reasons that scores do not show: another judge, another mix of requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import structlog

from common.quality.bound import EpochReason, EpochStart
from common.quality.graders import grader_of
from evaluator.client import RouterClient
from evaluator.judges.base import Judge
from evaluator.knowledge import Knowledge
from evaluator.samples import EvaluationPlan

log = structlog.get_logger("invalidation")


async def withdraw_outdated(router: RouterClient, knowledge: Knowledge, judge: Judge) -> EvaluationPlan:
    """Has the router withdraw the bounds that no longer hold, and returns the plan as it is then; estimates rest on
    what still counts.

    Raises PithError where the router cannot be reached.
    """
    plan = await knowledge.refresh(with_mix=True)
    await judge.prepare({target.grader for target in plan.targets})
    if starts := tuple(outdated(plan, judge.name)):
        # They rest on no scores, so that it is all the same which are known.
        await router.report([], [], starts, position="")
        plan = await knowledge.refresh()
    await knowledge.ensure()
    return plan


def outdated(plan: EvaluationPlan, judge_name: Callable[[str], str]) -> Iterator[EpochStart]:
    """What ends, of the bounds in force.

    A bound by another grader than that which counts is closed by the router itself, for it knows the policies; by which
    model, asked in which way, or by which revision of its rules the present judge is, the router cannot know.

    judge_name: of a grader at present; "" where it is not known.
    """
    for target in plan.targets:
        judge = judge_name(target.grader)
        if not target.judge or not judge:
            continue
        of = {"task": target.cell.task, "directive": target.cell.directive, "model": target.cell.model}
        if target.judge != judge:
            if grader_of(target.judge) == target.grader:
                log.warning("withdrawn: another judge", **of, judge=judge, earlier_judge=target.judge)
                yield EpochStart(target.cell, target.judge, EpochReason.JUDGE, plan.now)
        elif target.mix is not None and (shift := target.mix.shift()) is not None:
            log.warning(
                "withdrawn: another mix of requests",
                **of,
                by=shift.trait,
                distance=round(shift.distance, 3),
                at_least=round(shift.lower, 3),
            )
            yield EpochStart(target.cell, judge, EpochReason.TASK_MIX, plan.now)
