"""Directives and policies as YAML, read and written."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.router.v1.directives_pb2 import Directive
from pith.router.v1.generation_pb2 import Trait
from pith.router.v1.policies_pb2 import (
    CarbonBudget,
    FloorKind,
    LatencyObjective,
    LeaveAlone,
    Mode,
    Policy,
    QualityBudget,
    WhenSpent,
)

from router.cli.manifest import ManifestError, assign, parse, variable
from router.cli.manifest_text import text_of, write

names = st.text("abcXYZ019._-", min_size=1, max_size=12)
# Whatever a string field of the contract can hold: of any script, with line ends, quotes and signs of YAML.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ["on", "off", "no", "null", "~", "0815", "1e3", "- a", "a: b", "# x", "|", "'", '"', "a\n b\n", "\n\n", " x", "x\n"]
)
# A negative zero says the same as zero, and is left out as that.
numbers = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number + 0.0)
values = st.booleans() | numbers | texts


def name_of(resource: Directive | Policy) -> str:
    return resource.name


def enum(kind: Any) -> st.SearchStrategy[int]:
    return st.sampled_from([number for number in kind.values() if number])


@st.composite
def directives(draw: st.DrawFn) -> Directive:
    directive = Directive(
        name=draw(names),
        text=draw(texts),
        placement=draw(st.sampled_from([0, 1, 2, 3])),
        max_output_tokens=draw(st.integers(0, 2**32 - 1)),
        stop=draw(st.lists(texts, max_size=3)),
        suppressed_words=draw(st.lists(texts, max_size=3)),
        history_messages=draw(st.integers(0, 2**32 - 1)),
        model=draw(texts),
    )
    variables = draw(st.dictionaries(texts, values, max_size=3))
    if variables:
        directive.template_variables.update(variables)
    return directive


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    maybe = st.none()
    return Policy(
        name=draw(names),
        tenant=draw(texts),
        task=draw(texts),
        mode=draw(enum(Mode)),
        traffic_share=draw(numbers | maybe),
        floor=draw(numbers.filter(bool)),
        floor_kind=draw(enum(FloorKind)),
        directives=draw(st.lists(names, max_size=3)),
        holdback_share=draw(numbers | maybe),
        grader=draw(texts),
        bound_max_age_seconds=draw(st.integers(0, 2**64 - 1)),
        latency=draw(st.builds(LatencyObjective, seconds=numbers, share=numbers) | maybe),
        carbon_budget=draw(st.builds(CarbonBudget, grams_per_day=numbers, when_spent=enum(WhenSpent)) | maybe),
        leave_alone=draw(st.builds(LeaveAlone, traits=st.lists(enum(Trait), max_size=5)) | maybe),
        quality_budget=draw(st.builds(QualityBudget, directive_floor=numbers, scope=enum(QualityBudget.Scope)) | maybe),
    )


@settings(deadline=None)
@given(st.lists(directives(), max_size=3, unique_by=name_of), st.lists(policies(), max_size=3, unique_by=name_of))
def test_what_is_written_is_read_again(some: list[Directive], others: list[Policy]) -> None:
    read = parse(write(some, others))
    assert list(read.directives) == sorted(some, key=lambda d: d.name)
    assert list(read.policies) == sorted(others, key=lambda p: p.name)


@settings(deadline=None)
@given(policies())
def test_other_readers_of_yaml_see_the_same_words(policy: Policy) -> None:
    (seen,) = yaml.safe_load(write([], [policy]))["policies"]
    assert seen["mode"] in ("off", "shadow", "on")
    assert (seen["name"], seen.get("tenant", ""), seen["floor"] if policy.floor else 0) == (
        policy.name,
        policy.tenant,
        policy.floor,
    )


@settings(deadline=None)
@given(st.text(st.sampled_from("abdein:-[]{}#&*!|>'\"%@`, \n\t1.0\x00\ufeff~")) | texts)
def test_any_text_is_read_or_refused_with_its_lines(text: str) -> None:
    for made in (text, f"directives:\n- name: {text}\n", f"policies: [{{name: x, {text}}}]"):
        try:
            parse(made)
        except ManifestError as error:
            assert error.faults
            assert all(1 <= fault.line <= made.count("\n") + made.count("\r") + 2 for fault in error.faults)


def test_order_is_stable_and_lines_of_text_stay_lines() -> None:
    two = [Directive(name="b", text="one\ntwo\n"), Directive(name="a", stop=["\n\n"])]
    text = write(two, [])
    assert text == write(two[::-1], [])
    assert "  - name: b\n    text: |\n      one\n      two\n" in text
    assert text.index("name: a") < text.index("name: b")


def test_etag_is_written_on_request_and_nothing_else_that_is_output_only() -> None:
    directive = Directive(name="a", revision=3, etag='"e"', updated_by="me")
    assert "etag" not in write([directive], [])
    text = write([directive], [], with_etags=True)
    assert parse(text).directives[0] == Directive(name="a", etag='"e"')


FAULTY = """\
directives:
  - name: a
    txt: misspelt
    max_output_tokens: -1
    stop: END
  - name: a
  - text: nameless
    updated_by: me
    placement: top
policies:
  - name: p
    floor: .nan
    floor: 0.9
    latency: 2
    directives: [{a: b}]
    traffic_share: half
    leave_alone: {traits: [poem]}
    nonsense: 1
