"""Messages become dataclasses and come back the same."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pith.common.v1 import energy_pb2, text_pb2
from pith.router.v1 import directives_pb2, generation_pb2, policies_pb2

from common.carbon.accounting import Footprint
from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from common.quality.bound import Cell, FloorKind, QualityBound
from router import convert, policy_messages
from router.directives.compile import Turn
from router.directives.decide import Decision, Reason
from router.directives.levels import L0, Directive, Placement
from router.directives.policy import Mode, Policy
from router.samples import Answer, Sample

NOW = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
words = st.text(max_size=20)
shares = st.floats(0, 1)
whole = st.integers(0, 2**31)
tuples = st.lists(words, max_size=4).map(tuple)


@given(st.builds(Directive, words, words, st.sampled_from(Placement), whole, tuples, tuples, whole))
def test_directives(directive: Directive) -> None:
    assert policy_messages.to_directive(policy_messages.from_directive(directive)) == directive


policies = st.builds(
    Policy,
    words,
    tenant=words,
    task=words,
    mode=st.sampled_from(Mode),
    traffic_share=shares,
    floor=shares,
    floor_kind=st.sampled_from(FloorKind),
    directives=tuples,
    holdback_share=shares,
    sample_share=shares,
    grader=words,
    bound_max_age_seconds=st.integers(1, 2**40),
)
bounds = st.builds(
    QualityBound,
    st.builds(Cell, words, words, words, words),
    lower=shares,
    upper=shares,
    share=st.none() | shares,
    absolute_lower=shares,
    absolute_upper=shares,
    samples=whole,
    judge=words,
    revision=whole.map(str),
    updated_at=st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
)


@given(policies)
def test_policies(policy: Policy) -> None:
    assert policy_messages.to_policy(policy_messages.from_policy(policy)) == policy


@given(bounds)
def test_bounds(bound: QualityBound) -> None:
    assert convert.to_bound(convert.from_bound(bound)) == bound


@given(st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), words)).map(tuple))
def test_turns(turns: tuple[Turn, ...]) -> None:
    assert convert.to_turns(convert.from_turns(turns)) == turns


@given(st.builds(Energy, st.floats(0, 1e9), st.sampled_from(EnergySource)))
def test_energy(energy: Energy) -> None:
    assert convert.to_energy(convert.from_energy(energy)) == energy


def test_energy_that_no_source_vouches_for_is_unknown() -> None:
    assert convert.to_energy(energy_pb2.Energy(joules=5.0)) is None
    with pytest.raises(ValueError, match="joules"):
        convert.to_energy(energy_pb2.Energy(joules=-1.0, source=energy_pb2.ENERGY_SOURCE_MODELLED))


def test_every_enum_of_the_inside_has_its_word_in_the_contract() -> None:
    for reason in Reason:
        decision = convert.from_decision(Decision(L0, reason, ""))
        assert generation_pb2.DecisionReason.Name(decision.reason) == f"DECISION_REASON_{reason.name}"
    for kind in SignalKind:
        for scope in Scope:
            intensity = Intensity(1.0, "ES", kind, scope, NOW, "test")
            message = convert.from_intensity(intensity, NOW)
            assert energy_pb2.SignalKind.Name(message.kind) == f"SIGNAL_KIND_{kind.name}"
            assert energy_pb2.EmissionScope.Name(message.scope) == f"EMISSION_SCOPE_{scope.name}"


def test_carbon_says_how_old_its_intensity_was() -> None:
    intensity = Intensity(120.0, "ES", SignalKind.AVERAGE, Scope.DIRECT, NOW, "profile")
    footprint = Footprint(0.5, 0.25, intensity, EnergySource.ATTRIBUTED, pue=1.2)
    carbon = convert.from_footprint(footprint, NOW + timedelta(minutes=10))
    assert (carbon.operational_grams, carbon.embodied_grams) == (0.5, 0.25)
    assert carbon.energy_source == energy_pb2.ENERGY_SOURCE_ATTRIBUTED
    assert (carbon.intensity.g_per_kwh, carbon.intensity.zone, carbon.intensity.age_seconds) == (120.0, "ES", 600.0)


@pytest.mark.parametrize(
    ("reason", "planned"),
    [(Reason.SHADOW, "L2"), (Reason.HOLDBACK, "L2"), (Reason.PLANNED, ""), (Reason.NONE_OPEN, "")],
)
def test_the_planned_directive_is_told_where_it_was_not_served(reason: Reason, planned: str) -> None:
    policy = Policy("p", revision=4)
    decision = Decision(Directive("L1"), reason, "because", policy, "L2", 0.97, None)
    message = convert.from_decision(decision)
    assert (message.directive, message.planned_directive, message.explanation) == ("L1", planned, "because")
    assert (message.policy, message.policy_revision) == ("p", 4)
    assert (message.bound, message.HasField("floor")) == (0.97, False)


def test_a_sample_keeps_seed_and_limits() -> None:
    sampling: Any = text_pb2.Sampling(seed=2**64 - 1, temperature=0.7, suppressed_words=["a"])
    sampling.logit_bias[3] = -1.5
    limits = text_pb2.Limits(max_output_tokens=9, stop=["\n"])
    sample = Sample(
        "s1", "acme", "m@1", "sums", (Turn("user", "?"),), convert.to_json(sampling), convert.to_json(limits),
        "4", "numeric", NOW, (Answer("L0", 1, "4", 1),),
    )  # fmt: skip
    message = convert.from_sample(sample)
    assert (message.sampling, message.limits) == (sampling, limits)
    assert convert.moment(message.served_at) == NOW
    assert convert.to_answer(message.answers[0]) == sample.answers[0]


def test_unspecified_enums_get_their_defaults() -> None:
    policy = policy_messages.to_policy(policies_pb2.Policy(name="p", floor=0.9))
    assert (policy.mode, policy.floor_kind) == (Mode.SHADOW, FloorKind.RELATIVE)
    assert policy_messages.to_directive(directives_pb2.Directive(name="d")).placement is Placement.TAIL
