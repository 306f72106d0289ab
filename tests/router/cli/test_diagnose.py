"""`pithctl diagnose`: what it prints, and what it says where it cannot."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.router.cli.conftest import Pithctl
from tests.router.diagnosis.planted import evidence_file, log_file

AZURE = Path(os.environ.get("PITH_DATA_DIR", "../shared/data")) / "azure_llm_2023"


def written(folder: Path, text: str, name: str = "log.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_log_is_diagnosed_for_people(command_line: Pithctl, tmp_path: Path) -> None:
    said = command_line("diagnose", str(log_file(tmp_path)))
    assert said.code == 0, said
    for part in (
        "600 requests of ",
        "taken to be served without a directive",
        "assumed, an 8B model on an H100",
        "not known: figures are for 8 sequences at a time, intervals for 1 to 64",
        "published measurements of Llama-2-13B",
        "OF ALL ENERGY",
        "chat: L2 saves ",
        "going by other tasks",
        "Where no published quality speaks against it: ",
        "32 to 255 tokens",
        "--batch, or --energy of your own device, makes these intervals narrower.",
        "--evidence of your own model makes intervals narrower",
        "The evaluator's own energy is not deducted",
    ):
        assert part in said.out


def test_own_evidence_names_its_directive_and_narrows(command_line: Pithctl, tmp_path: Path) -> None:
    log, evidence = str(log_file(tmp_path)), str(evidence_file(tmp_path))
    rough = command_line("diagnose", log, "--batch", "1", "--json").document
    known = command_line("diagnose", log, "--batch", "1", "--evidence", evidence, "--json").document
    assert [saving["directive"] for saving in known["savings"]] == ["brief"]
    wide, narrow = (
        found["tasks"][0]["savings"][0]["saved_share"]["upper"]
        - found["tasks"][0]["savings"][0]["saved_share"]["lower"]
        for found in (rough, known)
    )
    assert narrow < 0.3 * wide
    assert known["tasks"][0]["savings"][0]["evidence"] == "evidence.jsonl, 240 requests"
    assert known["energy"]["batches"] == [1.0, 1.0]
    said = command_line("diagnose", log, "--batch", "1", "--evidence", evidence).out
    assert "BRIEF SAVES" in said.upper()
    assert "--evidence" not in said


def test_energies_in_the_log_replace_the_assumption(command_line: Pithctl, tmp_path: Path) -> None:
    rows = [f"{100 + 7 * (i % 13)},{20 + 3 * i},{2 * (20 + 3 * i) + 30}" for i in range(300)]
    log = written(tmp_path, "\n".join(["input_tokens,output_tokens,energy_joules", *rows, ""]))
    said = command_line("diagnose", log)
    assert "fitted to this log's energies, 0 % off in the mean" in said.out
    assert "as it was where the energies were measured" in said.out
    assert "(no task)" in said.out
    assert "--batch makes no difference by this energy law." in command_line("diagnose", log, "--batch", "9").out
    found = command_line("diagnose", log, "--json").document
    assert found["energy"]["assumed"] is False
    assert found["energy"]["recorded_joules"] == pytest.approx(sum(2 * (20 + 3 * i) + 30 for i in range(300)))


def test_one_reads_of_a_task_that_quality_speaks_against(command_line: Pithctl, tmp_path: Path) -> None:
    log = written(tmp_path, "input_tokens,output_tokens,task\n" + "50,200,gsm8k\n" * 30)
    said = command_line("diagnose", log, "--batch", "4").out
    assert "gsm8k: do not expect it: published measurements show that accuracy falls (33.5 -> 14.4 %)" in said
    found = command_line("diagnose", log, "--batch", "4", "--floor", "0.4", "--json").document
    assert found["tasks"][0]["outlook"] == "saves"
    assert found["mix"]["directives"] == {"gsm8k": "L2"}


@pytest.mark.parametrize(("name", "batch", "outlook"), [("code", "64", "hardly"), ("conv", "32", "saves")])
def test_the_azure_traces(command_line: Pithctl, name: str, batch: str, outlook: str) -> None:
    trace = AZURE / f"AzureLLMInferenceTrace_{name}.csv.gz"
    if not trace.exists():
        pytest.skip("needs azure_llm_2023 from PITH_DATA_DIR")
    found = command_line("diagnose", str(trace), "--batch", batch, "--json").document
    assert found["tasks"][0]["outlook"] == outlook
    assert found["requests"] == {"code": 8_819, "conv": 19_366}[name]


def test_a_trace_of_long_prompts_and_short_answers_leaves_nothing(command_line: Pithctl, tmp_path: Path) -> None:
    """As Azure's code trace; and what is read is packed as that is."""
    path = tmp_path / "trace.csv.gz"
    rows = "2023-11-16 18:17:03.9799600,2048,28\n" * 40
    path.write_bytes(gzip.compress(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}".encode()))
    said = command_line("diagnose", str(path), "--batch", "64").out
    assert "(no task): hardly anything to save: 28 output tokens after 2,048 input tokens." in said


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("LOG", "--plot", "x.gif"), "must end in .png, .svg or .pdf"),
        (("LOG", "--plot", "/no/such/x.png"), "x.png cannot be written"),
        (("LOG", "--batch", "0.5"), "--batch"),
        (("LOG", "--holdback", "0.9"), "--holdback"),
        (("LOG", "--floor", "2"), "--floor"),
        (("LOG", "--energy", "/no/such.json"), "/no/such.json cannot be read: No such file or directory"),
        (
            ("LOG", "--energy", "grid.csv"),
            "grid.csv is a grid; give what is printed by: pithctl energy fit grid.csv --json",
        ),
        (("LOG", "--evidence", "/no/such.jsonl"), "/no/such.jsonl cannot be read: No such file or directory"),
        (("LOG", "--evidence", "LOG"), "its name must end in one of .jsonl"),
        (("/no/such.csv",), "/no/such.csv cannot be read: No such file or directory"),
        (("EMPTY",), "the log's requests cost nothing"),
    ],
)
def test_what_cannot_be_used_is_named(
    command_line: Pithctl, tmp_path: Path, arguments: tuple[str, ...], fault: str
) -> None:
    files = {"LOG": str(log_file(tmp_path)), "EMPTY": written(tmp_path, "input_tokens,output_tokens\n0,0\n", "e.csv")}
    result = command_line("diagnose", *(files.get(argument, argument) for argument in arguments))
    assert result.code in (1, 2)
    assert result.out == ""
    assert fault in result.err


