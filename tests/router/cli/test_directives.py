"""`pithctl directive`."""

import pytest

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices


@pytest.fixture
def seeded(pithctl: Pithctl) -> None:
    for name, text in (("L1", "Answer briefly"), ("L2", "Answer very briefly"), ("L3", "One word")):
        assert pithctl("directive", "create", name, "--text", text).code == 0


def test_create_sends_every_field(pithctl: Pithctl, fake: FakeServices) -> None:
    result = pithctl(
        *("directive", "create", "terse", "--text", "Be [terse]", "--placement", "system"),
        *("--max-output-tokens", "64", "--stop", "\n\n", "--stop", "END", "--suppressed-word", "certainly"),
        *("--history-messages", "4", "--reason", "asked for by [ops]", "--json"),
    )
    assert result.document == {
        "name": "terse",
        "text": "Be [terse]",
        "placement": "system",
        "max_output_tokens": 64,
        "stop": ["\n\n", "END"],
        "suppressed_words": ["certainly"],
        "history_messages": 4,
        "template_variables": None,
        "revision": 1,
        "etag": '"terse-1"',
        "updated_at": "2026-03-01T12:00:00Z",
        "updated_by": "admin",
    }
    assert fake.called("CreateDirective")[0].reason == "asked for by [ops]"


def test_create_of_one_that_exists_says_how_to_change_it(pithctl: Pithctl, seeded: None) -> None:
    result = pithctl("directive", "create", "L1")
    assert result.code == 4
    assert "pithctl directive update L1" in result.err


def test_create_with_a_faulty_name_tells_the_rule(pithctl: Pithctl) -> None:
    result = pithctl("directive", "create", "no spaces")
    assert result.code == 2
    assert "directive.name: has characters other than" in result.err


def test_list_shows_every_page_in_order(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    found = pithctl("directive", "list", "--json").document["directives"]
    assert [directive["name"] for directive in found] == ["L1", "L2", "L3"]
    assert len(fake.called("ListDirectives")) == 2
    plain = pithctl("directive", "list").out
    assert "Answer very briefly" in plain
    assert plain.splitlines()[0].split()[:2] == ["NAME", "TEXT"]


def test_show_of_an_unknown_one_says_where_to_look(pithctl: Pithctl) -> None:
    result = pithctl("directive", "show", "L9")
    assert result.code == 3
    assert "directive 'L9' does not exist" in result.err
    assert "pithctl directive list" in result.err


def test_update_sends_exactly_what_changes(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    result = pithctl(
        *("directive", "update", "L1", "--text", "Shorter", "--placement", "tail", "--stop", "END"),
        *("--reason", "too long"),
    )
    assert result.code == 0
    sent = fake.called("UpdateDirective")[0]
    # The placement was given, but is what it was.
    assert list(sent.update_mask.paths) == ["text", "stop"]
    assert sent.directive.etag == '"L1-1"'
    assert sent.reason == "too long"
    assert fake.directives["L1"].text == "Shorter"
    assert fake.directives["L1"].revision == 2


def test_update_clears_a_list_with_an_empty_item(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    assert pithctl("directive", "update", "L1", "--stop", "END").code == 0
    assert pithctl("directive", "update", "L1", "--stop", "").code == 0
    assert list(fake.called("UpdateDirective")[1].update_mask.paths) == ["stop"]
    assert list(fake.directives["L1"].stop) == []


def test_update_to_what_it_is_sends_nothing(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    result = pithctl("directive", "update", "L1", "--text", "Answer briefly")
    assert result.code == 0
    assert "nothing was changed" in result.out
    assert fake.called("UpdateDirective") == []


def test_update_without_anything_to_change_is_wrong_usage(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    fake.requests.clear()
    assert pithctl("directive", "update", "L1", "--reason", "why").code == 2
    assert fake.requests == []


def test_update_that_lost_a_race_changes_nothing_and_says_what_to_do(
    pithctl: Pithctl, fake: FakeServices, seeded: None
) -> None:
    def somebody_else(services: FakeServices) -> None:
        services.stamp(services.directives["L1"], 7)

    fake.before_write = somebody_else
    result = pithctl("directive", "update", "L1", "--text", "mine")
    assert result.code == 4
    assert "has changed since it was read" in result.err
    assert "look at it again" in result.err
    assert fake.directives["L1"].text == "Answer briefly"


def test_update_with_an_etag_of_before_is_refused(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    etag = pithctl("directive", "show", "L1", "--json").document["etag"]
    assert pithctl("directive", "update", "L1", "--text", "a", "--etag", etag).code == 0
    refused = pithctl("directive", "update", "L1", "--text", "b", "--etag", etag, "--json")
    assert refused.code == 4
    assert refused.error["reason"] == "ETAG_MISMATCH"
    assert fake.directives["L1"].text == "a"


@pytest.mark.parametrize("tokens", ["-1", "many", "4294967296"])
def test_number_out_of_range_is_wrong_usage(pithctl: Pithctl, fake: FakeServices, seeded: None, tokens: str) -> None:
    result = pithctl("directive", "update", "L1", "--max-output-tokens", tokens)
    assert result.code == 2
    assert fake.called("UpdateDirective") == []


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, False), ("n\n", 1, True), ("", 1, True)])
def test_delete_asks_first(
    pithctl: Pithctl, fake: FakeServices, seeded: None, answer: str, code: int, left: bool
) -> None:
    result = pithctl("directive", "delete", "L1", stdin=answer)
    assert result.code == code
    assert ("L1" in fake.directives) is left
    assert "Delete directive L1 (revision 1)?" in result.err
    assert bool(fake.called("DeleteDirective")) is not left


def test_delete_with_yes_does_not_ask_and_gives_its_reason(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    result = pithctl("directive", "delete", "L1", "--yes", "--reason", "unused", "--json")
    assert result.document == {"deleted": "L1"}
    sent = fake.called("DeleteDirective")[0]
    assert (sent.etag, sent.reason) == ('"L1-1"', "unused")


def test_delete_of_one_in_use_names_the_policy(pithctl: Pithctl, fake: FakeServices, seeded: None) -> None:
    assert pithctl("policy", "create", "p", "--floor", "0.9", "--directive", "L1").code == 0
    result = pithctl("directive", "delete", "L1", "--yes")
    assert result.code == 4
    assert "policy p allows it" in result.err
    assert "pithctl policy update" in result.err
    assert "L1" in fake.directives
