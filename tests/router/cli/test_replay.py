"""`pithctl replay`: what it prints, and what it says where it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from router.replay.demand import published_demand, read_load
from router.replay.policies.named import POLICIES
from tests.router.cli.conftest import Pithctl
from tests.router.cli.terminal import on_terminal
from tests.router.replay.planted import TASKS, carbon_file, ledger_file, load_file, recorded, requests_file

PUBLISHED = "base,co2_opt,static,sprout,oracle,hindsight"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Options that name files, and a short window."""
    named = {"--requests": requests_file, "--carbon": carbon_file, "--load": load_file}
    options = [part for option, make in named.items() for part in (option, str(make(tmp_path)))]
    return (*options, "--requests-per-hour", "80", "--start-hour", "24", "--hours", "72")


def test_the_document_has_what_a_program_compares(command_line: Pithctl, files: tuple[str, ...]) -> None:
    result = command_line("replay", *files, "--policy", PUBLISHED, "--json")
    assert (result.code, result.err) == (0, "")
    found = result.document
    assert (found["prompts"], found["tasks"], found["hours"], found["floor"]) == (180, list(TASKS), 72, 0.95)
    assert list(found["policies"]) == PUBLISHED.split(",")
    for policy in found["policies"].values():
        assert set(policy) == {
            *("requests", "carbon_grams", "base_carbon_grams", "carbon_saving", "carbon_saving_without_evaluator"),
            *("preference", "preference_by_task", "accuracy", "directive_mix"),
            *("evaluator_runs", "evaluator_samples", "evaluator_carbon_grams"),
        }
        assert set(policy["accuracy"]) == {"sums", "trivia"}
        assert set(policy["preference_by_task"]) == set(TASKS)
        for kept in (*policy["accuracy"].values(), *policy["preference_by_task"].values()):
            assert set(kept) == {"value", "base", "share", "share_standard_error"}
            assert kept["share"] == pytest.approx(kept["value"] / kept["base"])
        assert sum(policy["directive_mix"].values()) == pytest.approx(1.0)
        saved = 1 - policy["carbon_grams"] / policy["base_carbon_grams"]
        assert policy["carbon_saving"] == pytest.approx(saved)
    sprout, base = found["policies"]["sprout"], found["policies"]["base"]
    assert (base["carbon_saving"], base["preference"]) == (0.0, 1.0)
    without = 1 - (sprout["carbon_grams"] - sprout["evaluator_carbon_grams"]) / sprout["base_carbon_grams"]
    assert sprout["carbon_saving_without_evaluator"] == pytest.approx(without)
    assert sprout["evaluator_samples"] > 0


def test_the_live_router_is_replayed_by_name(command_line: Pithctl, files: tuple[str, ...]) -> None:
    result = command_line("replay", *files, "--policy", "router,router_strict", "--floor", "0.9", "--labels", "--json")
    assert (result.code, result.err) == (0, "")
    assert list(result.document["policies"]) == ["router", "router_strict"]
    for policy in result.document["policies"].values():
        assert policy["evaluator_samples"] > 0
        assert policy["preference"] >= 0.9


def test_people_read_tables_and_notes(command_line: Pithctl, files: tuple[str, ...]) -> None:
    said = command_line("replay", *files, "--policy", "base,sprout")
    assert said.code == 0
    for part in (
        "requests, drawn from 180 prompts of ",
        "in 72 hours:",
        "CO2e at L0",
        "BEFORE EVALUATOR",
        "PREFERENCE KEPT",
        "ACCURACY KEPT",
        "sprout: what is known includes the year's ",
        "a PUE of 1",
    ):
        assert part in said.out
    assert "what is known" not in command_line("replay", *files, "--policy", "base").out


def test_options_reach_the_replay(command_line: Pithctl, files: tuple[str, ...]) -> None:
    def saved(policy: str, *options: str) -> float:
        found = command_line("replay", *files, "--policy", policy, *options, "--json").document
        return float(found["policies"][policy]["carbon_saving"])

    assert saved("static", "--xi", "0.3") > saved("static", "--xi", "0.1") + 0.05
    assert saved("hindsight", "--floor", "0.9") > saved("hindsight") + 0.005
    assert saved("hindsight") > saved("hindsight", "--floor-scope", "task") + 0.02
    assert saved("hindsight", "--quality", "accuracy", "--floor-scope", "task") != saved(
        "hindsight", "--floor-scope", "task"
    )
    assert saved("co2_opt", "--seed", "1") != saved("co2_opt")
    assert saved("co2_opt", "--load-seed", "1") != saved("co2_opt")
    assert saved("oracle", "--carbon-column", "Carbon Intensity gCO2eq/kWh (LCA)") != saved("oracle")
    assert saved("co2_opt", "--seed", "1") == saved("co2_opt", "--seed", "1")


def test_without_a_load_every_hour_is_alike(command_line: Pithctl, files: tuple[str, ...]) -> None:
    arguments = [*files[:4], *files[6:], "--policy", "base", "--json"]
    found = command_line("replay", *arguments).document
    assert (found["load_file"], found["requests"]) == (None, 72 * 80)


def test_pictures_are_written_whole(command_line: Pithctl, files: tuple[str, ...], tmp_path: Path) -> None:
    for name, start in (("a.png", b"\x89PNG"), ("b.svg", b"<?xml"), ("c.pdf", b"%PDF")):
        said = command_line("replay", *files, "--policy", PUBLISHED, "--plot", str(tmp_path / name))
        assert said.code == 0, said
        assert (tmp_path / name).read_bytes().startswith(start)
        assert f"Drawn in {tmp_path / name}" in said.out