def test_a_law_of_shorter_requests_is_said_to_be_extrapolated(command_line: Pithctl, tmp_path: Path) -> None:
    grid = ["input_tokens,output_tokens,gpu_energy_j", "1,1,1"]
    grid += [f"{n},{m},{5 + 0.1 * n + m}" for n in (8, 32, 128) for m in (8, 32, 128)]
    fitted = command_line("energy", "fit", written(tmp_path, "\n".join(grid), "grid.csv"), "--json").out
    law = written(tmp_path, fitted, "law.json")
    log = written(tmp_path, "input_tokens,output_tokens\n100,100\n100,100\n100,100\n100,500\n")
    told = "25.0 % of the requests are longer than what was measured (128 input and 128 output tokens)."
    assert told in command_line("diagnose", log, "--energy", law).out
    assert told in command_line("diagnose", log, "--energy", law, "--json").document["notes"]
    within = written(tmp_path, "input_tokens,output_tokens\n100,100\n", "within.csv")
    assert "longer than what was measured" not in command_line("diagnose", within, "--energy", law).out


def test_names_from_files_are_no_formulas_in_a_plot(command_line: Pithctl, tmp_path: Path) -> None:
    log = written(tmp_path, "input_tokens,output_tokens,task\n" + "50,200,$\\frac$\n" * 30, "a$\\frac$.csv")
    pair = {"task": "$\\frac$", "variants": {"L0": {"output_tokens": 200}, "$\\frac$": {"output_tokens": 50}}}
    evidence, plot = written(tmp_path, f"{json.dumps(pair)}\n" * 30, "evidence.jsonl"), tmp_path / "drawn.png"
    said = command_line("diagnose", log, "--evidence", evidence, "--plot", str(plot))
    assert (said.code, plot.exists()) == (0, True), said


def test_names_from_files_cannot_steer_a_terminal(command_line: Pithctl, tmp_path: Path) -> None:
    log = written(tmp_path, "input_tokens,output_tokens,task\n" + "50,200,\x1b[31m[bold]red\n" * 30)
    pair = {"task": "sums", "variants": {"L0": {"output_tokens": 200}, "\x1b[31mX": {"output_tokens": 50}}}
    evidence = written(tmp_path, f"{json.dumps(pair)}\n" * 30, "evidence.jsonl")
    said = command_line("diagnose", log, "--evidence", evidence)
    assert said.code == 0
    assert "\x1b" not in said.out
    assert "[bold]red" in said.out


def test_a_log_of_many_tasks_shows_the_largest(command_line: Pithctl, tmp_path: Path) -> None:
    rows = "".join(f"50,{200 + index},task-{index}\n" for index in range(40))
    log = written(tmp_path, "input_tokens,output_tokens,task\n" + rows)
    said = command_line("diagnose", log).out
    assert "10 more tasks are in the sums; --json has all." in said
    assert "task-39" in said
    assert "task-9 " not in said
    assert len(command_line("diagnose", log, "--json").document["tasks"]) == 40


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from router.cli.main import main; sys.exit(main(['diagnose', sys.argv[1], '--json']))"
    )
    command = [sys.executable, "-c", program, str(log_file(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "analysis" in json.loads(done.stderr)["error"]["next_step"]
