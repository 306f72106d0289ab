"""`pithctl policy edit` and `pithctl directive edit` against a router that runs: nothing typed is ever lost."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from pith.router.v1.policies_pb2 import ApplyRequest, Policy

from tests.router.cli.conftest import Pithctl, Result
from tests.router.cli.terminal import on_terminal
from tests.router.cli.world import ADMIN, World

Editor = Callable[[str], str]


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Makes an $EDITOR of a line of shell, whose $1 is the file. Files that are kept lie in tmp_path / "kept"."""
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(kept))

    def make(script: str) -> str:
        path = tmp_path / "editor.sh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def kept_in(folder: Path) -> list[str]:
    return [path.read_text() for path in (folder / "kept").iterdir()]


def replace(before: str, after: str) -> str:
    return f"sed -i 's/{before}/{after}/' \"$1\""


def test_what_is_opened_says_all_that_can_be_said(admin: Pithctl, editor: Editor, tmp_path: Path) -> None:
    admin("policy", "edit", "default", EDITOR=editor(f'cp "$1" {tmp_path}/seen; ls -l "$1" > {tmp_path}/mode'))
    seen = (tmp_path / "seen").read_text()
    assert 'etag "' in seen.splitlines()[0]
    for field in ("tenant: ''", "mode: shadow", "floor: 0.95", "grader: ''", "# latency:", "# carbon_budget:"):
        assert f"\n    {field}\n" in seen
    assert "\n    # quality_budget:\n    #   directive_floor:\n    #   scope:\n" in seen
    assert "\n# quality_budget: " in seen
    assert not re.search(r"^ *(etag|revision|updated_\w+):", seen, re.MULTILINE)
    assert (tmp_path / "mode").read_text().startswith("-rw-------")


@pytest.mark.parametrize("script", ["true", ': > "$1"', "sed -i 's/^/# /' \"$1\"", "echo '# a remark' >> \"$1\""])
def test_unchanged_or_emptied_changes_nothing(admin: Pithctl, editor: Editor, tmp_path: Path, script: str) -> None:
    assert "Nothing was changed." in admin("policy", "edit", "default", EDITOR=editor(script)).out
    assert admin("policy", "show", "default", "--json").document["revision"] == 1
    assert kept_in(tmp_path) == []


def test_change_is_shown_asked_for_and_sent(admin: Pithctl, editor: Editor, tmp_path: Path) -> None:
    said = admin("directive", "edit", "L1", stdin="y\n", EDITOR=editor(replace("briefly", "in few words")))
    assert "-text: Always answer briefly\n+text: Always answer in few words\n" in said.out
    assert "Send this change?" in said.err
    shown = admin("directive", "show", "L1", "--json").document
    assert (shown["text"], shown["updated_by"]) == ("Always answer in few words", "root")
    assert kept_in(tmp_path) == []


def test_what_is_taken_out_becomes_absent(admin: Pithctl, editor: Editor) -> None:
    admin("policy", "update", "default", "--latency", "2s", "--traffic-share", "0.5")
    script = "sed -i -e '/^    latency:/,/share:/d' -e '/traffic_share/d' \"$1\""
    admin("policy", "edit", "default", "--yes", EDITOR=editor(script))
    shown = admin("policy", "show", "default", "--json").document
    assert (shown["latency"], shown["traffic_share"]) == (None, 1.0)


def test_json_is_alone_on_stdout(admin: Pithctl, editor: Editor) -> None:
    change = editor(replace("0.95", "0.9") + "; echo hi")
    result = admin("policy", "edit", "default", "--json", stdin="y\n", EDITOR=change)
    assert result.document["floor"] == 0.9
    assert "+floor: 0.9" in result.err