def test_a_ledger_is_replayed_as_far_as_it_goes(command_line: Pithctl, files: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ["replay", "--requests", str(ledger_file(tmp_path)), *files[2:]]
    found = command_line(*arguments, "--policy", "base,co2_opt", "--json").document
    assert found["policies"]["co2_opt"]["directive_mix"] == {"L0": 0.0, "L2": 1.0}
    assert 0.8 < found["policies"]["co2_opt"]["carbon_saving"] < 0.95
    assert found["policies"]["co2_opt"]["preference"] is None
    assert found["policies"]["co2_opt"]["accuracy"] == found["policies"]["co2_opt"]["preference_by_task"] == {}
    assert "they are left out" in found["notes"][0]
    said = command_line(*arguments, "--policy", "base,co2_opt")
    assert (said.code, "unknown" in said.out) == (0, True)
    refused = command_line(*arguments, "--policy", "base,sprout")
    assert refused.code == 2
    assert "known of 0 of 2 prompts; base and co2_opt can be replayed" in refused.err


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--policy", "worst"), f"--policy: 'worst' must be one of {', '.join(POLICIES)}"),
        (("--policy", ""), "--policy: '' must be one of"),
        (("--policy", "base", "--plot", "x.gif"), "must end in .png, .svg or .pdf"),
        (("--policy", "base", "--plot", "/no/such/x.png"), "x.png cannot be written"),
        (("--policy", "base", "--hours", "0"), "--hours"),
        (("--policy", "base", "--start-hour", "-1"), "--start-hour"),
        (("--policy", "base", "--start-hour", "900"), "has 960 hours, too few for 72 from hour 900 on"),
        (("--policy", "base", "--floor", "1.5"), "--floor"),
        (("--policy", "base", "--xi", "-0.5"), "--xi"),
        (("--policy", "base", "--requests-per-hour", "0"), "--requests-per-hour"),
        (("--policy", "base", "--quality", "taste"), "--quality"),
        (("--policy", "base", "--requests", "/no/such.jsonl"), "/no/such.jsonl cannot be read: No such file"),
        (("--policy", "base", "--carbon", "/no/such.csv"), "/no/such.csv cannot be read: No such file"),
        (("--policy", "base", "--load", "/no/such.csv"), "/no/such.csv cannot be read: No such file"),
        (("--policy", "base", "--carbon-column", "b"), "column 'b' must be there once"),
        (("--policy", "base", "--carbon-year", "/no/such.json"), "/no/such.json cannot be read: No such file"),
    ],
    ids=range(16),
)
def test_what_cannot_be_used_is_named(
    command_line: Pithctl, files: tuple[str, ...], options: tuple[str, ...], fault: str
) -> None:
    result = command_line("replay", *files, *options)
    assert result.code in (1, 2)
    assert result.out == ""
    assert fault in result.err


def test_names_from_files_cannot_steer_a_terminal_nor_a_plot(
    command_line: Pithctl, files: tuple[str, ...], tmp_path: Path
) -> None:
    path = requests_file(tmp_path, recorded(20), "odd.jsonl")
    text = path.read_text().replace('"chat"', json.dumps("\x1b[31m[bold]$\\frac$"))
    path.write_text(text.replace("13b/L2", "13b/$\\\\x$"))
    plot = str(tmp_path / "drawn.png")
    said = command_line("replay", *files, "--requests", str(path), "--policy", "co2_opt", "--plot", plot)
    assert said.code == 0, said
    assert "\x1b" not in said.out
    assert "[bold]$" in said.out


def test_a_terminal_sees_a_bar_that_ends_full(files: tuple[str, ...]) -> None:
    with on_terminal("replay", *files, "--policy", "base,co2_opt") as screen:
        assert screen.end() == 0
    assert "co2_opt" in screen.written
    assert "144/144" in screen.written


def test_a_pipe_sees_no_bar(command_line: Pithctl, files: tuple[str, ...]) -> None:
    assert command_line("replay", *files, "--policy", "base").err == ""


def test_without_the_extra_it_says_what_to_install(files: tuple[str, ...]) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from router.cli.main import main; sys.exit(main(['replay', *sys.argv[1:], '--json']))"
    )
    command = [sys.executable, "-c", program, *files, "--policy", "base", "--plot", "x.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "analysis" in json.loads(done.stderr)["error"]["next_step"]


def test_preference_is_what_it_is_said_to_be(command_line: Pithctl, files: tuple[str, ...], tmp_path: Path) -> None:
    """Of a level for all requests it is the mean over hours of its share over L0's, in expectation."""
    found = command_line("replay", *files, "--requests-per-hour", "4000", "--policy", "co2_opt", "--json").document
    of = recorded(60)
    means = of.means(of.preference)
    policy = found["policies"]["co2_opt"]
    for place, task in enumerate(TASKS):
        expected = means[place, 2] / means[place, 0]
        assert policy["preference_by_task"][task]["share"] == pytest.approx(expected, abs=0.03)
    mix = published_demand(read_load(load_file(tmp_path)), TASKS, 72, 4000, 0).mix
    assert policy["preference"] == pytest.approx(((mix @ means[:, 2]) / (mix @ means[:, 0])).mean(), abs=0.01)
