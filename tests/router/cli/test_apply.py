"""`pithctl export` and `pithctl apply` against a router that runs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pith.router.v1.directives_pb2 import PLACEMENT_NATIVE, Directive
from pith.router.v1.generation_pb2 import Trait
from pith.router.v1.policies_pb2 import (
    ApplyRequest,
    CarbonBudget,
    LatencyObjective,
    LeaveAlone,
    Mode,
    Policy,
    QualityBudget,
)

from router.cli.files import write_whole
from tests.router.cli.conftest import Pithctl
from tests.router.cli.world import ADMIN, World, running_world


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One router for all examples of a property: each brings it to a state of its own."""
    with running_world(tmp_path_factory.mktemp("world")) as world:
        yield world


shares = st.floats(0.01, 1.0)
words = st.text("abc äß'\":#-", min_size=1, max_size=12).filter(lambda text: text.strip() != "")


@st.composite
def wishes(draw: st.DrawFn) -> ApplyRequest:
    """A state that a router takes."""
    names = draw(st.lists(st.sampled_from(["a", "b", "null", "on", "0815", "1e3"]), unique=True, max_size=4))
    directives = []
    for name in names:
        directive = Directive(
            name=name,
            max_output_tokens=draw(st.integers(0, 1000)),
            stop=draw(st.lists(st.sampled_from(["\n\n", "END", " x", "#"]), unique=True, max_size=3)),
            suppressed_words=draw(st.lists(st.sampled_from(["certainly", "on", "7"]), unique=True, max_size=2)),
            history_messages=draw(st.integers(0, 10)),
            model=draw(st.sampled_from(["", "tiny@0123456789ab", "null@0", "0815@1e3"])),
        )
        if draw(st.booleans()):
            directive.text = draw(words)
        else:
            directive.placement = PLACEMENT_NATIVE
            directive.template_variables.update(
                {"flag": draw(st.booleans()), "level": draw(shares), "how": draw(st.sampled_from(["on", "7", "x"]))}
            )
        directives.append(directive)
    maybe = st.none()
    policies = [
        Policy(
            name=f"p-{task}",
            task=task,
            tenant=draw(st.sampled_from(["", "acme", "null"])),
            mode=draw(st.sampled_from([Mode.MODE_OFF, Mode.MODE_SHADOW, Mode.MODE_ON])),
            floor=(floor := draw(shares)),
            directives=draw(st.lists(st.sampled_from(names), unique=True)) if names else [],
            traffic_share=draw(st.floats(0, 1) | maybe),
            grader=draw(st.sampled_from(["", "exact", "numeric"])),
            latency=draw(st.builds(LatencyObjective, seconds=st.floats(0.1, 3600), share=st.floats(0.1, 0.9)) | maybe),
            carbon_budget=draw(st.builds(CarbonBudget, grams_per_day=st.floats(0.1, 1e6)) | maybe),
            quality_budget=draw(
                st.builds(QualityBudget, directive_floor=st.just(floor / 3), scope=st.sampled_from([0, 1, 2])) | maybe
            ),
            leave_alone=draw(
                st.builds(LeaveAlone, traits=st.lists(st.sampled_from(Trait.values()[1:]), unique=True)) | maybe
            ),
        )
        for task in draw(st.lists(st.sampled_from(["sums", "qa", "on", "7"]), unique=True, max_size=3))
    ]
    return ApplyRequest(directives=directives, policies=policies, prune=True)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wish=wishes().filter(lambda wish: bool(wish.directives or wish.policies)))
def test_export_then_apply_changes_nothing(wish: ApplyRequest, standing: World, command_line: Pithctl) -> None:
    standing.apply(wish)
    reach = {"PITHCTL_ROUTER": standing.router.address, "PITHCTL_TOKEN": ADMIN}
    with tempfile.TemporaryDirectory() as folder:
        for more in ([], ["--with-etags"]):
            file = str(Path(folder) / "all.yaml")
            assert command_line("export", "--output", file, *more, **reach).code == 0
            again = command_line("apply", file, "--prune", "--dry-run", "--exit-code", **reach)
            assert again.code == 0, (Path(file).read_text(), again)


