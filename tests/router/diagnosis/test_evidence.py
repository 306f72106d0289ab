"""Evidence in files: whose lengths count, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.energy.sweet_spot import SweetSpot
from router.diagnosis.evidence import EXTRA_INPUT_TOKENS, PUBLISHED_MISFIT, read_evidence
from router.diagnosis.law import Law
from router.diagnosis.lines import LogError
from router.diagnosis.published import PUBLISHED, QUALITY, published_name
from tests.router.diagnosis.planted import EXTRA, TASKS, evidence_file

LAW = Law(SweetSpot(input_joules=0.1, output_joules=2.0), "planted")


def written(folder: Path, variants: dict[str, Any], requests: int = 30, **more: Any) -> Path:
    path = folder / "evidence.jsonl"
    path.write_text((json.dumps({"task": "t", "variants": variants, **more}) + "\n") * requests)
    return path


def kept_of(path: Path, law: Law | None = None) -> float:
    """By the answers of requests that are all alike."""
    from router.diagnosis.effect import mean_tokens

    (effect,) = read_evidence(path, law).effects
    import numpy as np

    return float(mean_tokens(effect, np.array([100.0]))[0] / 100)


def test_effects_are_learned_by_task(tmp_path: Path) -> None:
    found = read_evidence(evidence_file(tmp_path))
    assert [(e.task, e.directive, e.requests) for e in found.effects] == [(t, "brief", 60) for t in sorted(TASKS)]
    assert all(effect.extra_input_tokens == pytest.approx(EXTRA) for effect in found.effects)
    # What the law may miss at other lengths is in the slope's variance, though this world has nothing to miss.
    assert all(effect.covariance[2] > PUBLISHED_MISFIT for effect in found.effects)
    assert found.transfer_deviation == 0
    assert (found.source, found.directives) == ("evidence.jsonl, 240 requests", ("brief",))


def test_tokens_go_before_energies_and_those_before_texts(tmp_path: Path) -> None:
    before = {"output_tokens": 100, "energy_joules": 200.0, "answer": "x" * 400}
    after = {"output_tokens": 40, "energy_joules": 60.0 + 0.1 * EXTRA_INPUT_TOKENS, "answer": "x" * 80}
    both = {"L0": before, "L1": after}
    assert kept_of(written(tmp_path, both), LAW) == pytest.approx(0.4)
    without = {name: {k: v for k, v in each.items() if k != "output_tokens"} for name, each in both.items()}
    assert kept_of(written(tmp_path, without), LAW) == pytest.approx(0.3)
    assert kept_of(written(tmp_path, without)) == pytest.approx(0.2)
    assert "their characters / 4" in read_evidence(written(tmp_path, without)).notes[0]
    kwh = {name: {"energy_kwh": each["energy_joules"] / 3.6e6} for name, each in both.items()}
    assert kept_of(written(tmp_path, kwh), LAW) == pytest.approx(0.3)


def test_a_model_without_directives_is_passed_over(tmp_path: Path) -> None:
    tokens = {"output_tokens": 100}
    path = written(tmp_path, {"13b/L0": tokens, "13b/L1": {"output_tokens": 50}, "7b/L0": {"output_tokens": 900}})
    assert kept_of(path) == pytest.approx(0.5)
    with pytest.raises(LogError, match="several models with directives, a, b; keep one"):
        read_evidence(written(tmp_path, {f"{model}/{level}": tokens for model in "ab" for level in ("L0", "L1")}))


def test_too_few_requests_are_left_out_and_named(tmp_path: Path) -> None:
    path = evidence_file(tmp_path)
    few = json.dumps({"task": "rare", "variants": {"L0": {"output_tokens": 9}, "brief": {"output_tokens": 3}}})
    path.write_text(path.read_text() + (few + "\n") * 19)
    found = read_evidence(path)
    assert "rare" not in {effect.task for effect in found.effects}
    assert any("brief for task 'rare' has 19 requests" in note for note in found.notes)
    with pytest.raises(
        LogError, match="no task has 20 requests answered both at L0 and with a directive, the most is 19"
    ):
        read_evidence(written(tmp_path, {"L0": {"output_tokens": 1}, "L1": {"output_tokens": 1}}, requests=19))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", ":1: is not JSON"),
        ('{"task": 5, "variants": {}}', ":1: task must be text"),
        ('{"task": "t"}', ":1: variants must be an object of objects"),
        ('{"task": "t", "variants": {"L0": 5}}', ":1: variants must be an object of objects"),
        (
            '{"task": "t", "variants": {"L0": {"output_tokens": -1}, "L1": {}}}',
            "output_tokens must be a number from 0 to 1e9, got -1",
        ),
        ('{"task": "t", "variants": {"L0": {"output_tokens": true}, "L1": {}}}', "got True"),
        ('{"task": "t", "variants": {"L0": {"output_tokens": NaN}, "L1": {}}}', "got nan"),
    ],
)
def test_faults_name_their_place(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "evidence.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LogError) as caught:
        read_evidence(path, LAW)
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)


def test_a_log_is_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"must end in one of \.jsonl"):
        read_evidence(tmp_path / "log.csv")


def test_what_is_published_is_whole() -> None:
    assert {(e.task, e.directive) for e in PUBLISHED.effects} == set(QUALITY)
    # The table of SPROUT's results: energy at L1 and L2 as a share of L0's, at the mean length of each set.
    shares = {"math": (0.331, 0.219), "scienceqa": (0.291, 0.194), "triviaqa": (0.139, 0.090), "mmlu": (0.203, 0.124)}
    import numpy as np

    from router.diagnosis.effect import mean_tokens

    tokens = {"math": 186.0, "scienceqa": 92.9, "triviaqa": 138.6, "mmlu": 228.0}
    for task, each in shares.items():
        for directive, share in zip(("L1", "L2"), each, strict=True):
            effect = PUBLISHED.of(directive)[task]
            assert float(mean_tokens(effect, np.array([tokens[task]]))[0]) / tokens[task] == pytest.approx(
                share, rel=0.25
            )
            assert effect.covariance[2] > PUBLISHED_MISFIT
    assert 0.4 < PUBLISHED.transfer_deviation < 0.5
    assert (published_name(" GSM8K "), published_name("faq")) == ("math", "faq")