def path_of(result: Result) -> Path:
    match = re.search(r"what you typed is in (\S+\.yaml);", result.err)
    assert match, result
    return Path(match[1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (replace("mode: shadow", "mode: om"), r"line \d+: mode is 'om'"),
        (replace("floor: 0.95", "floor: 7"), r"line \d+: floor is 7"),
        (replace("- L2", "- L9"), r"line \d+: directives\[1\] is 'L9'"),
        (replace("# quality_budget:$", "quality_budget: {directive_floor: 1}"), r"line \d+: quality_budget.directive"),
        (replace("name: default", "name: other"), "cannot change"),
        ("echo ' - [' >> \"$1\"", "is not YAML"),
        ("printf '\\351' >> \"$1\"", "is not UTF-8"),
        ("echo 'directives: [{name: x}]' >> \"$1\"", "one policy and nothing else"),
    ],
)
def test_faulty_text_is_kept_and_its_place_is_told(admin: Pithctl, editor: Editor, change: str, says: str) -> None:
    result = admin("policy", "edit", "default", "--yes", code=2, EDITOR=editor(change))
    assert re.search(says, result.err), result
    assert path_of(result).stat().st_size > 0
    assert admin("policy", "show", "default", "--json").document["revision"] == 1
    as_json = admin("policy", "edit", "default", "--yes", "--json", code=2, EDITOR=editor(change))
    assert "what you typed is in" in as_json.error["next_step"]


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_kept_text_is_a_manifest_that_apply_takes(admin: Pithctl, editor: Editor, answer: str) -> None:
    result = admin("policy", "edit", "default", stdin=answer, code=1, EDITOR=editor(replace("0.95", "0.9")))
    file = path_of(result)
    assert "+floor: 0.9" in admin("apply", str(file), "--dry-run").out
    admin("apply", str(file), "--yes")
    assert admin("policy", "show", "default", "--json").document["floor"] == 0.9


def test_change_by_somebody_else_wins_and_the_text_is_kept(
    world: World, admin: Pithctl, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from router.cli import editor as module

    show = module._show

    def meanwhile(*arguments: object) -> None:
        world.apply(ApplyRequest(policies=[Policy(name="default", floor=0.5)]))
        show(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_show", meanwhile)
    result = admin("policy", "edit", "default", "--yes", code=4, EDITOR=editor(replace("0.95", "0.9")))
    assert "has changed since it was read" in result.err
    assert "floor: 0.9\n" in path_of(result).read_text()
    assert "would undo the other change: see that with: pithctl policy diff default" in result.err
    assert "pithctl apply" not in result.err
    assert admin("policy", "show", "default", "--json").document["floor"] == 0.5


def test_editor_that_fails_keeps_the_text(admin: Pithctl, editor: Editor) -> None:
    result = admin("policy", "edit", "default", "--yes", code=1, EDITOR=editor(replace("0.95", "0.9") + "; exit 3"))
    assert "ended with 3" in result.err
    assert "floor: 0.9\n" in path_of(result).read_text()


def test_editor_that_is_not_there_is_named(admin: Pithctl, editor: Editor, tmp_path: Path) -> None:
    result = admin("policy", "edit", "default", code=2, EDITOR="/no/such/editor -w")
    assert "/no/such/editor" in result.err
    assert "set VISUAL or EDITOR" in result.err
    assert kept_in(tmp_path) == []


def test_visual_comes_before_editor(admin: Pithctl, editor: Editor) -> None:
    admin("policy", "edit", "default", VISUAL=editor("true"), EDITOR="false")


def test_on_a_terminal_a_faulty_text_is_opened_again(world: World, editor: Editor, tmp_path: Path) -> None:
    """The second time with what was typed the first time, faults and all."""
    script = f'cat "$1" >> {tmp_path}/seen; sed -i -e "s/floor: 7$/floor: 0.9/" -e "s/floor: 0.95/floor: 7/" "$1"'
    reach = {"PITHCTL_ROUTER": world.router.address, "PITHCTL_TOKEN": ADMIN, "EDITOR": editor(script)}
    with on_terminal("policy", "edit", "default", **reach) as screen:
        screen.until("Send this change?")
        screen.press("y\n")
        screen.until("floor is 7", "Edit it again?")
        screen.press("y\n")
        screen.until("floor: 0.9", "Send this change?")
        screen.press("y\n")
        assert screen.end() == 0
    assert (tmp_path / "seen").read_text().count("floor: 7\n") == 1
    # Red and green, as diffs are.
    assert "\x1b[31m-floor: 0.95" in screen.written
    assert "\x1b[32m+floor: 0.9" in screen.written
