"""What is taken out of text before it is kept, and what is left alone."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pith.router.v1 import feedback_pb2, generation_pb2
from pydantic import ValidationError

from router.config import RouterConfig
from router.directives.compile import Turn
from router.redaction import MAX_CHARACTERS, RULES, Redaction
from router.samples import Answer, Sample
from tests.router.fake_engine import IDENTITY, FakeEngine, answer
from tests.router.running import Running, ask, running

ALL = Redaction()
DATA = Path(os.environ.get("PITH_DATA_DIR", "../shared/data"))
PITH_SECRET = "pith_" + "Ab3-" * 10 + "x_9"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA0x-y\nabc=\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Write to jo.e+x@mail.example.org.", "Write to [EMAIL]."),
        ("jörg@exämple.de, a@b.co", "[EMAIL], [EMAIL]"),
        ("mailto:a_b@c-d.example?subject=x", "mailto:[EMAIL]?subject=x"),
        ("call +49 30 1234567 now", "call [PHONE] now"),
        ("+1 (555) 123-4567, +44.20.7946.0958", "[PHONE], [PHONE]"),
        ("(555) 123-4567 or 555-123-4567 or 1-555-123-4567", "[PHONE] or [PHONE] or [PHONE]"),
        ("Tel. 030 1234567, 0171/1234567, 01 23 45 67 89", "Tel. [PHONE], [PHONE], [PHONE]"),
        ("01-23-45-67-89 (0)20 7946 0958", "[PHONE] (0)20 7946 0958"),
        ("card 4111 1111 1111 1111, exp", "card [CARD], exp"),
        ("5555555555554444 3782-822463-10005", "[CARD] [CARD]"),
        ("from 192.168.0.1:80 to 10.0.0.255.", "from [IP]:80 to [IP]."),
        ("fe80::1 2001:db8::8a2e:370:7334 ::ffff:192.0.2.1", "[IP] [IP] [IP]"),
        (f"token {PITH_SECRET}.", "token [SECRET]."),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("ghp_" + "a1B2" * 9 + " sk-proj-" + "aB3" * 12, "[SECRET] [SECRET]"),
        (f"jwt {JWT}", "jwt [SECRET]"),
        (f"key:\n{PEM}\ndone", "key:\n[SECRET]\ndone"),
        ('{"password": "hunter2!", "n": 1}', '{"password": "[SECRET]", "n": 1}'),
        ("API_KEY=abcdef12\nAuthorization: Bearer abc.def", "API_KEY=[SECRET]\nAuthorization: Bearer [SECRET]"),
        ("DB_PASSWORD=hunter22 AWS_SECRET_ACCESS_KEY=abcd", "DB_PASSWORD=[SECRET] AWS_SECRET_ACCESS_KEY=[SECRET]"),
        ("client_secret: xyz12 pwd=qwertz", "client_secret: [SECRET] pwd=[SECRET]"),
        ("blob 9aF3kLm0Qw7Zx2Vb8Nn4Tt6Yy1Rr5Ee3", "blob [SECRET]"),
    ],
)
def test_what_names_a_person_or_opens_a_door_is_marked(said: str, kept: str) -> None:
    assert ALL.text(said) == kept


@pytest.mark.parametrize(
    "said",
    [
        "What is 12,345,678 + 3.14159 * 1000000 - 5551234567?",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
        "3 + 12345678 = +7, -5, 10-20-30, 555-1234",
        "She sold 48/2 = <<48/2=24>>24 clips in 2023-05-17 12:30:45 and 01/02/2023, 01.02.2023, 05-06-2024 10:15",
        "Numbers: 4111 1111 1111 1112 and 1234567890123456 and 0.123456789012345678",
        "Version 1.2.3, section 4.5.6.7.8, 300.1.2.3, ratio 1:2:3, std::vector<int> a::b :: c",
        "x @ y, @handle, a@b, 5 apples @ $3.00",
        "The password is secret. Which key: D major? token economics, key = value",
        "https://example.org/a/very/long/path/with-many-words-in-it-0123456789/index.html",
        "thisIsAVeryLongCamelCaseIdentifierOfSomeProgram and " + "a" * 64 + " " + "0123456789abcdef" * 4,
    ],
)
def test_ordinary_text_is_left_as_it_is(said: str) -> None:
    assert ALL.text(said) == said


def test_a_rule_that_is_not_named_does_nothing() -> None:
    said = f"a@b.co +49 30 1234567 4111111111111111 10.0.0.1 {PITH_SECRET}"
    for name, mark in zip(
        ("email", "phone", "card", "ip", "secret"), ("EMAIL", "PHONE", "CARD", "IP", "SECRET"), strict=True
    ):
        assert re.findall(r"\[(\w+)\]", Redaction((name,)).text(said)) == [mark]
    assert Redaction(()).text(said) == said


def test_own_patterns_come_first() -> None:
    redaction = Redaction(("email",), (r"EMP-\d{4,6}", r"[a-z]{1,20}@corp\.example"))
    assert redaction.text("EMP-12345 ann@corp.example ann@other.example") == "[REDACTED] [REDACTED] [EMAIL]"


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("(", "is not a regular expression"),
        ("a{0,3}", "matches the empty text"),
        (r"\bx?", "matches the empty text"),
        (r"\d+", "repeats something without end"),
        ("a.*b", "repeats something without end"),
        ("(a|b)*c", "repeats something without end"),
        ("(?:x++)y", "repeats something without end"),
        (r"(a)\1", "cannot be bounded"),
        ("(a{1,30}){1,30}b", "more than 10,000 steps"),
        ("a{0,40}a{0,40}a{0,40}b", "more than 10,000 steps"),
        ("(?:a|a|a){1,12}b", "more than 10,000 steps"),
        (r"(?=\w{9000}\w{0,1})x", "more than 10,000 steps"),
        ("a{1,2000000}b", "more than 10,000 steps"),
    ],
)
def test_a_pattern_that_could_take_long_is_refused_at_start(pattern: str, fault: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RouterConfig(redact_patterns=(pattern,))
    assert fault in str(refused.value) and "redact_patterns" in str(refused.value)


@pytest.mark.parametrize(
    "pattern", [r"\d{3}-\d{2}-\d{4}", r"(?i)\bproject (?:red|blue)\b", r"(?<!\w)[A-Z]{1,8}\d{1,8}"]
)
def test_a_pattern_that_cannot_take_long_is_had(pattern: str) -> None:
    RouterConfig(redact_patterns=(pattern,))


def test_a_rule_that_nobody_knows_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="'name' is no rule; must be one of card, email, ip, phone, secret"):
        RouterConfig(redact=("email", "name"))


@settings(deadline=None, max_examples=300)
@given(st.text(st.sampled_from("aB3 .:@+-/=_,()\n0[") | st.characters(), max_size=200))
def test_any_text_goes_through_and_what_is_left_of_it_stood_in_it(said: str) -> None:
    kept = ALL.text(said)
    assert kept == said or re.search(r"\[(EMAIL|PHONE|CARD|IP|SECRET)\]", kept)
    # What stands between the marks is the text's own, in its order.
    at = 0
    for piece in re.split(r"\[(?:EMAIL|PHONE|CARD|IP|SECRET)\]", kept):
        at = said.index(piece, at) + len(piece)


LONG = {
    "letters": "a" * MAX_CHARACTERS,
    "digits": "1" * MAX_CHARACTERS,
    "spaced digits": "1 " * (MAX_CHARACTERS // 2),
    "ats": "a@" * (MAX_CHARACTERS // 2),
    "dots": "1." * (MAX_CHARACTERS // 2),
    "colons": "a:" * (MAX_CHARACTERS // 2),
    "key heads": "-----BEGIN PRIVATE KEY-----" * (MAX_CHARACTERS // 27),
    "passwords": "password:" * (MAX_CHARACTERS // 9),
    "plus": "+1 " * (MAX_CHARACTERS // 3),
    "zeros": "012 " * (MAX_CHARACTERS // 4),
    "long plus": ("+" + "1" * 28 + " ") * (MAX_CHARACTERS // 30),
    "plus groups": "+1 1 1 1 1 1 1 1 1 1 1 1 1 1 1x " * (MAX_CHARACTERS // 32),
    "zero groups": "012 345 678 901 2345x " * (MAX_CHARACTERS // 22),
    "keys": "sk-aaaaaaaaaaaaaaaaaaaaé" * (MAX_CHARACTERS // 24),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_text_made_to_take_long_does_not(kind: str) -> None:
    """What grows with the square of the text would not end within the test's time limit at a hundred such texts."""
    for _ in range(20):
        ALL.text(LONG[kind])


