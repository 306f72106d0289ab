"""What is probably not meant about policies: found, told with what to do, and nothing said where all is well."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.engine.v1 import control_pb2
from pith.router.v1 import directives_pb2 as dpb
from pith.router.v1 import policies_pb2

from common.quality.bound import Cell, FloorKind, QualityBound
from router.conflicts import Finding, Severity, find_conflicts
from router.directives.bounds import Snapshot
from router.directives.levels import L0, SEEDED, Directive, Placement
from router.directives.policy import CarbonBudget, LatencyObjective, Mode, Policy, WhenSpent, match
from router.fleet.view import EngineState, EngineView
from router.openings import allowing
from router.optimizer.plan import Plan
from tests.router.admin_client import MODEL, AdminClient, faults

pb: Any = policies_pb2
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SOUND = Policy(name="sound", task="sums", mode=Mode.ON, directives=("L1", "L2"), grader="numeric")
OPEN = QualityBound(Cell(MODEL, "sums", "L1"), 0.97, 1.0, 0.99, 0.9, 200, "grader:numeric", "1", NOW)
OPEN_LISTS = replace(OPEN, cell=replace(OPEN.cell, task="lists"))


def find(
    *policies: Policy,
    directives: tuple[Directive, ...] = SEEDED,
    bounds: tuple[QualityBound, ...] = (OPEN, OPEN_LISTS),
    template_variables: Any = None,
    models: Any = (),
) -> tuple[Finding, ...]:
    snapshot = Snapshot(
        directives={d.name: d for d in (L0, *directives)},
        policies=policies,
        bounds={bound.cell: bound for bound in bounds},
        plan=Plan({}, NOW),
    )
    return find_conflicts(snapshot, template_variables or {}, NOW, models)


def test_of_policies_that_do_what_they_say_nothing_is_said() -> None:
    off = Policy(name="off", tenant="acme", mode=Mode.OFF)
    assert find(SOUND, off, replace(SOUND, name="all", task="")) == ()


def test_of_one_match_the_first_by_name_wins_and_is_named() -> None:
    policies = [replace(SOUND, name=name) for name in ("c", "a", "b")]
    (finding,) = find(*policies)
    assert (finding.severity, finding.subject, finding.others) == (Severity.CONFLICT, "a", ("b", "c"))
    assert finding.code == "same_match"
    assert "a, the first by name, decides for every tenant and task 'sums'; b, c of the same match" in finding.message
    assert match(policies, "acme", "sums") == replace(SOUND, name="a")


@pytest.mark.parametrize(
    ("changes", "severity", "code", "words"),
    [
        ({"directives": ()}, Severity.WARNING, "no_directives", "Name directives, or turn it off"),
        (
            {"directives": ("L1", "L9", "L8")},
            Severity.WARNING,
            "unknown_directive",
            "allows L9, L8, which do not exist",
        ),
        ({"grader": ""}, Severity.WARNING, "no_grader", "samples are kept but never judged"),
        ({"sample_share": 0.0}, Severity.WARNING, "no_samples", "once their bounds are 604,800 s old"),
        ({"traffic_share": 0.0}, Severity.WARNING, "no_traffic", "acts on no request"),
        ({"traffic_share": 0.0, "mode": Mode.SHADOW}, Severity.WARNING, "no_traffic", "acts on no request"),
        ({"holdback_share": 0.0}, Severity.NOTE, "no_holdback", "reports cannot tell what it saves"),
        (
            {"mode": Mode.OFF, "carbon_budget": CarbonBudget(5.0, WhenSpent.REFUSE)},
            Severity.NOTE,
            "budget_without_effect",
            "its mode is off: beyond 5 g a day nothing is refused",
        ),
        (
            {"mode": Mode.SHADOW, "carbon_budget": CarbonBudget(5.0)},
            Severity.NOTE,
            "budget_without_effect",
            "its mode is shadow: beyond 5 g a day nothing is tightened",
        ),
    ],
)
def test_words_without_effect(changes: Any, severity: Severity, code: str, words: str) -> None:
    (finding,) = find(replace(SOUND, **changes))
    assert (finding.severity, finding.subject, finding.code) == (severity, "sound", code)
    assert words in finding.message


def codes(*policies: Policy, **known: Any) -> set[tuple[str, str]]:
    return {(finding.subject, finding.code) for finding in find(*policies, **known)}


def test_an_absolute_floor_of_one_is_out_of_reach() -> None:
    policy = replace(SOUND, floor=1.0, floor_kind=FloorKind.ABSOLUTE)
    assert codes(policy) == {("sound", "floor_out_of_reach"), ("sound", "all_closed")}
    assert "floor_out_of_reach" not in {code for _, code in codes(replace(policy, floor_kind=FloorKind.RELATIVE))}


def test_a_latency_objective_needs_something_to_choose() -> None:
    policy = replace(SOUND, directives=(), latency=LatencyObjective(2.0))
    assert codes(policy) == {("sound", "no_directives"), ("sound", "latency_without_directives")}
    assert codes(replace(policy, mode=Mode.OFF)) == {("sound", "latency_without_directives")}


def test_another_policys_samples_of_the_task_are_evidence_too() -> None:
    blind = replace(SOUND, name="blind", tenant="acme", grader="")
    assert codes(blind) == {("blind", "no_grader")}
    assert codes(blind, SOUND) == set()
    assert codes(blind, replace(SOUND, task="")) == set()
    for of_no_help in (
        replace(SOUND, task="lists", directives=("L1",)),
        replace(SOUND, mode=Mode.OFF),
        replace(SOUND, sample_share=0.0),
    ):
        assert ("blind", "no_grader") in codes(blind, of_no_help)


def test_evidence_of_one_task_is_none_of_the_others() -> None:
    """A policy for any task decides for tasks that the other one says nothing about."""
    general = replace(SOUND, name="general", task="", grader="")
    assert ("general", "no_grader") in codes(general, replace(SOUND, tenant="acme"))
    assert ("general", "no_grader") not in codes(general, replace(SOUND, tenant="acme", task=""))


def test_evidence_on_one_directive_is_none_on_the_others() -> None:
    blind = replace(SOUND, name="blind", tenant="acme", grader="")
    assert ("blind", "no_grader") in codes(blind, replace(SOUND, directives=("L1",)))
    unsampled = replace(SOUND, name="unsampled", tenant="acme", sample_share=0.0)
    others = replace(SOUND, directives=("L9",), grader="exact")
    assert ("unsampled", "no_samples") in codes(unsampled, others)
    # Samples of the right grader serve, whichever directives their policy allows.
    assert ("unsampled", "no_samples") not in codes(unsampled, replace(others, grader="numeric"))


def test_graders_that_contradict_each_other() -> None:
    mine = replace(SOUND, name="mine", tenant="acme", directives=("L1",), grader="exact")
    (finding,) = (f for f in find(mine, SOUND) if f.severity is Severity.CONFLICT)
    assert (finding.subject, finding.others, finding.code) == ("mine", ("sound",), "grader_mismatch")
    assert "(mine exact, sound numeric)" in finding.message
    assert "(task 'sums': L1)" in finding.message
    any_task = replace(mine, task="")
    assert ("mine", "grader_mismatch") in codes(any_task, SOUND)
    for at_peace in (
        replace(mine, grader="numeric"),
        replace(mine, grader=""),
        replace(mine, mode=Mode.OFF),
        replace(mine, directives=("L9",)),
        replace(mine, task="lists"),
        # Where the other one decides, this one does not.
        replace(mine, tenant="", task=""),
    ):
        assert "grader_mismatch" not in {code for _, code in codes(at_peace, SOUND)}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({}, {("idle", "no_effect")}),
        ({"text": "  "}, {("idle", "no_effect")}),
        ({"model": "tiny@0123456789ab"}, set()),
        ({"placement": Placement.SYSTEM}, {("idle", "no_effect")}),
        ({"text": "Be terse"}, set()),
        ({"max_output_tokens": 5}, set()),
        ({"stop": ("END",)}, set()),
        ({"suppressed_words": ("certainly",)}, set()),
        ({"history_messages": 2}, set()),
        ({"placement": Placement.NATIVE, "template_variables": (("a", True),)}, set()),
    ],
)
def test_a_directive_that_changes_no_answer(content: Any, found: set[tuple[str, str]]) -> None:
    assert codes(SOUND, directives=(*SEEDED, Directive(name="idle", **content))) == found


def test_a_tenant_kept_at_less_than_all_others() -> None:
    low = replace(SOUND, name="low", tenant="acme", floor=0.8)
    (finding,) = find(low, replace(SOUND, task=""))
    assert (finding.severity, finding.subject, finding.code) == (Severity.NOTE, "low", "lower_floor")
    assert finding.others == ("sound",)
    assert "tenant 'acme' is kept at 0.8 of quality, all others, by sound, at 0.95" in finding.message
    # That of the same task is the one to compare with.
    assert find(low, replace(SOUND, name="any", task=""), replace(SOUND, floor=0.7)) == ()
    assert find(replace(low, floor=0.97), SOUND) == ()


def test_all_closed_tells_what_is_missing() -> None:
    low = replace(OPEN, lower=0.9)
    lower = replace(OPEN, cell=replace(OPEN.cell, model="other@1"), lower=0.5)
    (finding,) = find(SOUND, bounds=(low, lower))
    assert (finding.severity, finding.code) == (Severity.NOTE, "all_closed")
    # The cell that lacks least, and what nothing is known of.
    assert f"L1: closed, bound 0.900 is below the floor 0.950 (task 'sums', model {MODEL})" in finding.message
    assert "L2: no quality bound for it yet" in finding.message
    assert "old" in find(SOUND, bounds=(replace(OPEN, updated_at=NOW - timedelta(days=8)),))[0].message
    assert "revision 7" in find(SOUND, bounds=(replace(OPEN, revision="7"),))[0].message


def test_what_is_open_for_one_tenant_alone_is_open() -> None:
    low, of_acme = replace(OPEN, lower=0.9), replace(OPEN, cell=replace(OPEN.cell, tenant="acme"))
    assert codes(SOUND, bounds=(low,)) == {("sound", "all_closed")}
    assert codes(SOUND, bounds=(low, of_acme)) == set()
    assert codes(SOUND, replace(SOUND, name="of-acme", tenant="acme"), bounds=(low, of_acme)) == {
        ("sound", "all_closed")
    }, "another policy decides for it"
    closed = replace(of_acme, lower=0.5, upper=0.9)
    alone = replace(SOUND, tenant="acme", directives=("L1",))
    (finding,) = find(alone, bounds=(OPEN, closed))
    assert "tenant acme's own bound says at most 0.900" in finding.message


def test_a_bound_of_a_task_that_another_policy_decides_opens_nothing_here() -> None:
    general = replace(SOUND, name="general", task="")
    assert codes(general, SOUND, bounds=(OPEN,)) == {("general", "all_closed")}
    assert codes(general, replace(SOUND, task="lists"), bounds=(OPEN,)) == {("sound", "all_closed")}
    assert codes(general, SOUND, bounds=(OPEN, OPEN_LISTS)) == set()


def test_variables_that_no_template_reads() -> None:
    native = Directive(
        name="quick", placement=Placement.NATIVE, template_variables=(("enable_thinking", False), ("effort", "low"))
    )
    known = {"directives": (*SEEDED, native)}
    (finding,) = find(SOUND, **known, template_variables={"a": ["tools"], "b": ["enable_thinking"]})
    assert (finding.severity, finding.subject, finding.code) == (Severity.WARNING, "quick", "unread_variables")
    assert "reads effort:" in finding.message
    assert find(SOUND, **known, template_variables={"a": ["effort"], "b": ["enable_thinking"]}) == ()
    # While no engine has said anything, nothing can be said.
    assert find(SOUND, **known, template_variables={}) == ()


_POLICIES = st.lists(
    st.builds(
        Policy,
        name=st.text("abc", min_size=1, max_size=3),
        tenant=st.sampled_from(["", "t", "u"]),
        task=st.sampled_from(["", "sums", "lists"]),
        mode=st.sampled_from(Mode),
        floor=st.sampled_from([0.5, 0.95, 1.0]),
        floor_kind=st.sampled_from(FloorKind),
        directives=st.sampled_from([(), ("L1",), ("L1", "L9")]),
        grader=st.sampled_from(["", "numeric", "exact"]),
    ),
    max_size=8,
    unique_by=lambda policy: policy.name,
)


@settings(max_examples=200, deadline=None)
@given(_POLICIES)
def test_a_policy_that_never_decides_is_named_in_a_conflict_and_no_other_is(policies: list[Policy]) -> None:
    findings = find(*policies)
    tenants, tasks = ("", "t", "u", "another"), ("", "sums", "lists", "another")
    deciding = {policy.name for tenant in tenants for task in tasks if (policy := match(policies, tenant, task))}
    never = {name for finding in findings if finding.code == "same_match" for name in finding.others}
    assert never == {policy.name for policy in policies} - deciding
    assert find(*reversed(policies)) == findings, "the order of the policies does not matter"
    assert [f.severity for f in findings] == sorted((f.severity for f in findings), reverse=True)
    # What never decides is told of as that alone.
    assert never.isdisjoint(finding.subject for finding in findings)


@settings(max_examples=200, deadline=None)
@given(_POLICIES)
def test_graders_are_held_against_each_other_where_policies_decide_for_one_task(policies: list[Policy]) -> None:
    expected: set[str] = set()
    for task, directive in product(("", "sums", "lists"), ("L1", "L9")):
        graded = [policy for policy in allowing(policies, task, directive) if policy.grader]
        if len({policy.grader for policy in graded}) > 1:
            expected |= {policy.name for policy in graded}
    findings = [finding for finding in find(*policies) if finding.code == "grader_mismatch"]
    assert {name for finding in findings for name in (finding.subject, *finding.others)} == expected


async def test_a_new_router_is_told_what_it_lacks(client: AdminClient) -> None:
    reply = await client.policies.CheckPolicies(pb.CheckPoliciesRequest())
    found = {(f.severity, f.subject, f.code) for f in reply.findings}
    assert found == {
        (pb.Finding.SEVERITY_WARNING, "default", "no_grader"),
        (pb.Finding.SEVERITY_NOTE, "default", "all_closed"),
    }


async def test_policies_are_checked_as_if_they_were_there(client: AdminClient) -> None:
    candidates = [
        pb.Policy(name="default", floor=0.9, directives=["L1", "gone"], grader="numeric"),
        pb.Policy(name="another", floor=0.9, directives=["L1"], grader="numeric"),
    ]
    reply = await client.policies.CheckPolicies(pb.CheckPoliciesRequest(policies=candidates))
    assert [(f.severity, f.subject, list(f.others), f.code) for f in reply.findings] == [
        (pb.Finding.SEVERITY_CONFLICT, "another", ["default"], "same_match"),
        (pb.Finding.SEVERITY_NOTE, "another", [], "all_closed"),
    ]
    stored = (await client.policies.ListPolicies(pb.ListPoliciesRequest())).policies
    assert [(policy.name, policy.floor) for policy in stored] == [("default", 0.95)]
    found = await faults(
        client.policies.CheckPolicies(
            pb.CheckPoliciesRequest(policies=[pb.Policy(name="p"), pb.Policy(name="q", floor=2)])
        )
    )
    assert set(found) == {"policies[0].floor", "policies[1].floor"}
    twice = pb.CheckPoliciesRequest(policies=[pb.Policy(name="p", floor=1), pb.Policy(name="p", floor=1)])
    assert set(await faults(client.policies.CheckPolicies(twice))) == {"policies[1].name"}


async def test_what_connected_engines_read_is_known(client: AdminClient) -> None:
    native = dpb.Directive(name="quick", placement=dpb.PLACEMENT_NATIVE)
    native.template_variables.update({"enable_thinking": False})
    await client.directives.CreateDirective(dpb.CreateDirectiveRequest(directive=native))

    async def subjects() -> set[str]:
        reply = await client.policies.CheckPolicies(pb.CheckPoliciesRequest())
        return {finding.subject for finding in reply.findings if finding.code == "unread_variables"}

    def engine(name: str, *variables: str) -> EngineView:
        model = control_pb2.ModelInfo(model=name, template_variables=variables)
        return EngineView(name, "h:1", EngineState.READY, model, None, 0, "")

    assert await subjects() == set()
    client.engines = [engine("a", "tools"), EngineView("b", "h:2", EngineState.UNREACHABLE, None, None, 0, "lost")]
    assert await subjects() == {"quick"}
    client.engines.append(engine("c", "enable_thinking"))
    assert await subjects() == set()


@pytest.mark.parametrize(
    ("served", "found"), [((), False), (("tiny@1",), False), (("large@1", "tiny@2"), True), (("large@1",), True)]
)
def test_a_model_that_no_engine_serves_is_told_with_those_that_are(served: tuple[str, ...], found: bool) -> None:
    small = Directive("small", model="tiny@1")
    findings = [one for one in find(SOUND, directives=(*SEEDED, small), models=served) if one.subject == "small"]
    assert [(one.code, one.severity) for one in findings] == [("unserved_model", Severity.WARNING)] * found
    assert all("serves tiny@1" in one.message and ", ".join(served) in one.message for one in findings)
