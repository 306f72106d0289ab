"""Sealed decisions: whole, unforgeable, short enough, and valid for a day."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import PithError
from router.directives.decide import Reason
from router.seal import MAX_SEAL_CHARACTERS, VALID_FOR, SealedDecision, Sealer

NOW = datetime(2026, 1, 1, 12, 30, 1, 5, tzinfo=UTC)
SEALER = Sealer(bytes(range(32)))
DECISION = SealedDecision(
    tenant="acme",
    request_id="order-4711",
    task="qa",
    model="small@0123456789ab",
    directive="L1",
    directive_revision=3,
    reason=Reason.PLANNED,
    planned="L1",
    policy="acme-qa",
    policy_revision=2,
    eligible=True,
    evaluation_sample_id="",
    sample_wanted=True,
    decided_at=NOW,
)
ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=128)
names = st.from_regex(r"[A-Za-z0-9._-]{0,64}", fullmatch=True)
revisions = st.integers(0, 2**31 - 1)
decisions = st.builds(
    SealedDecision,
    tenant=ids,
    request_id=ids,
    task=ids,
    model=ids,
    directive=names,
    directive_revision=revisions,
    reason=st.sampled_from(Reason),
    planned=names,
    policy=names,
    policy_revision=revisions,
    eligible=st.booleans(),
    evaluation_sample_id=st.just(""),
    sample_wanted=st.booleans(),
    decided_at=st.datetimes(timezones=st.just(UTC)),
)


def refused(sealer: Sealer, seal: str, now: datetime = NOW) -> PithError:
    with pytest.raises(PithError) as error:
        sealer.open(seal, now)
    assert (error.value.code, error.value.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    return error.value


@settings(deadline=None)
@given(decisions, st.binary(min_size=32, max_size=32))
def test_what_is_sealed_comes_out_as_it_went_in(decision: SealedDecision, key: bytes) -> None:
    seal = Sealer(key).seal(decision)
    assert len(seal) <= MAX_SEAL_CHARACTERS
    assert seal.replace("-", "").replace("_", "").isalnum() and seal.isascii()
    assert Sealer(key).open(seal, decision.decided_at) == decision


@pytest.mark.parametrize("letter", ["x", "ß", "字", "𝄞", "\U0010ffff"])
def test_the_longest_ids_of_any_script_have_room(letter: str) -> None:
    longest = replace(
        DECISION,
        **dict.fromkeys(("tenant", "request_id", "task", "model"), letter * 128),
        **dict.fromkeys(("directive", "planned", "policy"), "z" * 64),
        reason=max(Reason, key=lambda reason: len(reason.value)),
        directive_revision=2**31 - 1,
        policy_revision=2**31 - 1,
    )
    seal = SEALER.seal(longest)
    assert len(seal) <= MAX_SEAL_CHARACTERS
    assert SEALER.open(seal, NOW) == longest
    judged = replace(longest, policy="", evaluation_sample_id="f" * 64)
    assert len(SEALER.seal(judged)) <= MAX_SEAL_CHARACTERS


@pytest.mark.parametrize("length", [8, 9, 10])  # so many bytes that the last character means 6, 4 or 2 bits
def test_every_flipped_bit_is_refused(length: int) -> None:
    seal = SEALER.seal(replace(DECISION, task="x" * length)).encode()
    for index in range(len(seal)):
        for bit in range(8):
            changed = bytearray(seal)
            changed[index] ^= 1 << bit
            refused(SEALER, changed.decode("latin-1"))


@pytest.mark.parametrize("put", ["\n", " ", "=", "!", "A", "AAAA", "é", "\x00"])
def test_every_added_character_is_refused(put: str) -> None:
    seal = SEALER.seal(DECISION)
    for index in range(len(seal) + 1):
        refused(SEALER, seal[:index] + put + seal[index:])


@settings(deadline=None)
@given(st.data())
def test_what_was_cut_or_drawn_out_is_refused(data: st.DataObject) -> None:
    seal = SEALER.seal(DECISION)
    begin, end = sorted(data.draw(st.tuples(st.integers(0, len(seal)), st.integers(0, len(seal)))))
    put = data.draw(st.text(max_size=8))
    changed = seal[:begin] + put + seal[end:]
    if changed != seal:
        refused(SEALER, changed)


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.decode("latin-1")), st.text("aA0-_=", max_size=3000)))
def test_nonsense_is_refused_and_not_repeated(seal: str) -> None:
    error = refused(SEALER, seal)
    assert error.message == "decision_id: names no decision of the last 24 hours"
    assert error.metadata == {"resource": "decision_id"}


def test_the_seal_of_another_key_is_refused() -> None:
    refused(Sealer(bytes(32)), SEALER.seal(DECISION))


def test_a_decision_is_known_for_a_day() -> None:
    seal = SEALER.seal(DECISION)
    assert SEALER.open(seal, NOW + VALID_FOR - timedelta(microseconds=1)) == DECISION
    refused(SEALER, seal, NOW + VALID_FOR)


def test_a_router_whose_clock_is_behind_knows_it_too() -> None:
    assert SEALER.open(SEALER.seal(DECISION), NOW - timedelta(seconds=5)) == DECISION
