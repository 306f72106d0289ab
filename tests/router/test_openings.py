"""For which policies a directive is open, and by whose bound."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.quality.bound import Cell, QualityBound
from router.directives.bounds import Snapshot
from router.directives.decide import Facts, decide
from router.directives.levels import L0, SEEDED
from router.directives.policy import Mode, Policy
from router.openings import allowing, is_open, opening, opens
from router.optimizer.plan import Entry, Plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALL = Cell("m@1", "qa", "L1")
ACME, BETA = replace(ALL, tenant="acme"), replace(ALL, tenant="beta")
EVERYBODY = Policy("everybody", mode=Mode.ON, directives=("L1",), holdback_share=0.0)
OF_ACME = replace(EVERYBODY, name="of-acme", tenant="acme")


def bound(cell: Cell, lower: float, upper: float = 1.0) -> QualityBound:
    return QualityBound(cell, lower, upper, 0.99, lower, 100, "judge", "1", NOW)


def snapshot(*bounds: QualityBound, policies: tuple[Policy, ...] = (EVERYBODY,)) -> Snapshot:
    plan = Plan({(policy.name, "m@1", "qa"): Entry((("L1", 1.0),)) for policy in policies}, NOW)
    return Snapshot({d.name: d for d in (L0, *SEEDED)}, policies, {b.cell: b for b in bounds}, plan)


@pytest.mark.parametrize(
    ("tenant", "policies", "names"),
    [
        ("", (EVERYBODY, OF_ACME), ["everybody", "of-acme"]),
        ("acme", (EVERYBODY, OF_ACME), ["of-acme"]),
        ("beta", (EVERYBODY, OF_ACME), ["everybody"]),
        ("beta", (OF_ACME,), []),
        ("acme", (EVERYBODY, replace(OF_ACME, mode=Mode.OFF)), []),
        ("acme", (EVERYBODY, replace(OF_ACME, directives=("L2",))), []),
    ],
)
def test_for_one_tenant_the_policy_that_decides_for_it(
    tenant: str, policies: tuple[Policy, ...], names: list[str]
) -> None:
    assert [policy.name for policy in allowing(policies, "qa", "L1", tenant)] == names


def test_each_bound_speaks_for_those_it_decides_for() -> None:
    held = snapshot(bound(ALL, 0.97), bound(ACME, 0.5, 0.9), bound(BETA, 0.9), policies=(EVERYBODY, OF_ACME))
    assert [opens(held, policy, ALL, NOW) for policy in (EVERYBODY, OF_ACME)] == [True, None]
    assert opens(held, OF_ACME, ACME, NOW) is False
    assert opens(held, EVERYBODY, BETA, NOW) is None, "its own tells nothing: that of all decides"
    assert [is_open(held, EVERYBODY, cell, NOW) for cell in (ALL, ACME, BETA)] == [True, False, True]
    assert not is_open(held, OF_ACME, ALL, NOW), "a policy's requests are its tenant's"
    found, why = opening(held, OF_ACME, ALL, NOW)
    assert found is None and "tenant acme's own bound says at most 0.900" in why


intervals = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@given(
    own=st.none() | intervals,
    common=st.none() | intervals,
    floor=st.floats(0.01, 1),
    policy=st.sampled_from([EVERYBODY, OF_ACME]),
)
def test_requests_get_what_is_said_to_be_open(
    own: list[float] | None, common: list[float] | None, floor: float, policy: Policy
) -> None:
    policy = replace(policy, floor=floor)
    bounds = [bound(cell, *of) for cell, of in ((ACME, own), (ALL, common)) if of is not None]
    held = snapshot(*bounds, policies=(policy,))
    served = decide(Facts("acme", "qa", "m@1", "c", "r"), held, NOW).directive.name == "L1"
    assert served == is_open(held, policy, ACME, NOW)
    told = [answer for cell in (ALL, ACME) if (answer := opens(held, policy, cell, NOW)) is not None]
    if policy.tenant:
        assert told == [served], "one bound, and one only, decides"
    if own is not None and own[0] >= floor:
        assert served == (common is not None), "a tenant's bound opens only beside that of all"
    elif own is not None and own[1] < floor:
        assert not served
    else:
        assert served == (common is not None and common[0] >= floor)
