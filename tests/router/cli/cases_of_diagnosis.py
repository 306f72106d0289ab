"""The case of the command that diagnoses a request log, which runs on files alone."""

from tests.router.cli.bench import Bench, case
from tests.router.diagnosis.planted import evidence_file, log_file


@case
def diagnose(bench: Bench) -> None:
    log, plot = str(log_file(bench.folder)), bench.folder / "drawn.png"
    found = bench.document("diagnose", log, "--batch", "8")
    assert (found["requests"], [task["task"] for task in found["tasks"]]) == (600, ["chat", "lookup"])
    assert found["tasks"][0]["verdict"]
    assert "chat: L2 saves" in bench.text("diagnose", log, "--batch", "8", "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    known = bench.document("diagnose", log, "--evidence", str(evidence_file(bench.folder)))
    assert known["tasks"][0]["savings"][0]["task_known"]
    faulty = bench.folder / "faulty.csv"
    faulty.write_text("input_tokens,output_tokens\n5,-1\n")
    assert f"{faulty}:2: output_tokens must be" in bench.run("diagnose", str(faulty), code=2).err
