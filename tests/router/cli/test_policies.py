"""`pithctl policy`."""

import pytest

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices


@pytest.fixture
def policy(pithctl: Pithctl) -> None:
    for name in ("L1", "L2"):
        assert pithctl("directive", "create", name).code == 0
    created = pithctl(
        *("policy", "create", "sums", "--task", "arithmetic", "--mode", "on", "--floor", "0.95"),
        *("--directive", "L1", "--directive", "L2", "--grader", "numeric", "--reason", "first"),
    )
    assert created.code == 0


def test_create_sends_every_field(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("directive", "create", "L1").code == 0
    result = pithctl(
        *("policy", "create", "all", "--tenant", "acme", "--task", "extraction", "--mode", "on"),
        *("--traffic-share", "0.5", "--floor", "0.9", "--floor-kind", "absolute", "--directive", "L1"),
        *("--holdback-share", "0", "--sample-share", "1", "--grader", "exact", "--bound-max-age", "36h"),
        *("--reason", "trial", "--json"),
    )
    assert result.document == {
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
        "revision": 1,
        "etag": '"all-1"',
        "updated_at": "2026-03-01T12:00:00Z",
        "updated_by": "admin",
    }
    assert fake.called("CreatePolicy")[0].reason == "trial"


def test_create_begins_careful_and_leaves_the_rest_to_the_router(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("policy", "create", "p", "--floor", "0.9").code == 0
    sent = fake.called("CreatePolicy")[0].policy
    shown = pithctl("policy", "show", "p", "--json").document
    assert (shown["mode"], shown["floor_kind"]) == ("shadow", "relative")
    assert not sent.HasField("traffic_share")
    assert shown["traffic_share"] is None


def test_create_with_faults_names_the_options(pithctl: Pithctl, fake: FakeServices) -> None:
    result = pithctl("policy", "create", "p", "--floor", "7", "--directive", "L8", "--directive", "L9")
    assert result.code == 2
    assert "policy.floor (--floor): is 7; above 0 and at most 1" in result.err
    assert "policy.directives[1] (--directive): 'L9' does not exist" in result.err
    assert fake.policies == {}


def test_create_refuses_a_span_without_a_unit(pithctl: Pithctl, fake: FakeServices) -> None:
    result = pithctl("policy", "create", "p", "--bound-max-age", "7")
    assert result.code == 2
    assert "e.g. 90m or 7d" in result.err
    assert fake.requests == []


def test_list_shows_every_page(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    for name in ("a", "z"):
        assert pithctl("policy", "create", name, "--floor", "0.9", "--floor-kind", "absolute").code == 0
    found = pithctl("policy", "list", "--json").document["policies"]
    assert [listed["name"] for listed in found] == ["a", "sums", "z"]
    plain = pithctl("policy", "list").out
    row = next(line for line in plain.splitlines() if line.startswith("sums"))
    assert row.split() == ["sums", "any", "arithmetic", "on", "0.95", "relative", "L1,", "L2", "1"]
    assert "0.9 absolute" in plain


def test_show_tells_what_holds_where_nothing_was_said(pithctl: Pithctl, policy: None) -> None:
    shown = dict(line.split(maxsplit=1) for line in pithctl("policy", "show", "sums").out.splitlines())
    assert shown["name"].strip() == "sums"
    assert shown["traffic"].split() == ["share", "1"]
    assert shown["holdback"].split() == ["share", "0.02"]
    assert shown["sample"].split() == ["share", "0.05"]


def test_update_sends_exactly_what_changes(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    result = pithctl(
        *("policy", "update", "sums", "--mode", "shadow", "--floor", "0.95", "--directive", "L1"),
        *("--holdback-share", "0", "--reason", "look first", "--json"),
    )
    sent = fake.called("UpdatePolicy")[0]
    # The floor was given, but is what it was; a share of 0 is not the default that stood there.
    assert list(sent.update_mask.paths) == ["mode", "directives", "holdback_share"]
    assert sent.policy.etag == '"sums-1"'
    assert sent.reason == "look first"
    assert result.document["revision"] == 2
    assert result.document["directives"] == ["L1"]
    assert result.document["grader"] == "numeric"


def test_update_can_empty_a_text(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    assert pithctl("policy", "update", "sums", "--task", "").code == 0
    assert fake.policies["sums"].task == ""


def test_update_that_lost_a_race_says_what_to_do(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    def somebody_else(services: FakeServices) -> None:
        services.stamp(services.policies["sums"], 9)

    fake.before_write = somebody_else
    result = pithctl("policy", "update", "sums", "--floor", "0.5")
    assert result.code == 4
    assert "look at it again" in result.err
    assert fake.policies["sums"].floor == 0.95


def test_update_with_an_etag_of_before_is_refused(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    assert pithctl("policy", "update", "sums", "--floor", "0.5", "--etag", '"sums-0"').code == 4
    assert pithctl("policy", "update", "sums", "--floor", "0.5", "--etag", '"sums-1"').code == 0
    assert pithctl("policy", "rollback", "sums", "1", "--etag", '"sums-1"').code == 4
    assert fake.policies["sums"].floor == 0.5


def test_update_of_an_unknown_one_is_not_found(pithctl: Pithctl) -> None:
    result = pithctl("policy", "update", "nobody", "--floor", "0.5")
    assert result.code == 3
    assert "pithctl policy list" in result.err


@pytest.mark.parametrize(("answer", "left"), [("yes\n", False), ("no\n", True)])
def test_delete_asks_first(pithctl: Pithctl, fake: FakeServices, policy: None, answer: str, left: bool) -> None:
    result = pithctl("policy", "delete", "sums", stdin=answer)
    assert "Delete policy sums (revision 1, mode on)?" in result.err
    assert ("sums" in fake.policies) is left


def test_delete_refuses_an_etag_of_before(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    assert pithctl("policy", "delete", "sums", "--yes", "--etag", '"sums-0"').code == 4
    assert "sums" in fake.policies
    assert pithctl("policy", "delete", "sums", "--yes", "--reason", "over").code == 0
    assert fake.called("DeletePolicy")[1].reason == "over"


def test_history_and_rollback(pithctl: Pithctl, fake: FakeServices, policy: None) -> None:
    for floor in ("0.5", "0.6"):
        assert pithctl("policy", "update", "sums", "--floor", floor, "--reason", f"to {floor}").code == 0
    rolled = pithctl("policy", "rollback", "sums", "1", "--reason", "too low", "--json").document
    assert (rolled["revision"], rolled["floor"]) == (4, 0.95)
    assert fake.called("RollbackPolicy")[0].etag == '"sums-3"'
    found = pithctl("policy", "history", "sums", "--json").document["revisions"]
    assert [(r["policy"]["revision"], r["action"], r["reason"]) for r in found] == [
        (4, "rollback", "too low"),
        (3, "update", "to 0.6"),
        (2, "update", "to 0.5"),
        (1, "create", "first"),
    ]
    plain = pithctl("policy", "history", "sums").out.splitlines()
    assert [line.split()[0] for line in plain] == ["REVISION", "4", "3", "2", "1"]


def test_rollback_to_an_unknown_revision_is_not_found(pithctl: Pithctl, policy: None) -> None:
    assert pithctl("policy", "rollback", "sums", "8").code == 3
    assert pithctl("policy", "rollback", "sums", "0").code == 2
