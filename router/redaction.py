"""Takes what names a person or opens a door out of text before it is kept.

Shapes only: no name, address or birthday is found, and a bare run of digits is a number. What a rule's shape is, is a
balance: each prefers to leave ordinary arithmetic, times, dates and versions alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from router.pattern_cost import check_pattern
from router.samples import Sample

OWN_MARK = "[REDACTED]"
"""In place of what an operator's own pattern finds."""

MAX_CHARACTERS = 100_000
"""Of a sample. Redaction runs where the request ends, and a larger text would hold up all others."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What matches `shape`, and `holds` where that is asked too, becomes `mark`.

    No shape runs longer than in proportion to the text: what repeats without end is possessive, or begins where its
    own characters did not stand before.
    """

    shape: re.Pattern[str]
    mark: str
    holds: Callable[[str], bool] = lambda found: True
    hints: Sequence[str] = ("",)
    """In lower case. Without any of them nothing can match, and to look for them is far cheaper."""

    def apply(self, text: str) -> str:
        return self.shape.sub(self._replaced, text)

    def _replaced(self, found: re.Match[str]) -> str:
        kept, matched = (found["kept"], found["value"]) if "value" in self.shape.groupindex else ("", found[0])
        return f"{kept}{self.mark}" if self.holds(matched) else found[0]


def _is_card(text: str) -> bool:
    """ISO/IEC 7812: the check digit of Luhn, over a number that a network of payment cards begins with."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return digits[0] in (2, 3, 4, 5, 6) and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_ipv6(text: str) -> bool:
    # "::" alone, and a::b of a program, are addresses to the letter.
    if not any(character.isdigit() for character in text):
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _looks_random(text: str) -> bool:
    kinds = (str.isdigit, str.isupper, str.islower)
    return all(sum(map(kind, text)) >= 3 for kind in kinds)


_KEY_HINTS = (
    "pith_", "akia", "asia", "gho_", "ghp_", "ghr_", "ghs_", "ghu_", "github_pat_", "glpat-", "sk-", "k_live_",
    "k_test_", "xox", "aiza", "hf_", "eyj",
)  # fmt: skip

RULES: Mapping[str, Sequence[Rule]] = {
    # Before the others, which would find pieces of it.
    "secret": (
        Rule(
            re.compile(
                r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY-----(?:[^-]|-(?!----))*+(?:-----END [A-Z0-9 ]{0,32}-----)?"
            ),
            "[SECRET]",
            hints=("private key-----",),
        ),
        # Of services that give their keys a shape of their own, Pith among them; then JSON Web Tokens.
        Rule(
            re.compile(
                r"(?<![A-Za-z0-9_])(?:pith_[\w-]{43}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[oprsu]_[A-Za-z0-9]{36,}+"
                r"|github_pat_\w{22,}+|glpat-[\w-]{20,}+|sk-[\w-]{20,}+|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}+"
                r"|xox[abeprs]-[A-Za-z0-9-]{10,}+|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,}+"
                r"|eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]{8,}+)(?![\w-])",
                re.ASCII,
            ),
            "[SECRET]",
            hints=_KEY_HINTS,
        ),
        Rule(
            re.compile(
                r"(?P<kept>(?<![A-Za-z0-9])(?:password|passwd|pwd|passphrase|secret|api[_ -]?key"
                r"|(?:access|auth|bearer)[_ -]?token)"
                # DB_PASSWORD=, AWS_SECRET_ACCESS_KEY=
                r"(?:[_-][\w-]{0,32}+)?"
                r"""["']?\s{0,4}+[:=]\s{0,4}+["']?|\bauthorization:\s{0,4}+(?:bearer|basic)\s{1,4}+)"""
                r"""(?P<value>[^\s"',;]{4,}+)""",
                re.IGNORECASE | re.ASCII,
            ),
            "[SECRET]",
            hints=("passw", "pwd", "passphrase", "secret", "token", "key", "authorization"),
        ),
        Rule(
            re.compile(r"(?<![A-Za-z0-9_/+.-])[A-Za-z0-9_+-]{32,}+={0,2}+(?![\w/])", re.ASCII),
            "[SECRET]",
            _looks_random,
        ),
    ),
    "email": (Rule(re.compile(r"(?<![\w.%+-])[\w.%+-]++@\w[\w-]*+(?:\.\w[\w-]*+)++"), "[EMAIL]", hints=("@",)),),
    "ip": (
        Rule(
            re.compile(r"(?<![\w:.])(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{3,39}+(?:\.\d{1,3}){0,3}+(?![\w:])"),
            "[IP]",
            _is_ipv6,
            hints=(":",),
        ),
        Rule(
            # The look back comes second: a search for the digit alone is faster.
            re.compile(r"\d(?<![\w.]\d)\d{0,2}(?:\.\d{1,3}){3}(?!\w|\.\d)", re.ASCII),
            "[IP]",
            lambda found: all(int(octet) <= 255 for octet in found.split(".")),
            hints=(".",),
        ),
    ),
    "card": (
        Rule(
            re.compile(
                r"\d(?<![\w.,]\d)\d{3}(?:\d{9,15}|([ -])\d{4}\1\d{4}\1\d{1,7}|([ -])\d{6}\2\d{4,5})(?!\w|[.,]\d)",
                re.ASCII,
            ),
            "[CARD]",
            _is_card,
        ),
    ),
    # With a country's code; as in North America; with a trunk's 0, which a date in figures may have too.
    "phone": (
        Rule(
            # ITU-T E.164: at most 15 digits.
            re.compile(r"(?<![\w.+)])\+\d(?:[ ./()-]{0,2}\d){7,14}(?!\w)", re.ASCII),
            "[PHONE]",
            hints=("+",),
        ),
        Rule(
            re.compile(r"(?<![\w.,$-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}(?![\w-])", re.ASCII),
            "[PHONE]",
        ),
        Rule(
            re.compile(
                r"(?<![\w.,$/-])(?!\d\d?([./-])\d\d?\1\d{2,4}(?![./-]?\d))"
                r"\(?0\d{1,4}\)?(?:[ /-]\d{2,8}){1,4}(?![\w%]|[.,:]\d)",
                re.ASCII,
            ),
            "[PHONE]",
            lambda found: 9 <= sum(character.isdigit() for character in found) <= 12,
        ),
    ),
}
"""By name, in the order in which they are applied."""


