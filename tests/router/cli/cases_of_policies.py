"""Cases of `pithctl policy`."""

from tests.router.cli.bench import Bench, case

SUMS = ("policy", "create", "sums", "--task", "sums", "--floor", "0.9", "--directive", "L1", "--directive", "L2")


@case
def policy_list(bench: Bench) -> None:
    bench.run(*SUMS)
    assert [p["name"] for p in bench.document("policy", "list")["policies"]] == ["default", "sums"]
    row = next(line for line in bench.text("policy", "list").splitlines() if line.startswith("sums"))
    assert row.split() == ["sums", "any", "sums", "shadow", "0.9", "relative", "L1,", "L2", "1"]


@case
def policy_show(bench: Bench) -> None:
    assert bench.document("policy", "show", "default")["floor"] == 0.95
    shown = bench.text("policy", "show", "default")
    assert "left alone      structured_output, tools, explicit_length, code, opt_out" in shown
    assert "holdback share  0.02" in shown
    assert "pithctl policy list" in bench.run("policy", "show", "nobody", code=3).err


@case
def policy_create(bench: Bench) -> None:
    created = bench.document(
        *("policy", "create", "all", "--tenant", "acme", "--task", "extraction", "--mode", "on"),
        *("--traffic-share", "0.5", "--floor", "0.9", "--floor-kind", "absolute", "--directive", "L1"),
        *("--holdback-share", "0", "--sample-share", "1", "--grader", "exact", "--bound-max-age", "36h"),
        *("--latency", "2s", "--latency-share", "0.9", "--carbon-budget-grams", "500", "--when-spent", "refuse"),
        *("--leave-alone", "code", "--leave-alone", "tools", "--reason", "trial"),
    )
    for field in ("etag", "updated_at"):
        assert created.pop(field)
    assert created == {
        "name": "all",
        "tenant": "acme",
        "task": "extraction",
        "mode": "on",
        "traffic_share": 0.5,
        "floor": 0.9,
        "floor_kind": "absolute",
        "directives": ["L1"],
        "holdback_share": 0.0,
        "sample_share": 1.0,
        "grader": "exact",
        "bound_max_age_seconds": 129_600,
        "latency": {"seconds": 2.0, "share": 0.9},
        "carbon_budget": {"grams_per_day": 500.0, "when_spent": "refuse"},
        "leave_alone": {"traits": ["tools", "code"]},
        "quality_budget": None,
        "revision": 1,
        "updated_by": "root",
    }
    twin = ("--tenant", "acme", "--task", "extraction", "--floor", "0.9", "--directive", "L1")
    noted = bench.run("policy", "create", "twin", "--mode", "on", *twin)
    assert "same_match" not in noted.out + noted.err and "twin of the same match never will" in noted.err
    assert "SEVERITY" not in noted.out
    assert "SEVERITY" not in bench.run("policy", "create", "idle", "--mode", "off", *twin).err
    assert bench.run("policy", "create", "third", "--mode", "on", "--json", *twin).err == ""
    careful = bench.document("policy", "create", "careful", "--floor", "0.9")
    assert (careful["mode"], careful["floor_kind"], careful["latency"]) == ("shadow", "relative", None)
    faulty = bench.run("policy", "create", "x", "--floor", "7", "--directive", "L9", "--latency", "2h", code=2).err
    for option in ("(--floor)", "(--directive)", "(--latency)"):
        assert option in faulty
    assert "500 g CO2e a day, then refuse" in bench.text("policy", "show", "all")


@case
def policy_update(bench: Bench) -> None:
    bench.run(*SUMS, "--latency", "2s", "--carbon-budget-grams", "5", "--leave-alone", "code")
    updated = bench.document("policy", "update", "sums", "--latency-share", "0.5", "--when-spent", "refuse")
    assert updated["latency"] == {"seconds": 2.0, "share": 0.5}
    assert updated["carbon_budget"] == {"grams_per_day": 5.0, "when_spent": "refuse"}
    unset = ("--latency", "none", "--carbon-budget-grams", "none", "--leave-alone", "", "--directive", "L2")
    updated = bench.document("policy", "update", "sums", *unset)
    assert (updated["latency"], updated["carbon_budget"]) == (None, None)
    assert (updated["leave_alone"], updated["directives"]) == ({"traits": []}, ["L2"])
    assert "nothing was changed" in bench.text("policy", "update", "sums", *unset)
    assert "its traffic_share is 0" in bench.run("policy", "update", "sums", "--traffic-share", "0").err
    bench.run("policy", "update", "sums", "--traffic-share", "1")
    assert (
        "must be one of structured_output"
        in bench.run("policy", "update", "sums", "--leave-alone", "poems", code=2).err
    )
    assert bench.document("policy", "show", "sums")["revision"] == 5


