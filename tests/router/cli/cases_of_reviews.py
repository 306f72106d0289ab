"""Cases of the commands by which people compare answers, and of what comes of it."""

from tests.router.cli.bench import Bench, case


@case
def review(bench: Bench) -> None:
    assert "Nothing to compare for ann" in bench.text("review", "--rater", "ann")
    bench.world.score(7)
    said = bench.text("review", "--rater", "ann", "--count", "5", stdin="1\nT\n\nx\n2\ns\nq\n")
    assert "Pair 4 of 5, task qa" in said and "3 compared by ann; 2 left, which come again." in said
    assert {"│ Hi.", "│ Hello, world."} <= set(said.splitlines())
    assert not any(word in said for word in ("L0", "L1", "exact", "tiny"))
    lines = bench.run("review", "--rater", "ann", "--json", "--count", "50", stdin="2\n" * 9).lines
    assert lines[-1] == {"rater": "ann", "compared": 4, "skipped": 0, "left": 0}
    assert {(one["first"], one["second"]) for one in lines[:-1]} <= {("Hi.", "Hello, world."), ("Hello, world.", "Hi.")}
    assert len(lines) == 5 and "review_id" in lines[0]
    assert "Nothing to compare" in bench.text("review", "--rater", "ann")
    assert "Pair 1 of 7" in bench.text("review", "--rater", "bob", "--task", "qa")
    assert "Nothing to compare" in bench.text("review", "--rater", "eve", "--task", "sums")
    assert "--count" in bench.run("review", "--count", "51", code=2).err
    assert "rater" in bench.run("review", "--rater", "r" * 129, code=2).err


@case
def quality_agreement(bench: Bench) -> None:
    said = bench.text("quality", "agreement")
    assert "Nobody has compared answers yet" in said and "No user has rated" in said
    bench.world.score(25)
    bench.run("review", "--rater", "ann", "--count", "25", "--json", stdin="1\n" * 5)
    (few,) = bench.document("quality", "agreement")["people"]
    assert (few["judge"], few["task"], few["pairs"], few["kappa"], few["corrected_rate"]) == (
        *("grader:exact", "qa", 5),
        *(None, None),
    )
    assert "unknown" in bench.text("quality", "agreement")
    bench.run("review", "--rater", "ann", "--count", "25", stdin="2\n" * 20)
    found = bench.document("quality", "agreement")
    (people,) = found["people"]
    assert (people["pairs"], people["scored_pairs"], people["judge_rate"]) == (25, 25, 0.24)
    assert people["kappa"] is not None and 0 < people["corrected_rate"]["value"] < 1
    assert found["disagreement_limit"] == 0.8
    assert "25" in bench.text("quality", "agreement")
