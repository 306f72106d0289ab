"""The demo's traffic and its sums; the demo itself is run by `make demo`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from deploy.day import Outcome, Request, plan_day
from deploy.picture import draw
from deploy.report import Bound, DemoResult, Evaluations, Event, as_json, as_tables
from engine.demo.tasks import TASKS

INTENSITY = [300.0] * 12 + [100.0] * 12


def outcomes(quality: float, directive: str, tokens: int, grams: float | None = 2e-4) -> list[Outcome]:
    return [
        Outcome(
            request=Request(index, index * 600.0, TASKS[index % len(TASKS)], "?", "!"),
            directive=directive,
            reason="planned",
            text="!",
            quality=quality,
            output_tokens=tokens,
            energy_joules=None if grams is None else 3.0,
            carbon_grams=grams,
        )
        for index in range(144)
    ]


def result(kept: float = 1.0, grams: float | None = 1e-4) -> DemoResult:
    return DemoResult(
        baseline=outcomes(1.0, "L0", 40),
        pith=outcomes(kept, "L2", 10, grams),
        floors=dict.fromkeys(TASKS, 0.95),
        bounds=[Bound(task, "L2", 0.96, 1.0, 0.99, 120, True) for task in TASKS],
        evaluations=Evaluations(runs=3, samples=80, carbon_grams=7.2e-4, energy_joules=9.0),
        intensity=INTENSITY,
        zone="TEST",
        events=[Event(1, 5.5, TASKS[0], "L2", True, f"{TASKS[0]}/L2 opens")],
        counterfactual=None,
    )


def test_a_day_is_the_same_for_the_same_seed_and_mixed_evenly() -> None:
    day = plan_day(403, seed=5)
    assert day == plan_day(403, seed=5)
    assert day != plan_day(403, seed=6)
    assert [request.second for request in day] == sorted(request.second for request in day)
    assert day[0].second >= 0 and day[-1].second < 86_400
    counts = Counter(request.task for request in day)
    assert set(counts) == set(TASKS) and max(counts.values()) - min(counts.values()) <= 1
    assert len({(request.task, request.prompt) for request in day}) > 350


def test_more_requests_come_by_day_than_by_night() -> None:
    hours = Counter(int(request.second // 3600) for request in plan_day(4000, seed=1))
    assert sum(hours[hour] for hour in range(12, 18)) > 2 * sum(hours[hour] for hour in range(6))


def test_the_evaluators_carbon_is_deducted_from_the_saving() -> None:
    report = as_json(result())
    assert report["carbon_saving_without_evaluation"]["value"] == pytest.approx(0.5)
    assert report["carbon_saving"]["value"] == pytest.approx(0.5 - 7.2e-4 / (144 * 2e-4))
    assert [report["carbon_saving_by_task"][task]["value"] for task in TASKS] == pytest.approx([0.5] * len(TASKS))
    assert report["baseline"]["requests"] == 144
    assert report["pith"]["output_tokens"] == 1440
    assert report["directive_mix"][TASKS[0]] == {"L0": 0.0, "L1": 0.0, "L2": 1.0}
    for day in ("baseline", "pith"):
        for key in ("requests", "carbon_grams", "output_tokens", "energy_joules"):
            assert sum(task[key] for task in report[day]["per_task"].values()) == pytest.approx(report[day][key])
    json.dumps(report)


def test_a_task_below_its_floor_is_named() -> None:
    assert result(kept=1.0).below_floor() == []
    assert result(kept=0.94).below_floor() == list(TASKS)
    assert as_json(result(kept=0.94))["below_floor"] == list(TASKS)


def test_unknown_energy_is_not_summed_as_zero() -> None:
    with pytest.raises(ValueError, match="energy is unknown"):
        as_json(result(grams=None))


def test_table_and_picture_are_made(tmp_path: Path) -> None:
    console = Console(record=True, width=80)
    console.print(*as_tables(result()))
    printed = console.export_text()
    for expected in (*TASKS, "1,440 → 360", "50% (50 to 50)", "95%", "L2 ≥ 0.960", "100.0% → 100.0%"):
        assert expected in printed
    draw(result(), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
