"""What Feedback refuses of a draw and of a report, field by field."""

import math
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pith.router.v1 import feedback_pb2

from common.clock import ManualClock
from router.snapshot import SnapshotKeeper
from tests.router.admin_client import MODEL, faults
from tests.router.quality_reports import bound, draw, report, score, scored

pb: Any = feedback_pb2
NAN = math.nan


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"model": ""}, "model", "is empty"),
        ({"directives": [], "model": "x" * 129}, "model", "at most 128"),
        ({"directives": [], "count": 201}, "count", "is 201; must be 1 to 200"),
        ({"name": ""}, "evaluator", "is empty"),
        ({"task": "x" * 129}, "task", "at most 128"),
        ({"directives": ["L0"]}, "directives[0]", "is L0"),
        ({"directives": ["L1", "L7"]}, "directives[1]", "is 'L7', which does not exist; must be one of L1, L2"),
        ({"count": 0}, "count", "is 0; must be 1 to 200"),
        ({"count": 201}, "count", "is 201; must be 1 to 200"),
        ({"lease": Duration(seconds=0)}, "lease", "is 0 s; must be above 0 and at most a day"),
        ({"lease": Duration(seconds=86_401)}, "lease", "is 86401 s"),
        ({"lease": Duration(seconds=-1)}, "lease", "is -1 s"),
    ],
)
async def test_a_faulty_draw_is_refused_by_field(evaluator: Any, fields: Any, field: str, fault: str) -> None:
    found = await faults(draw(evaluator, **fields))
    assert set(found) == {field}
    assert fault in found[field]


@pytest.mark.parametrize(
    ("scores", "field", "fault"),
    [
        ([pb.SampleScores(scores=[])], "scores[0].sample_id", "is empty"),
        ([scored("s0", score(quality=NAN))], "scores[0].scores[0].quality", "is nan; must be in [0, 1]"),
        ([scored("s0", score(quality=1.1))], "scores[0].scores[0].quality", "is 1.1"),
        ([scored("s0", score(baseline_quality=-1))], "scores[0].scores[0].baseline_quality", "is -1"),
        ([scored("s0", score(judge=""))], "scores[0].scores[0].judge", "is empty"),
        (
            [scored("s0", score(comparison=pb.Comparison(shown_first=NAN)))],
            "scores[0].scores[0].comparison.shown_first",
            "is nan; must be in [0, 1]",
        ),
        (
            [scored("s0", score(comparison=pb.Comparison(shown_second=-0.1)))],
            "scores[0].scores[0].comparison.shown_second",
            "is -0.1",
        ),
        (
            [scored("s0", score(comparison=pb.Comparison(baseline_characters=10_000_001)))],
            "scores[0].scores[0].comparison.baseline_characters",
            "is 10,000,001; at most 10,000,000",
        ),
        ([scored("s0", score("a b"))], "scores[0].scores[0].directive", "is 'a b'"),
        ([scored("s0", score(directive_revision=0))], "scores[0].scores[0].directive_revision", "is 0"),
        ([scored("s0", score(), score())], "scores[0].scores", "more than one of L1 at revision 1"),
        ([scored("s0"), scored("s0", score("L2"))], "scores", "holds sample 's0' more than once"),
        ([scored("s0", answers=[pb.Answer()])], "scores[0].answers[0].directive", "is ''"),
        ([scored(f"s{n}") for n in range(1001)], "scores", "has 1,001 entries; at most 1,000"),
    ],
)
async def test_faulty_scores_are_refused_by_field(evaluator: Any, scores: Any, field: str, fault: str) -> None:
    found = await faults(report(evaluator, scores=scores))
    assert fault in found[field]


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"lower": NAN}, "lower", "is nan; must be finite and at least 0"),
        ({"lower": 1.5}, "lower", "is 1.5, above upper 1.02"),
        ({"upper": math.inf}, "upper", "is inf"),
        ({"share": -1.0}, "share", "is -1"),
        ({"absolute_lower": 1.01}, "absolute_lower", "is 1.01; must be in [0, 1]"),
        ({"absolute_upper": 0.89}, "absolute_upper", "is 0.89; must be in [absolute_lower, 1]"),
        ({"absolute_upper": math.nan}, "absolute_upper", "is nan; must be in"),
        ({"raw": feedback_pb2.QualityBound.RawShare(lower=math.nan)}, "raw.lower", "is nan; must be finite"),
        ({"samples": 0}, "samples", "is 0; must be 1 to"),
        ({"samples": 2**64 - 1}, "samples", "must be 1 to"),
        ({"judge": ""}, "judge", "is empty"),
        ({"directive_revision": 2**32 - 1}, "directive_revision", "is 4,294,967,295; must be 1 to 2,147,483,647"),
        ({"updated_at": None}, "updated_at", "is missing or out of range"),
        ({"updated_at": Timestamp(seconds=2**60)}, "updated_at", "is missing or out of range"),
        ({"updated_at": Timestamp(seconds=4 * 10**9)}, "updated_at", "in the future; the router's time is 2026-01-01"),
    ],
)
async def test_a_faulty_bound_is_refused_by_field(
    evaluator: Any, keeper: SnapshotKeeper, clock: ManualClock, fields: Any, field: str, fault: str
) -> None:
    found = await faults(report(evaluator, bounds=[bound(clock, **fields)]))
    assert fault in found[f"bounds[0].{field}"]
    assert keeper.snapshot.bounds == {}


async def test_more_faults_of_a_report(evaluator: Any, clock: ManualClock) -> None:
    found = await faults(report(evaluator, bounds=[bound(clock), bound(clock)], withdrawals=[pb.Withdrawal()]))
    assert found["bounds"] == f"holds more than one of cell ({MODEL}, sums, L1)"
    assert set(found) == {
        "bounds",
        "withdrawals[0].cell.model",
        "withdrawals[0].cell.directive",
        "withdrawals[0].reason",
    }
    assert set(await faults(report(evaluator, name="e\n"))) == {"evaluator"}