def test_arithmetic_prompts_stay_as_they_are() -> None:
    path = DATA / "gsm8k" / "test.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as file:
        texts = [text for line in file for text in json.loads(line).values()]
    changed = [text for text in texts if ALL.text(text) != text]
    assert len(texts) > 2_000 and not changed, changed


@settings(deadline=None)
@given(st.lists(st.integers(-(10**9), 10**9) | st.decimals(-1000, 1000, places=2), min_size=2, max_size=8))
def test_sums_stay_as_they_are(numbers: list[Any]) -> None:
    """As the prompts above, with numbers of any size; no network of cards has so short ones."""
    said = f"What is {' + '.join(f'{number:,}' for number in numbers)}? Is it {numbers[0]}, {numbers[1]}?"
    assert ALL.text(said) == said


SAMPLE = Sample(
    "s", "acme", "m@0", "qa", (Turn("system", "Be kind."), Turn("user", "Why?")), "{}", "{}", "Because.", "exact",
    datetime(2026, 1, 1, tzinfo=UTC), (Answer("L1", 1, "So.", 2),),
)  # fmt: skip


def test_a_sample_without_anything_to_hide_is_kept_as_it_is() -> None:
    assert ALL.sample(SAMPLE) == SAMPLE


def test_every_text_of_a_sample_is_looked_through() -> None:
    said = replace(SAMPLE, reference="a@b.co", answers=(Answer("L1", 1, "It is a@b.co", 2),))
    assert ALL.sample(said) == replace(SAMPLE, reference="[EMAIL]", answers=(Answer("L1", 1, "It is [EMAIL]", 2),))


