"""What policies and directives have in common on the command line: what is sent, and what is not."""

import pytest
from pith.router.v1.policies_pb2 import QualityBudget

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices

KINDS = pytest.mark.parametrize(
    ("noun", "change"),
    [("policy", ("--floor", "0.5")), ("directive", ("--text", "mine"))],
)


@pytest.fixture
def three(pithctl: Pithctl, fake: FakeServices) -> None:
    """Directives and policies a, b and c: more than a page of the fake's."""
    for name in ("c", "a", "b"):
        assert pithctl("directive", "create", name, "--text", "Answer briefly").code == 0
        assert pithctl("policy", "create", name, "--floor", "0.95", "--directive", name).code == 0
    fake.requests.clear()


@KINDS
def test_list_shows_every_page_in_order(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str]
) -> None:
    plural = {"policy": "policies", "directive": "directives"}[noun]
    assert [found["name"] for found in pithctl(noun, "list", "--json").document[plural]] == ["a", "b", "c"]
    assert len(fake.called(f"List{plural.title()}")) == 2


@KINDS
def test_update_that_lost_a_race_changes_nothing_and_says_what_to_do(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str]
) -> None:
    def somebody_else(services: FakeServices) -> None:
        services.stamp((services.policies if noun == "policy" else services.directives)["a"], 9)

    fake.before_write = somebody_else
    result = pithctl(noun, "update", "a", *change)
    assert result.code == 4
    assert "has changed since it was read" in result.err
    assert "look at it again" in result.err
    assert (fake.policies["a"].floor, fake.directives["a"].text) == (0.95, "Answer briefly")


@KINDS
def test_update_to_what_it_is_sends_nothing(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str]
) -> None:
    assert pithctl(noun, "update", "a", *change).code == 0
    assert "nothing was changed" in pithctl(noun, "update", "a", *change).out
    assert len(fake.called(f"Update{noun.title()}")) == 1


@KINDS
def test_update_without_anything_to_change_is_wrong_usage(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str]
) -> None:
    assert pithctl(noun, "update", "a", "--reason", "why").code == 2
    assert fake.requests == []


@KINDS
@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, False), ("n\n", 1, True), ("", 1, True)])
def test_delete_asks_first(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str], answer: str, code: int,
    left: bool,
) -> None:  # fmt: skip
    fake.policies.pop("c") if noun == "directive" else None
    result = pithctl(noun, "delete", "c", stdin=answer)
    assert result.code == code
    assert f"Delete {noun} c (revision 1)?" in result.err
    assert bool(fake.called(f"Delete{noun.title()}")) is not left


@KINDS
def test_delete_gives_etag_and_reason(
    pithctl: Pithctl, fake: FakeServices, three: None, noun: str, change: tuple[str, str]
) -> None:
    fake.policies.pop("c") if noun == "directive" else None
    assert pithctl(noun, "delete", "c", "--yes", "--etag", '"c-0"').code == 4
    assert pithctl(noun, "delete", "c", "--yes", "--reason", "unused").code == 0
    sent = fake.called(f"Delete{noun.title()}")
    assert [(request.etag, request.reason) for request in sent] == [('"c-0"', ""), ('"c-1"', "unused")]


def test_update_of_a_policy_sends_exactly_what_changes(pithctl: Pithctl, fake: FakeServices, three: None) -> None:
    given = (
        "--floor",
        "0.95",
        "--directive",
        "b",
        "--holdback-share",
        "0",
        "--latency",
        "2s",
        "--latency-share",
        "0.5",
    )
    assert pithctl("policy", "update", "a", "--mode", "on", *given, "--reason", "look first").code == 0
    sent = fake.called("UpdatePolicy")[0]
    # The floor was given, but is what it was; a share of 0 is not the default that stood there.
    assert list(sent.update_mask.paths) == ["mode", "directives", "holdback_share", "latency"]
    assert (sent.policy.etag, sent.reason) == ('"a-1"', "look first")
    assert pithctl("policy", "update", "a", "--latency", "none", "--task", "t").code == 0
    assert list(fake.called("UpdatePolicy")[1].update_mask.paths) == ["task", "latency"]
    assert not fake.policies["a"].HasField("latency")
    assert pithctl("policy", "update", "a", "--latency", "none", "--task", "").code == 0
    assert list(fake.called("UpdatePolicy")[2].update_mask.paths) == ["task"]
    assert pithctl("policy", "update", "a", "--quality-budget-scope", "day", "--directive-floor", "0.5").code == 0
    sent = fake.called("UpdatePolicy")[3]
    assert list(sent.update_mask.paths) == ["quality_budget"]
    assert sent.policy.quality_budget == QualityBudget(directive_floor=0.5, scope=QualityBudget.SCOPE_DAY)
    assert pithctl("policy", "update", "a", "--directive-floor", "none").code == 0
    assert list(fake.called("UpdatePolicy")[4].update_mask.paths) == ["quality_budget"]
    assert not fake.policies["a"].HasField("quality_budget")


def test_update_of_a_directive_sends_exactly_what_changes(pithctl: Pithctl, fake: FakeServices, three: None) -> None:
    given = ("--text", "Shorter", "--placement", "tail", "--stop", "END", "--template-variable", "a=1")
    assert pithctl("directive", "update", "a", *given).code == 0
    assert list(fake.called("UpdateDirective")[0].update_mask.paths) == ["text", "stop", "template_variables"]
    assert pithctl("directive", "update", "a", "--stop", "", "--template-variable", "").code == 0
    assert list(fake.called("UpdateDirective")[1].update_mask.paths) == ["stop", "template_variables"]
    assert (list(fake.directives["a"].stop), len(fake.directives["a"].template_variables)) == ([], 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("directive update a --max-output-tokens -1", "--max-output-tokens"),
        ("directive update a --max-output-tokens 4294967296", "too large"),
        ("directive update a --template-variable nonsense", "NAME=VALUE"),
        ("policy create p --bound-max-age 7", "e.g. 90m or 7d"),
        ("policy update a --latency soon", "e.g. 90m or 7d"),
        ("policy update a --carbon-budget-grams much", "neither a number nor none"),
        ("policy update a --directive-floor low", "neither a number nor none"),
        ("policy update a --quality-budget-scope week", "--quality-budget-scope"),
        ("policy update a --leave-alone poems", "must be one of structured_output"),
        ("policy update a --mode om", "--mode"),
    ],
)
def test_values_of_no_use_are_wrong_usage(
    pithctl: Pithctl, fake: FakeServices, three: None, arguments: str, says: str
) -> None:
    result = pithctl(*arguments.split())
    assert result.code == 2
    assert says in result.err
    assert not fake.called("UpdatePolicy") + fake.called("UpdateDirective") + fake.called("CreatePolicy")
