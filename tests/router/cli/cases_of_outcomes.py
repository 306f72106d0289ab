"""Cases of the commands that tell what came of it, and of the files that say what is wished."""

import re

from pith.router.v1 import policies_pb2

from tests.router.cli.bench import WISH, Bench, case, judged


@case
def export(bench: Bench) -> None:
    text = bench.text("export")
    assert "  - name: L1\n    text: Always answer briefly\n" in text
    assert "etag" not in text
    assert "L0" not in text
    assert "etag: " in bench.text("export", "--with-etags")
    assert [p["name"] for p in bench.document("export")["policies"]] == ["default"]
    path = bench.folder / "all.yaml"
    assert str(path) in bench.text("export", "--output", str(path))
    assert path.read_text() == text
    assert "cannot be written" in bench.run("export", "-o", str(bench.folder / "no" / "x.yaml"), code=1).err


@case
def apply(bench: Bench) -> None:
    wish = bench.file(WISH)
    dry = bench.document("apply", wish, "--dry-run")
    assert (dry["applied"], [(c["kind"], c["action"]) for c in dry["changes"]]) == (
        False,
        [("directive", "create"), ("policy", "create")],
    )
    bench.run("apply", wish, "--dry-run", "--exit-code", code=7)
    assert "Make 2 changes?" in bench.run("apply", wish, stdin="n\n", code=1).err
    bench.run("policy", "show", "sums", code=3)
    said = bench.text("apply", wish, "--yes", "--reason", "review")
    assert "+text: Be terse." in said
    assert "2 changes made" in said
    assert bench.document("policy", "history", "sums")["revisions"][0]["reason"] == "review"
    assert "nothing to change" in bench.text("apply", wish, "--dry-run", "--exit-code")
    assert "1 change made" in bench.text("apply", bench.file(WISH.replace("0.9", "0.8")), "--yes")
    pruned = bench.document("apply", bench.file(WISH.replace("sums", "qa")), "--prune", "--yes")
    assert {(c["name"], c["action"]) for c in pruned["changes"]} == {
        ("qa", "create"),
        ("sums", "delete"),
        ("default", "delete"),
        ("L1", "delete"),
        ("L2", "delete"),
    }


@case
def import_(bench: Bench) -> None:
    assert bench.document("import", bench.file(WISH), "--yes")["applied"] is True
    assert "nothing to change" in bench.text("import", bench.file(WISH))


@case
def simulate(bench: Bench) -> None:
    bench.world.policy()
    bench.world.open()
    bench.world.ask(30)
    found = bench.document("simulate", "acme-qa", "--set", "mode=off", "--from", "-1h")
    assert (found["requests"], found["served"]) == (30, [{"directive": "L0", "reason": "mode_off", "requests": 30}])
    said = bench.text("simulate", "acme-qa", "--set", "directives=[L1]", "--set", "latency.seconds=5")
    assert "30 recorded requests" in said
    assert "CO2e recorded" in said
    assert "This rests on:" in said
    assert "must be one of off, shadow, on" in bench.run("simulate", "acme-qa", "--set", "mode=om", code=2).err
    bench.run("apply", bench.file(WISH), "--yes")
    assert bench.document("simulate", bench.file(WISH))["requests"] == 0
    faulty = bench.file("policies:\n- {name: x, floor: 1}\n- name: y\n  floor: 7\n")
    assert "--policy NAME" in bench.run("simulate", faulty, code=2).err
    assert f"{faulty}:4:" in bench.run("simulate", faulty, "--policy", "y", code=2).err


@case
def explain(bench: Bench) -> None:
    bench.world.policy()
    bench.world.open()
    asked = ("explain", "--tenant", "acme", "--task", "qa", "--prompt", "Why?")
    found = bench.document(*asked)
    assert found["decision"]["directive"] == "L1"
    assert {c["directive"]: c["open"] for c in found["candidates"]} == {"L0": True, "L1": True, "L2": False}
    said = bench.text(*asked)
    assert re.search(r"L1 +open +99.0 %", said)
    assert "--floor" in bench.run("explain", "--floor", "2", code=2).err