def test_an_answer_to_a_prompt_that_changed_is_not_kept() -> None:
    said = replace(SAMPLE, turns=(Turn("system", "You are a@b.co."), Turn("user", "Why?")))
    assert ALL.sample(said) == replace(
        SAMPLE, turns=(Turn("system", "You are [EMAIL]."), Turn("user", "Why?")), answers=()
    )


def test_a_sample_too_long_to_be_looked_through_is_not_kept() -> None:
    long = replace(SAMPLE, reference="x" * MAX_CHARACTERS)
    assert ALL.sample(long) is None
    assert Redaction(()).sample(long) == long, "without rules there is nothing to look for"


# Through the router.


async def sampled(router: Running) -> Any:
    await router.router.ledger.flush()
    reply = await router.feedback.DrawSamples(
        feedback_pb2.DrawSamplesRequest(model=IDENTITY, task="qa", directives=["L1"], count=1, evaluator="e")
    )
    return reply.samples[0]


async def test_neither_database_nor_outbox_sees_what_a_rule_finds(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = answer("Ask bo", "b@b.example.")
    async with running(tmp_path, {"e1": engine}) as router:
        await router.policy(sample_share=1.0, grader="exact")
        asked = ask("Who is ann@a.example?", request_id="r", reference="bob@b.example")
        reply = await router.generation.Generate(asked)
        assert reply.text == "Ask bob@b.example.", "who asks gets the whole answer"
        assert "ann@a.example" in str(engine.requests[0])
        await router.generation.RateAnswer(
            generation_pb2.RateAnswerRequest(request_id="r", tenant="acme", rating=0.0, comment="I am ann@a.example")
        )
        kept = list(router.router.ledger._waiting)
        assert "@a.example" not in str(kept) and "@b.example" not in str(kept)
        sample = await sampled(router)
        assert sample.messages[0].content == "Who is [EMAIL]?"
        assert (sample.reference, list(sample.answers)) == ("[EMAIL]", [])
    on_disk = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("router.db*")))  # noqa: ASYNC240
    assert b"[EMAIL]" in on_disk and b"@a.example" not in on_disk and b"@b.example" not in on_disk


async def test_the_rules_are_the_operators(tmp_path: Path, engine: FakeEngine) -> None:
    engine.script = answer("It is PX-77 of a@b.co")
    async with running(tmp_path, {"e1": engine}, redact=("phone",), redact_patterns=(r"PX-\d{2}",)) as router:
        await router.policy(sample_share=1.0, grader="exact")
        await router.generation.Generate(ask("Which?", reference="x"))
        (kept,) = (await sampled(router)).answers
        assert kept.text == "It is [REDACTED] of a@b.co"


def test_every_rule_has_its_own_name_in_the_settings() -> None:
    assert RouterConfig().redact == tuple(RULES)