templates: []
"""


def test_every_fault_names_its_line() -> None:
    with pytest.raises(ManifestError) as caught:
        parse(FAULTY)
    found = {(fault.line, fault.description) for fault in caught.value.faults}
    expected = {
        3: "'txt' is unknown; did you mean text?",
        4: "max_output_tokens is '-1'; must be a whole number",
        5: "must be a list",
        6: "a is given twice",
        7: "has no name",
        8: "updated_by is the router's to set",
        9: "placement is 'top'; must be one of tail, system, native",
        12: "floor is '.nan'; must be a number",
        13: "floor is given twice",
        14: "must be a mapping with seconds, share",
        15: "must be one value",
        16: "traffic_share is 'half'; must be a number",
        17: "traits is 'poem'; must be one of structured_output",
        18: "'nonsense' is unknown; must be one of name, tenant",
        19: "'templates' is unknown",
    }
    assert sorted(line for line, _ in found) == sorted(expected)
    for line, description in found:
        assert description.startswith(expected[line]), (line, description)


@pytest.mark.parametrize("floor", ["", "  floor:\n", "  floor: null\n"])
def test_a_floor_that_was_forgotten_is_said_to_be_missing(floor: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(f"directives:\n- name: d\npolicies:\n- name: p\n{floor}- name: q\n  floor: 0.9\n")
    (fault,) = caught.value.faults
    assert fault.line == 4
    assert fault.description.startswith("floor: is missing; must be above 0")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("directives:\n  - name: [", 2, "is not YAML"),
        ("a: 1\n---\nb: 2\n", 2, "expected a single document"),
        ("x: \x07", 1, "U+0007"),
        ("- a", 1, "must be a mapping with directives, policies or both"),
        ("policies: {a: b}", 1, "must be a list of policies"),
        ("policies: [a]", 1, "must be a mapping with name"),
        ("policies: [&a {name: x, latency: *b}]", 1, "is not YAML"),
    ],
)
def test_what_is_no_manifest_says_so(text: str, line: int, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert caught.value.faults[0].line == line
    assert says in str(caught.value)


def test_words_are_what_their_field_says_and_null_is_absent() -> None:
    text = "policies: [{name: 07, tenant: 0815, task: null, mode: on, floor: 1, traffic_share: ~, leave_alone: {}}]"
    (policy,) = parse(text).policies
    assert (policy.name, policy.tenant, policy.task, policy.mode, policy.floor) == ("07", "0815", "", Mode.MODE_ON, 1.0)
    assert not policy.HasField("traffic_share")
    assert policy.HasField("leave_alone")
    assert not parse("# nothing but a comment\n").policies


def test_place_of_a_field_is_known_for_what_the_router_says() -> None:
    manifest = parse("policies:\n  - name: a\n    directives:\n      - L1\n      - L9\n    floor: 7\n")
    assert manifest.line("policies[0].directives[1]") == 5
    assert manifest.line("policies[0].floor") == 6
    assert manifest.line("policies[0].latency.seconds") == 2
    assert manifest.line("policies") == 2
    assert manifest.line("reason") is None


def test_single_fields_can_be_set() -> None:
    policy = Policy(name="p", latency=LatencyObjective(seconds=1, share=0.5), directives=["L1"])
    for path, text in (
        ("mode", "on"),
        ("directives", "[L2, L3]"),
        ("latency.seconds", "2.5"),
        ("traffic_share", "0"),
        ("quality_budget.scope", "day"),
        ("leave_alone.traits", "[]"),
        ("tenant", ""),
    ):
        assign(policy, path, text)
    assert policy == Policy(
        name="p",
        mode=Mode.MODE_ON,
        directives=["L2", "L3"],
        latency=LatencyObjective(seconds=2.5, share=0.5),
        traffic_share=0,
        quality_budget=QualityBudget(scope=QualityBudget.SCOPE_DAY),
        leave_alone=LeaveAlone(),
    )
    assign(policy, "latency", "null")
    assert not policy.HasField("latency")
    for path in ("nonsense", "latency.hours", "etag", "mode.x", "directives.x"):
        with pytest.raises(ManifestError, match="is no field"):
            assign(policy, path, "1")
    with pytest.raises(ManifestError, match="must be a number"):
        assign(policy, "floor", "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("True", True),
        ("2", 2.0),
        ("-0.5e1", -5.0),
        ("'2'", "2"),
        ('"true"', "true"),
        ("on", "on"),
        ("high", "high"),
        ("a: b", "a: b"),
        ("[x", "[x"),
        ("", ""),
        (".inf", ".inf"),
    ],
)
def test_variables_are_what_somebody_means_who_types_them(text: str, value: bool | float | str) -> None:
    found = variable(text)
    assert found == value
    assert type(found) is type(value)


def test_every_field_can_be_shown_for_who_edits() -> None:
    assert text_of(Policy(name="p", floor=0.5)) == "name: p\nfloor: 0.5\n"
    shown = yaml.safe_load(text_of(Policy(name="p"), every_field=True))
    assert shown["directives"] == []
    assert shown["grader"] == ""
    assert math.isclose(shown["floor"], 0)
    assert "latency" not in shown
