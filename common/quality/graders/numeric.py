"""The number that an answer comes to."""

from __future__ import annotations

import re
from decimal import Decimal

from common.quality.graders.normalisation import UNSPACED, composed, graded_text, sentences

# A digit after a letter belongs to a name (CO2, v1.2); a minus after a word joins or subtracts (3-4).
_NUMBER = re.compile(
    r"(?:(?<![\w)\]%−-])(?P<minus>[-−]))?[$€£¥₹]?"
    rf"(?:(?<!\w)|(?<=[{UNSPACED}]))(?<!\w\.)(?P<digits>(?:[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
)
# Composed, 10² would read as 102 and 2½ as 21⁄2.
_POWERS_AND_FRACTIONS = str.maketrans({"½": ".5", "¼": ".25", "¾": ".75"} | dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹"))
_PARENTHESES = re.compile(r"\([^()]{0,200}\)")
_MEASURED_BY = re.compile(r"\b(?:in|for)\s+$", re.IGNORECASE)


def numeric(answer: str, reference: str, prompt: str = "") -> float:
    """1.0 where the number that the answer comes to equals that of the reference, else 0.0.

    Understood are a sign, thousands separators, decimals, currency before and "%" after (both without effect on
    the value), digits of any script, and GSM8K's "####", after which alone numbers count. 18, 18.0 and $18. are equal;
    45% and 0.45 are not. Raises ValueError where the reference holds no number.
    """
    expected = result(reference)
    if expected is None:
        raise ValueError(f"reference must hold a number, got {reference!r}")
    return float(result(answer) == expected)


def result(text: str) -> Decimal | None:
    """The number that the last sentence with a number states; None where there is none.

    Of several it is the first after the last "=", else the last; what stands in parentheses or right after "in" or
    "for" explains ("$720 in 5 days (8 hours each)") and counts only where there is nothing else.
    """
    final = graded_text(composed(text.translate(_POWERS_AND_FRACTIONS))).rpartition("####")[2]
    for sentence in reversed(sentences(final)):
        for candidate in (_PARENTHESES.sub(" ", sentence), sentence):
            if numbers := list(_NUMBER.finditer(candidate)):
                return _value(_stated(candidate, numbers))
    return None


def _stated(sentence: str, numbers: list[re.Match[str]]) -> re.Match[str]:
    equals = sentence.rfind("=")
    for number in numbers:
        if 0 <= equals < number.start():
            return number
    stated = [n for n in numbers if not _MEASURED_BY.search(sentence[max(0, n.start() - 8) : n.start()])]
    return (stated or numbers)[-1]


def _value(number: re.Match[str]) -> Decimal:
    value = Decimal(number["digits"].replace(",", ""))
    return -value if number["minus"] else value
