"""Cases of `pithctl task`."""

import json
import re

from tests.router.cli.bench import Bench, case

SUMS = [f"Tom has {number} apples and eats {number // 2}. How many are left?" for number in range(2, 12)]
POEMS = [
    f"write a poem about {thing} in {month}"
    for thing in ("rain", "love", "bread")
    for month in ("may", "june", "july", "august")
]
LINES = [{"task": "sums", "text": text} for text in SUMS] + [{"task": "", "text": text} for text in POEMS]


def labelled(bench: Bench, *more: str) -> str:
    """A file with the prompts, an empty line, and further lines."""
    return bench.file("\n".join([*map(json.dumps, LINES), "", *more]))


@case
def task_set(bench: Bench) -> None:
    file = labelled(bench)
    kept = bench.run("task", "set", file, stdin="n\n", code=1)
    assert "Replace all labelled prompts by the 22 of" in kept.err
    assert bench.document("task", "show")["revision"] == 0
    shown = bench.text("task", "set", file, "--yes", "--reason", "first try")
    assert re.search(r"^sums +10 +[\d.]+ % +[\d.]+ % +[\d.]+ %$", shown, re.MULTILINE)
    assert re.search(r"^\(none\) +12 ", shown, re.MULTILINE)
    for words in ("by root", "first try", "a likelihood of 97.0 %", "held out"):
        assert words in shown
    document = bench.document("task", "set", "-", "--yes", stdin="\n".join(map(json.dumps, LINES)))
    assert (document["revision"], document["trained"]) == (2, True)
    assert [(one["task"], one["examples"]) for one in document["tasks"]] == [("sums", 10), ("", 12)]
    assert bench.run("chat", "--once", SUMS[0]).code == 0
    faults = bench.run("task", "set", labelled(bench, '{"task": "a", "text": ""}'), "--yes", code=2).err
    assert re.search(r"manifest.yaml:24: text is empty", faults)
    assert re.search(r"manifest.yaml: examples has 1 example of task 'a'; must be 10 to 100", faults)
    wrong = ("no JSON", "[]", '{"task": "a"}', '{"task": 1, "text": "x"}', '{"task": "a", "text": "\\ud800"}')
    said = bench.run("task", "set", labelled(bench, *wrong), "--yes", code=2).err
    for number, words in enumerate(("is no JSON", "must be an object", "must be an object", "a string", "surrogate")):
        assert re.search(rf"manifest.yaml:{24 + number}: .*{words}", said)
    assert "cannot be read" in bench.run("task", "set", "/no/such.jsonl", code=2).err
    assert "pithctl task forget" in bench.run("task", "set", bench.file("\n"), code=2).err


@case
def task_show(bench: Bench) -> None:
    assert "No tasks are told: there are no labelled prompts." in bench.text("task", "show")
    bench.run("task", "set", labelled(bench), "--yes")
    shown = bench.text("task", "show")
    assert re.search(r"^sums +10 ", shown, re.MULTILINE)
    assert SUMS[0] not in shown
    document = bench.document("task", "show")
    assert 0 < document["macro_f1"] <= 1
    assert set(document["tasks"][0]) == {"task", "examples", "told_right", "told_wrong", "untold"}


@case
def task_tell(bench: Bench) -> None:
    assert "No tasks are told" in bench.text("task", "tell", "What?")
    bench.run("task", "set", labelled(bench), "--yes")
    assert "Told: sums." in bench.text("task", "tell", SUMS[0])
    assert "None would be told." in bench.text("task", "tell", POEMS[0])
    document = bench.document("task", "tell", "-", stdin=SUMS[1])
    assert (document["told"], document["likeliest"][0]["task"]) == ("sums", "sums")
    assert "is empty" in bench.run("task", "tell", "", code=2).err


@case
def task_forget(bench: Bench) -> None:
    bench.run("task", "set", labelled(bench), "--yes")
    assert "Forget all labelled prompts?" in bench.run("task", "forget", stdin="n\n", code=1).err
    assert bench.document("task", "show")["revision"] == 1
    assert "no task is told any more" in bench.text("task", "forget", "--yes", "--reason", "wrong ones")
    assert "the labelled prompts were forgotten" in bench.text("task", "show")
    assert bench.document("task", "forget", "--yes")["revision"] == 3
