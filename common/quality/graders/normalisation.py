"""Forms of a text that are equal where a reader would call two answers the same."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

QUOTES = " \"'`“”„‘’‚«»*"  # with the asterisks of **Answer:**, which stand around an answer as quotes do
FINAL_PUNCTUATION = ".,;:!?。、"
_MARKER = re.compile(
    r"(?:\banswer|\bantwort|\bréponse|\brespuesta|\brisposta|\bresposta|ответ|答え|解答|正解|答案|정답|الإجابة|الجواب)は?\s{0,9}[:：]",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[^:\s])[^\S\n]{0,9}\n\s*|(?<=[.!?])\s+|(?<=[。！？])")
_ARTICLES = frozenset({"a", "an", "the"})
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_APOSTROPHES = re.compile(r"['’‘`´]")
# Written without spaces: every character is a word of its own, as in evaluations of Chinese and Japanese reading.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:\.[0-9]+)*|[^\w\s]")


def graded_text(text: str) -> str:
    """What follows the last "Answer:", in any case and in some other languages, where there is one; else all of it."""
    return _MARKER.split(text)[-1]


def sentences(text: str) -> list[str]:
    """Text cut after final punctuation and at line breaks, but not at those that a colon leads to."""
    return _SENTENCE_END.split(text)


def composed(text: str) -> str:
    """NFKC, without NUL; digits of every script as 0 to 9, with the Arabic decimal and thousands separators.

    Full-width letters, digits and parentheses become the plain ones.
    """
    plain = unicodedata.normalize("NFKC", text.replace("\0", " "))
    return plain if plain.isascii() else "".join(map(_western_digit, plain))


def normalised(text: str) -> str:
    """Composed, in lower case, spaces collapsed, surrounding quotes and final punctuation off. Idempotent."""
    folded = unicodedata.normalize("NFKC", composed(text).casefold())
    collapsed = " ".join(folded.split())
    # What consists of punctuation alone ("?") is its own answer.
    return collapsed.lstrip(QUOTES).rstrip(QUOTES + FINAL_PUNCTUATION) or collapsed


def words(text: str) -> list[str]:
    """The words that decide whether two short answers are the same, as in the evaluation of SQuAD and TriviaQA.

    Articles, punctuation, case and Latin accents are off; 1,000 is 1000, and 3.5 one word. Where nothing else is left,
    articles count ("The The" is a band). Idempotent on the words joined by spaces.
    """
    apart = unicodedata.normalize("NFKD", composed(text).casefold())
    plain = "".join(character for character in apart if not "\u0300" <= character <= "\u036f")
    joined = _THOUSANDS.sub("", _APOSTROPHES.sub("", unicodedata.normalize("NFKC", plain)))
    found = [word for word in _WORD.findall(joined) if word[0].isalnum() or _is_pictorial(word)]
    return [word for word in found if word not in _ARTICLES] or found


@lru_cache(maxsize=4096)
def _western_digit(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    return {"\u066b": ".", "\u066c": ","}.get(character, character)


@lru_cache(maxsize=4096)
def _is_pictorial(character: str) -> bool:
    # Emoji and signs such as the degree's carry an answer; punctuation and currency do not.
    return unicodedata.category(character) == "So"
