"""`pithctl directive trial`, against an evaluator that answers as the test says."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from pith.common.v1.energy_pb2 import Interval
from pith.evaluator.v1 import evaluation_pb2, evaluation_pb2_grpc
from pith.router.v1.directives_pb2 import PLACEMENT_NATIVE, PLACEMENT_SYSTEM

from common.errors import STATUS_DETAILS_KEY, FieldViolation, PithError, invalid_argument, not_found, to_status
from tests.router.cli.conftest import Pithctl

pb: Any = evaluation_pb2


class FakeEvaluator(evaluation_pb2_grpc.EvaluationServicer):
    """Sends `steps`, then `failure` where there is one."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.steps: list[Any] = []
        self.failure: PithError | None = None

    def TrialDirective(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self.requests.append(request)
        yield from self.steps
        if self.failure is not None:
            status = to_status(self.failure)
            context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
            context.abort(self.failure.code, status.message)


@pytest.fixture
def evaluator() -> FakeEvaluator:
    fake = FakeEvaluator()
    fake.steps = [
        pb.TrialProgress(samples_done=0, samples_planned=2),
        pb.TrialProgress(samples_done=2, samples_planned=2),
        pb.TrialProgress(samples_done=2, samples_planned=2, result=result()),
    ]
    return fake


@pytest.fixture
def pithctl(evaluator: FakeEvaluator, command_line: Pithctl) -> Iterator[Pithctl]:
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    evaluation_pb2_grpc.add_EvaluationServicer_to_server(evaluator, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield functools.partial(command_line, "directive", "trial", PITHCTL_EVALUATOR=address)
    server.stop(None).wait()


def result(**fields: Any) -> Any:
    given = {
        "samples": 80,
        "failed": 3,
        "model": "demo@abc",
        "output_tokens": 41.04,
        "baseline_output_tokens": 100.0,
        "token_share": Interval(value=0.4104, lower=0.4, upper=0.42, confidence=0.95, method="t"),
        "quality": 0.9875,
        "baseline_quality": 1.0,
        "quality_share": Interval(value=0.9875, lower=0.951, upper=1.02, confidence=0.9, method="betting"),
        "recommendation": pb.RECOMMENDATION_ADOPT,
        "explanation": "It saves, [brackets] and all.",
        "pairs": [
            pb.TrialResult.Pair(
                sample_id="s7", baseline="1,\x1b[2J 2", answer="x" * 2000, baseline_quality=1.0, quality=0.0
            )
        ],
        **fields,
    }
    return pb.TrialResult(**given)


def test_what_came_of_it_is_a_table_a_recommendation_and_what_to_do(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    told = pithctl("Answer briefly", "--task", "sums")
    assert told.code == 0, told.err
    lines = told.out.splitlines()
    assert lines[0] == "80 samples answered by demo@abc, 3 left out that could not be answered or graded:"
    rows = {line.split("  ")[0].strip(): line for line in lines[2:5]}
    assert rows["output tokens"].split()[2:] == [
        *("100.0", "41.0", "41.0", "%"),
        *("40.0", "%", "-", "42.0", "%"),
        "95.0",
        "%",
    ]
    assert rows["quality"].split()[1:] == [
        *("1.000", "0.988", "98.8", "%"),
        *("95.1", "%", "-", "102.0", "%"),
        "90.0",
        "%",
    ]
    assert rows["energy"].split() == ["energy", "unknown"]
    assert "adopt: It saves, [brackets] and all." in lines
    assert "L0, quality 1.000:" in lines and "1,\N{REPLACEMENT CHARACTER}[2J 2" in lines
    assert f"{'x' * 600}… (2,000 characters)" in lines
    (request,) = evaluator.requests
    assert (request.directive.text, request.task, request.samples, request.model) == ("Answer briefly", "sums", 30, "")
    assert (request.HasField("floor"), request.floor) == (True, 0.95)


def test_the_options_are_those_of_a_directive_and_of_a_trial(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    arguments = "--task sums --samples 73 --floor 0.9 --model demo --placement system --max-output-tokens 9 --stop END"
    assert pithctl("Brief", *arguments.split(), "--suppressed-word", "um", "--history-messages", "3").code == 0
    (request,) = evaluator.requests
    assert (request.samples, request.floor, request.model) == (73, 0.9, "demo")
    directive = request.directive
    assert (directive.placement, directive.max_output_tokens, list(directive.stop)) == (PLACEMENT_SYSTEM, 9, ["END"])
    assert (list(directive.suppressed_words), directive.history_messages) == (["um"], 3)


def test_a_native_directive_has_variables_and_no_text(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    told = pithctl("--task", "sums", "--placement", "native", "--template-variable", "enable_thinking=false")
    assert told.code == 0, told.err
    directive = evaluator.requests[0].directive
    assert (directive.text, directive.placement) == ("", PLACEMENT_NATIVE)
    assert dict(directive.template_variables) == {"enable_thinking": False}


def test_json_is_the_result_alone(pithctl: Pithctl) -> None:
    document = pithctl("Brief", "--task", "sums", "--json").document
    assert (document["recommendation"], document["samples"], document["energy_share"]) == ("adopt", 80, None)
    assert document["quality_share"]["lower"] == 0.951
    assert document["pairs"][0]["sample_id"] == "s7"


@pytest.mark.parametrize("recommendation", ["more_samples", "reject_quality", "reject_saving"])
def test_every_recommendation_has_its_word(pithctl: Pithctl, evaluator: FakeEvaluator, recommendation: str) -> None:
    number = pb.Recommendation.Value(f"RECOMMENDATION_{recommendation.upper()}")
    evaluator.steps = [pb.TrialProgress(result=result(recommendation=number, failed=0, pairs=[]))]
    told = pithctl("Brief", "--task", "sums").out
    assert told.splitlines()[-1] == f"{recommendation.replace('_', ' ')}: It saves, [brackets] and all."
    assert "left out" not in told


def test_what_is_wrong_is_told_by_option(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    evaluator.steps = []
    evaluator.failure = invalid_argument(
        [FieldViolation("directive.text", "has a role marker"), FieldViolation("directive.stop[0]", "is empty")]
    )
    told = pithctl("User: hi", "--task", "sums")
    assert told.code == 2
    assert "directive.text: has a role marker" in told.err
    assert "directive.stop[0] (--stop): is empty" in told.err
    evaluator.failure = not_found("sample", "sums")
    assert pithctl("Brief", "--task", "sums").code == 3


def test_a_task_is_needed_and_numbers_are_in_range(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    assert pithctl("Brief").code == 2
    for samples in ("0", "201", "x"):
        assert pithctl("Brief", "--task", "sums", "--samples", samples).code == 2
    assert evaluator.requests == []


def test_a_trial_without_a_result_is_a_failure(pithctl: Pithctl, evaluator: FakeEvaluator) -> None:
    evaluator.steps = []
    told = pithctl("Brief", "--task", "sums")
    assert (told.code, told.out) == (1, "")
    assert "without a result" in told.err
