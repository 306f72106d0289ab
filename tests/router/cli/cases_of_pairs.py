"""Cases of `pithctl evaluate pairs`, which runs on a file alone."""

import json

from tests.router.cli.bench import Bench, case


@case
def evaluate_pairs(bench: Bench) -> None:
    rows = [
        {
            "instruction": f"question {number}",
            "generator_1": "base",
            "generator_2": generator,
            "output_1": "x" * 100,
            "output_2": "y" * (100 + 10 * (number % 7) + 40 * (generator == "wordy")),
            "preference": 2 if number % 3 else 1.5,
        }
        for number in range(30)
        for generator in ("terse", "wordy")
    ]
    file = bench.file("\n".join(json.dumps(row) for row in rows))
    found = bench.document("evaluate", "pairs", file)
    assert sorted(found["generators"]) == ["terse", "wordy"]
    terse = found["generators"]["terse"]
    assert (terse["n"], terse["against"]) == (30, "base")
    assert terse["raw"] == 25 / 30
    lower, upper = terse["interval"]
    assert 0 < lower <= terse["corrected"] <= upper < 1
    assert "asymptotic" in found["methods"]["corrected"] and "anytime-valid" in found["methods"]["raw"]
    said = bench.text("evaluate", "pairs", file)
    assert "AT EQUAL LENGTH" in said and "log-odds a 1,000 characters more" in said
    faulty = bench.file(json.dumps({**rows[0], "preference": 3}))
    assert f"{faulty}:1: preference must be 1 to 2" in bench.run("evaluate", "pairs", faulty, code=2).err