class Redaction:
    """The rules that hold here.

    Args:
        names: Of `RULES`.
        patterns: The operator's own, as Python's `re` has them; applied first.
    Raises:
        ValueError: names the rule or the pattern that cannot be had.
    """

    def __init__(self, names: Sequence[str] = tuple(RULES), patterns: Sequence[str] = ()) -> None:
        for name in names:
            if name not in RULES:
                raise ValueError(f"{name!r} is no rule; must be one of {', '.join(sorted(RULES))}")
        for pattern in patterns:
            check_pattern(pattern)
        own = [Rule(re.compile(pattern), OWN_MARK) for pattern in patterns]
        self._rules = (*own, *(rule for name, rules in RULES.items() if name in names for rule in rules))

    def text(self, text: str) -> str:
        """With a mark, such as [EMAIL], in place of each thing that a rule found."""
        lower = text.lower()
        for rule in self._rules:
            if any(hint in lower for hint in rule.hints):
                text = rule.apply(text)
        return text

    def sample(self, sample: Sample) -> Sample | None:
        """The sample as it may be kept; None where it is too long to be looked through.

        Where its prompt changes, the answers at hand go: they answered another prompt.
        """
        texts = (*(turn.content for turn in sample.turns), sample.reference, *(a.text for a in sample.answers))
        if self._rules and sum(map(len, texts)) > MAX_CHARACTERS:
            return None
        turns = tuple(replace(turn, content=self.text(turn.content)) for turn in sample.turns)
        answers = tuple(replace(answer, text=self.text(answer.text)) for answer in sample.answers)
        return replace(
            sample,
            turns=turns,
            reference=self.text(sample.reference),
            answers=answers if turns == sample.turns else (),
        )
