"""A policy's quality budget on the command line, against a router that runs."""

import pytest

from tests.router.cli.conftest import Pithctl

MEAN = ("policy", "create", "mean", "--floor", "0.95", "--task", "sums", "--directive", "L1")


def test_it_is_set_by_two_options_and_read_beside_the_floor(admin: Pithctl) -> None:
    made = admin(*MEAN, "--directive-floor", "0.85", "--json").document
    assert made["quality_budget"] == {"directive_floor": 0.85, "scope": "task"}
    row = next(line for line in admin("policy", "list").out.splitlines() if line.startswith("mean"))
    assert "  0.95 relative, mean of each task; each directive 0.85  " in row
    updated = admin("policy", "update", "mean", "--quality-budget-scope", "day", "--json").document
    assert updated["quality_budget"] == {"directive_floor": 0.85, "scope": "day"}
    shown = admin("policy", "show", "mean").out
    assert "floor           0.95 relative, mean of each day; each directive 0.85\n" in shown
    assert "    quality_budget:\n      directive_floor: 0.85\n      scope: day\n" in admin("export").out
    removed = admin("policy", "update", "mean", "--directive-floor", "none", "--json").document
    assert removed["quality_budget"] is None
    assert "floor           0.95 relative\n" in admin("policy", "show", "mean").out
    back = admin("policy", "rollback", "mean", "2", "--json").document
    assert back["quality_budget"] == {"directive_floor": 0.85, "scope": "day"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ("--directive-floor", "0.95"),
            "(--directive-floor): is 0.95; must be above 0 and below the policy's floor, 0.95",
        ),
        (("--floor", "0.8"), "(--directive-floor): is 0.85; must be above 0 and below the policy's floor, 0.8"),
        (("--floor-kind", "absolute"), "policy.quality_budget: needs the floor_kind FLOOR_KIND_RELATIVE"),
    ],
)
def test_what_it_cannot_be_names_the_option(admin: Pithctl, given: tuple[str, str], said: str) -> None:
    admin(*MEAN, "--directive-floor", "0.85")
    assert said in admin("policy", "update", "mean", *given, code=2).err


def test_a_scope_alone_is_no_budget(admin: Pithctl) -> None:
    refused = admin(*MEAN, "--quality-budget-scope", "task", code=2).err
    assert "(--directive-floor): is 0; must be above 0 and below the policy's floor" in refused
