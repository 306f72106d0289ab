"""Cases of the commands below `pithctl quality`."""

from tests.router.cli.bench import Bench, case


@case
def quality_plan(bench: Bench) -> None:
    assert "No directive has been judged yet" in bench.text("quality", "plan")
    bench.world.policy()
    bench.world.open()
    plans = bench.document("quality", "plan", "--task", "qa")["plans"]
    assert ("acme-qa", 0.95, "open") in [(one["policy"], one["floor"], one["verdict"]) for one in plans], plans
    assert "open already" in bench.text("quality", "plan")
    offline = bench.document("quality", "plan", "--share", "1", "--joules", "10", "--router", "127.0.0.1:1")
    (found,) = offline["plans"]
    assert (found["samples_needed"]["mean"], found["energy_joules"]) == (73, 730)
    said = bench.text("quality", "plan", "--share", "0.98", "--floor", "0.9")
    assert "NEEDED" in said and "98.0 %" in said
    assert "--floor" in bench.run("quality", "plan", "--floor", "1.5", code=2).err


@case
def quality_history(bench: Bench) -> None:
    assert "Nothing has happened yet." in bench.text("quality", "history", "--all")
    bench.world.policy()
    bench.world.open()
    (step,) = bench.document("quality", "history", "--policy", "acme-qa")["steps"]
    assert (step["cause"], step["openings"][0]["open"], step["evidence"]["evaluator"]) == ("bound", True, "test")
    assert "opened for policy acme-qa (floor 95 %)" in bench.text("quality", "history", "--task", "qa")