def _file(folder: Path, text: str) -> str:
    path = folder / "wish.yaml"
    path.write_text(text)
    return str(path)


def test_faults_name_file_and_line(admin: Pithctl, tmp_path: Path) -> None:
    file = _file(tmp_path, "policies:\n  - name: p\n    flor: 1\n    mode: om\n")
    said = admin("apply", file, code=2).err.splitlines()
    assert said[0] == f"Error: {file}:3: 'flor' is unknown; did you mean floor?"
    assert said[1] == f"Error: {file}:4: mode is 'om'; must be one of off, shadow, on"
    file = _file(tmp_path, "policies:\n  - name: p\n    floor: 7\n    directives:\n      - L1\n      - L9\n")
    said = admin("apply", file, code=2).err.splitlines()
    assert said[0].startswith(f"Error: {file}:3: policies[0].floor is 7")
    assert said[1].startswith(f"Error: {file}:6: policies[0].directives[1] is 'L9'")
    faults: Any = admin("apply", file, "--json", code=2).error
    assert len(faults["faults"]) == 2


def test_json_asks_on_stderr_and_shows_what_it_asks_about(admin: Pithctl, tmp_path: Path) -> None:
    file = _file(tmp_path, "policies: [{name: default, floor: 0.9}]")
    result = admin("apply", file, "--json", stdin="y\n")
    assert result.document["applied"] is True
    assert "+floor: 0.9" in result.err
    assert admin("apply", file, "--json", "--yes").err == ""


def test_all_or_nothing(admin: Pithctl, tmp_path: Path) -> None:
    text = "directives: [{name: new, text: New}]\npolicies: [{name: p, floor: 7}]\n"
    admin("apply", _file(tmp_path, text), "--yes", code=2)
    admin("directive", "show", "new", code=3)


def test_etags_refuse_what_has_changed_since(admin: Pithctl, tmp_path: Path) -> None:
    file = str(tmp_path / "all.yaml")
    admin("export", "--with-etags", "-o", file)
    admin("policy", "update", "default", "--floor", "0.5")
    assert "look at it again" in admin("apply", file, "--yes", code=4).err
    assert admin("policy", "show", "default", "--json").document["floor"] == 0.5


def test_what_changes_between_question_and_answer_is_not_overwritten(
    world: World, admin: Pithctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without etags in the file, what was shown is still all that may be changed."""
    file = _file(tmp_path, "policies:\n  - name: default\n    floor: 0.9\n")

    def meanwhile(question: str, *, yes: bool) -> None:
        assert not yes
        world.apply(ApplyRequest(policies=[Policy(name="default", floor=0.5)]))

    monkeypatch.setattr("router.cli.apply.confirm", meanwhile)
    assert admin("apply", file, code=4).err
    assert admin("policy", "show", "default", "--json").document["floor"] == 0.5


def test_manifest_from_stdin_needs_yes(admin: Pithctl) -> None:
    text = "policies: [{name: default, floor: 0.9}]"
    assert "--yes" in admin("apply", "-", stdin=text, code=2).err
    admin("apply", "-", "--yes", stdin=text)
    assert admin("policy", "show", "default", "--json").document["floor"] == 0.9
    assert "stdin:1:" in admin("apply", "-", "--yes", stdin="x: y", code=2).err


def test_nothing_and_prune_is_refused(admin: Pithctl, tmp_path: Path) -> None:
    empty = _file(tmp_path, "# all gone\n")
    assert "all would be deleted" in admin("apply", empty, "--prune", "--yes", code=2).err
    admin("policy", "show", "default")
    assert "nothing to change" in admin("apply", empty).out


def test_file_that_cannot_be_read_is_named(admin: Pithctl, tmp_path: Path) -> None:
    assert "No such file" in admin("apply", str(tmp_path / "none.yaml"), code=2).err
    (tmp_path / "latin.yaml").write_bytes(b"policies: [{name: \xe9}]")
    assert "is not UTF-8" in admin("apply", str(tmp_path / "latin.yaml"), code=2).err
    assert "--dry-run" in admin("apply", "-", "--exit-code", code=2).err


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("before")
    write_whole(str(path), "after")
    assert path.read_text() == "after"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.yaml"]