@case
def policy_edit(bench: Bench) -> None:
    changes = ("s/floor: 0.95/floor: 0.9/", "s/    # latency:/    latency:/", "s/    #   seconds:/      seconds: 2/")
    editor = bench.editor(f"sed -i {' '.join(f'-e {change!r}' for change in changes)} $1")
    shown = bench.text("policy", "edit", "default", "--reason", "looser", stdin="y\n", EDITOR=editor)
    assert "+floor: 0.9" in shown
    policy = bench.document("policy", "show", "default")
    assert (policy["floor"], policy["latency"]) == (0.9, {"seconds": 2.0, "share": 0.95})
    assert bench.document("policy", "history", "default")["revisions"][0]["reason"] == "looser"
    assert bench.document("policy", "edit", "default", VISUAL=bench.editor(": > $1"))["revision"] == 2


@case
def policy_delete(bench: Bench) -> None:
    bench.run(*SUMS)
    assert "Policy sums is deleted." in bench.text("policy", "delete", "sums", "--yes")
    bench.run(*SUMS)
    assert bench.document("policy", "delete", "sums", "--yes", "--reason", "over") == {"deleted": "sums"}
    bench.run("policy", "delete", "sums", "--yes", code=3)


@case
def policy_history(bench: Bench) -> None:
    bench.run(*SUMS, "--reason", "first")
    bench.run("policy", "update", "sums", "--floor", "0.8", "--mode", "on", "--reason", "second")
    bench.run("policy", "delete", "sums", "--yes", "--reason", "third")
    found = bench.document("policy", "history", "sums")["revisions"]
    assert [(r["policy"]["revision"], r["action"], r["reason"]) for r in found] == [
        (3, "delete", "third"),
        (2, "update", "second"),
        (1, "create", "first"),
    ]
    rows = [line.split() for line in bench.text("policy", "history", "sums").splitlines()]
    assert [row[0] for row in rows] == ["REVISION", "3", "2", "1"]
    assert rows[2][4:] == ["update", "mode,", "floor", "second"]


@case
def policy_diff(bench: Bench) -> None:
    bench.run(*SUMS)
    for floor in ("0.8", "0.7"):
        bench.run("policy", "update", "sums", "--floor", floor)
    assert "-floor: 0.8\n+floor: 0.7\n" in bench.text("policy", "diff", "sums")
    assert "-floor: 0.9\n+floor: 0.7\n" in bench.text("policy", "diff", "sums", "1")
    assert bench.document("policy", "diff", "sums", "2", "1")["changes"] == {"floor": {"before": 0.8, "after": 0.9}}
    assert "They are the same." in bench.text("policy", "diff", "sums", "2", "2")
    assert "pithctl policy history sums" in bench.run("policy", "diff", "sums", "9", code=3).err
    bench.run("policy", "delete", "sums", "--yes")
    assert "-floor: 0.7\n" in bench.text("policy", "diff", "sums")


@case
def policy_rollback(bench: Bench) -> None:
    bench.run(*SUMS)
    bench.run("policy", "update", "sums", "--floor", "0.8")
    rolled = bench.document("policy", "rollback", "sums", "1", "--reason", "too low")
    assert (rolled["floor"], rolled["revision"]) == (0.9, 3)
    assert "0.8 relative" in bench.text("policy", "rollback", "sums", "2")
    assert bench.run("policy", "rollback", "sums", "1", "--etag", '"0"', "--json", code=4).error["code"] == "ABORTED"
    bench.run("policy", "delete", "sums", "--yes")
    assert bench.document("policy", "rollback", "sums", "1")["revision"] == 6
    assert bench.document("policy", "history", "sums")["revisions"][0]["action"] == "rollback"
    assert "pithctl policy list" in bench.run("policy", "rollback", "nobody", "1", code=3).err


@case
def policy_check(bench: Bench) -> None:
    bench.run(*SUMS)
    twin = bench.file("policies: [{name: twin, task: sums, floor: 0.5, mode: on, directives: [L1]}]")
    found = bench.document("policy", "check", twin)["findings"]
    assert "conflict" in {f["severity"] for f in found if {"sums", "twin"} == {f["subject"], *f["others"]}}
    said = bench.run("policy", "check", twin, "--exit-code", code=7).out.splitlines()
    assert said[1].startswith("conflict")
    together = "directives: [{name: new, text: t}]\npolicies: [{name: sums, task: sums, floor: 0.5, directives: [new]}]"
    said = bench.document("policy", "check", bench.file(together))["findings"]
    assert "unknown_directive" not in {f["code"] for f in said}
    assert bench.document("policy", "show", "sums")["floor"] == 0.9
    faulty = bench.file("policies:\n- name: twin\n  floor: 7\n")
    assert f"{faulty}:3:" in bench.run("policy", "check", faulty, code=2).err
