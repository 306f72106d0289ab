"""Cases of `pithctl directive`."""

import re

from tests.router.cli.bench import Bench, case, judged
from tests.router.fake_engine import IDENTITY


@case
def directive_list(bench: Bench) -> None:
    listed = bench.document("directive", "list")["directives"]
    assert [directive["name"] for directive in listed] == ["L0", "L1", "L2"]
    assert "Always answer very briefly" in bench.text("directive", "list")


@case
def directive_show(bench: Bench) -> None:
    assert bench.document("directive", "show", "L1")["text"] == "Always answer briefly"
    assert re.search(r"revision +1\n", bench.text("directive", "show", "L1"))
    assert "pithctl directive list" in bench.run("directive", "show", "nobody", code=3).err


@case
def directive_create(bench: Bench) -> None:
    created = bench.document(
        *("directive", "create", "terse", "--text", "Be [terse]", "--placement", "system", "--max-output-tokens", "64"),
        *("--stop", "\n\n", "--stop", "END", "--suppressed-word", "certainly", "--history-messages", "4"),
        *("--reason", "asked for"),
    )
    said = {name: created[name] for name in ("text", "placement", "max_output_tokens", "stop", "suppressed_words")}
    assert said == {
        "text": "Be [terse]",
        "placement": "system",
        "max_output_tokens": 64,
        "stop": ["\n\n", "END"],
        "suppressed_words": ["certainly"],
    }
    assert (created["history_messages"], created["updated_by"]) == (4, "root")
    native = bench.document(
        *("directive", "create", "quiet", "--placement", "native", "--template-variable", "enable_thinking=false"),
        *("--template-variable", "effort=0.5", "--template-variable", 'level="2"'),
    )
    assert native["template_variables"] == {"enable_thinking": False, "effort": 0.5, "level": "2"}
    assert "enable_thinking=false" in bench.text("directive", "list")
    small = bench.document("directive", "create", "small", "--answered-by", "tiny@0123456789ab")
    assert small["model"] == "tiny@0123456789ab"
    assert re.search(r"\n *small +\(no text\) +tiny@0123456789ab +tail ", bench.text("directive", "list"))
    assert re.search(r"answered by +tiny@0123456789ab\n", bench.text("directive", "show", "small"))
    assert re.search(r"answered by +the model asked for\n", bench.text("directive", "show", "L1"))
    refused = bench.run("directive", "create", "tinier", "--answered-by", "tiny", code=2).err
    assert "must be name@digest, as `pithctl engines` shows it" in refused
    assert "directive update terse" in bench.run("directive", "create", "terse", code=4).err
    assert "choose another name" in bench.run("directive", "create", "L0", code=4).err


@case
def directive_update(bench: Bench) -> None:
    updated = bench.document("directive", "update", "L1", "--text", "Shorter", "--stop", "END", "--reason", "r")
    assert (updated["text"], updated["stop"], updated["revision"]) == ("Shorter", ["END"], 2)
    assert bench.document("directive", "update", "L1", "--stop", "")["stop"] == []
    assert "nothing was changed" in bench.text("directive", "update", "L1", "--text", "Shorter")
    assert "no longer count: it is closed until it is judged anew" in bench.text(
        "directive", "update", "L1", "--text", "S"
    )
    assert bench.document("directive", "update", "L1", "--answered-by", IDENTITY)["model"] == IDENTITY
    assert IDENTITY in bench.text("engines")
    assert bench.document("directive", "update", "L1", "--answered-by", "")["model"] == ""
    stale = bench.run("directive", "update", "L1", "--text", "x", "--etag", '"0"', "--json", code=4)
    assert stale.error["reason"] == "ETAG_MISMATCH"


@case
def directive_edit(bench: Bench) -> None:
    editor = bench.editor("sed -i 's/Always answer briefly/Few words/' \"$1\"")
    shown = bench.text("directive", "edit", "L1", "--yes", EDITOR=editor)
    assert "-text: Always answer briefly" in shown
    assert "+text: Few words" in shown
    assert bench.document("directive", "show", "L1")["text"] == "Few words"
    assert bench.document("directive", "edit", "L1", EDITOR=editor)["revision"] == 2


@case
def directive_trial(bench: Bench) -> None:
    judged(bench)
    found = bench.document("directive", "trial", "Be terse", "--task", "qa", "--samples", "5")
    assert (found["samples"], found["quality"], found["baseline_quality"]) == (5, 1.0, 1.0)
    said = bench.text("directive", "trial", "Be terse", "--task", "qa", "--samples", "5")
    assert re.search(r"quality +1.000 +1.000", said)
    bench.run("directive", "trial", "Be terse", "--task", "poems", code=3)


@case
def directive_delete(bench: Bench) -> None:
    bench.run("directive", "create", "terse", "--text", "Be terse")
    assert "Delete directive terse (revision 1)?" in bench.run("directive", "delete", "terse", stdin="n\n", code=1).err
    assert bench.document("directive", "delete", "terse", "--yes", "--reason", "over") == {"deleted": "terse"}
    bench.run("directive", "show", "terse", code=3)
    bench.world.policy()
    assert "pithctl policy update" in bench.run("directive", "delete", "L1", "--yes", code=4).err
    assert "take it out" not in bench.run("directive", "delete", "L0", "--yes", code=4).err


@case
def directive_history(bench: Bench) -> None:
    bench.run("directive", "update", "L1", "--text", "Shorter", "--stop", "END", "--reason", "why not")
    assert [r["action"] for r in bench.document("directive", "history", "L1")["revisions"]] == ["update", "create"]
    assert "update  text, stop  why not" in bench.text("directive", "history", "L1")


@case
def directive_diff(bench: Bench) -> None:
    bench.run("directive", "update", "L1", "--text", "Shorter", "--reason", "why not")
    lines = bench.text("directive", "diff", "L1").splitlines()
    assert lines[0].startswith("--- directive L1, revision 1 (create")
    assert lines[1].endswith("by root): why not")
    assert {"-text: Always answer briefly", "+text: Shorter"} <= set(lines)
    found = bench.document("directive", "diff", "L1", "1")
    assert found["changes"] == {"text": {"before": "Always answer briefly", "after": "Shorter"}}


@case
def directive_rollback(bench: Bench) -> None:
    bench.run("directive", "update", "L1", "--text", "Shorter")
    rolled = bench.document("directive", "rollback", "L1", "1", "--reason", "back")
    assert (rolled["text"], rolled["revision"]) == ("Always answer briefly", 3)
    said = bench.text("directive", "rollback", "L1", "2")
    assert re.search(r"revision +4\n", said)
    assert "no longer count" in said
    bench.run("directive", "create", "terse", "--text", "Be terse")
    bench.run("directive", "delete", "terse", "--yes")
    assert bench.document("directive", "rollback", "terse", "1")["text"] == "Be terse"
    assert "pithctl directive history L1" in bench.run("directive", "rollback", "L1", "9", code=3).err