@case
def report(bench: Bench) -> None:
    bench.world.policy()
    bench.world.open()
    replies = bench.world.ask(4)
    rows = bench.document("report", "--by", "task", "--by", "reason", "--from", "-1h")["rows"]
    assert [(row["task"], row["reason"], row["requests"], row["energy_joules"]) for row in rows] == [
        ("qa", "planned", 4, 8.0)
    ]
    for dimension in ("tenant", "directive", "model", "hour", "day", "policy", "engine"):
        row = bench.text("report", "--by", dimension).splitlines()[1]
        expected = {"tenant": "acme", "directive": "L1", "policy": "acme-qa", "engine": "e1"}.get(dimension, "")
        assert row.startswith(expected), row
        assert " 8 J " in row
    assert "RATING" not in bench.text("report")
    bench.world.rate(replies[0].started.request_id, 1.0)
    bench.world.rate(replies[1].started.request_id, 0.5)
    assert bench.text("report", "--by", "task").splitlines()[1].endswith("0.75 (2)")
    header, row = bench.text("report", "--by", "task", "--csv").split("\r\n")[:2]
    values = dict(zip(header.split(","), row.split(","), strict=True))
    assert (values["task"], values["energy_joules"], values["energy_source"]) == ("qa", "8.0", "modelled")
    assert (values["rated_requests"], values["mean_rating"]) == ("2", "0.75")
    assert bench.document("report", "--from", "2020-01-01", "--to", "2020-01-02")["total"]["requests"] == 0


@case
def carbon(bench: Bench) -> None:
    found = bench.document("carbon", "--history", "50", "--forecast", "30")
    assert (found["current"]["g_per_kwh"], found["fault"]) == (360, "")
    assert (len(found["history"]), len(found["forecast"])) == (50, 30)
    assert found["forecast"][0]["g_per_kwh"]["confidence"] == 0.8
    assert found["cleanest"] is None
    said = bench.text("carbon")
    assert re.search(r"grid +360 g/kWh in TEST", said)
    assert re.search(r"cleanest +no hour ahead is cleaner", said)
    assert "--forecast" in bench.run("carbon", "--forecast", "49", code=2).err


@case
def quality_show(bench: Bench) -> None:
    assert "No directive has been judged yet" in bench.text("quality")
    bench.world.policy()
    bench.world.open()
    said = bench.text("quality")
    assert "open for acme-qa (95 %)" in said
    assert re.search(r"evaluator +waits", said)
    found = bench.document("quality")
    assert found["bounds"][0]["bound"]["lower"] == 0.99
    assert found["evaluator"]["running"] is False
    away = bench.text("quality", "--evaluator", "127.0.0.1:1")
    assert "cannot reach the evaluator" in away


@case
def evaluate_run(bench: Bench) -> None:
    said = bench.text("evaluate", "--task", "poems")
    assert "No sample of task poems was judged.\n" in said
    assert "it has no grader" in said
    judged(bench)
    assert re.search(r"\d+ samples judged; answers for it took \d", bench.text("evaluate", "--task", "qa"))
    steps = bench.run("evaluate", "--json").lines
    assert steps[-1]["done"] is True


@case
def status(bench: Bench) -> None:
    bench.world.policy(carbon_budget=policies_pb2.CarbonBudget(grams_per_day=100.0))
    bench.world.open()
    bench.world.ask(3)
    found = bench.document("status")
    assert (found["requests_total"], found["energy_joules_total"], found["draining"]) == (3, 6.0, False)
    said = bench.text("status")
    assert re.search(r"grid +360 g/kWh in TEST", said)
    assert re.search(r"L1 +planned +3 +100.0 %", said)
    assert re.search(r"acme-qa .* 100 g .* tighten", said)


@case
def top(bench: Bench) -> None:
    bench.world.ask(3)
    frame = bench.text("top", "--once", "--interval", "0.1")
    assert re.search(r"e1 .*ready", frame)
    assert "requests/s" in frame
    found = bench.document("top", "--once", "--interval", "0.1")
    assert found["rates"]["requests_per_second"] == 0
    assert found["engines"][0]["state"] == "ready"
    assert "--once" in bench.run("top", code=2).err


@case
def engines(bench: Bench) -> None:
    assert bench.document("engines")["engines"][0]["state"] == "ready"
    assert re.search(r"e1 .*ready .*small@0123456789ab .*0/4", bench.text("engines"))


@case
def chat(bench: Bench) -> None:
    bench.world.policy(tenant="")
    bench.world.open()
    answer, remark = bench.text("chat", "--once", "Hello", "--task", "qa").splitlines()
    assert answer == "Hello, world."
    assert remark.startswith("L1, planned · 5 + ")
    lines = bench.run("chat", "--task", "qa", "--json", stdin="one\ntwo\n").lines
    assert [line["finished"]["reason"] for line in lines] == ["stop", "stop"]
    bench.run("chat", "--once", "Hello", "--model", "nobody", code=3)
