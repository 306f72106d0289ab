"""The case of the command that replays recorded requests, which runs on files alone."""

from tests.router.cli.bench import Bench, case
from tests.router.replay.planted import carbon_file, load_file, requests_file


@case
def replay(bench: Bench) -> None:
    requests, carbon, load = (str(make(bench.folder)) for make in (requests_file, carbon_file, load_file))
    files = ("--requests", requests, "--carbon", carbon, "--load", load, "--requests-per-hour", "50")
    window = ("--start-hour", "30", "--hours", "48", "--policy", "base,oracle")
    found = bench.document("replay", *files, *window)
    assert list(found["policies"]) == ["base", "oracle"]
    assert found["policies"]["oracle"]["carbon_saving"] > 0.2
    plot = bench.folder / "drawn.png"
    assert "PREFERENCE KEPT" in bench.text("replay", *files, *window, "--plot", str(plot))
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "--policy" in bench.run("replay", *files, "--policy", "worst", code=2).err
