"""The option that an answer to a multiple-choice question settles on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

from common.quality.graders.normalisation import composed, sentences, words
from common.quality.graders.options import Options, options_named, options_of, right_option
from common.quality.graders.token_f1 import overlap

_MAX_OPTION_WORDS = 40
_MAX_OPTION_CHARACTERS = 2_000
_RESEMBLANCE = 0.8
# An option's text is replaced by its letter between two characters of the private use area.
_OPEN, _CLOSE = "\ue000", "\ue001"
_TEXT = f"{_OPEN}(?P<text>[A-Z]){_CLOSE}"
_EMPHASISED = re.compile(r"\*{1,3}\(?([A-Z])\)?[.:)]?\*{1,3}|\\boxed\{(?:\\text\{)?\(?([A-Z])\)?\}{1,2}")
_LEADING_ARTICLE = re.compile(r"\s*(?:an?|the)\s(?=.)", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_MARKUP = re.compile(r"[*`]{1,3}")
_HEADING = re.compile(r"(?:^|(?<=:))[ \t]*+([A-Z])[.:)][ \t]+(?=\S)", re.MULTILINE)
_MENTION = re.compile(
    r"\(\s?(?P<parenthesised>[A-Za-z])\s?\)"
    r"|\b(?i:answer(?:\s(?:is|would be|should be):?|:))\s(?P<stated>[A-Z])(?![\w'’-])"
    r"|\b(?i:options?|choices?|answers?)\s(?P<announced>[A-Z])(?![\w'’-])"
    # Bare letters are often words (A, I) or names: only where a sentence would not go on with them.
    r"|(?<![\w'’.&-])(?P<bare>[A-Z])(?=[):,;]|\.(?!\w)|\s*$|\s[-–—=]\s)"
    r"|(?:は|是|選|选|为|為|هي|هو)\s?(?P<foreign>[A-Z])(?![A-Za-z0-9'’-])"
    rf"|{_TEXT}"
)
_DECLARING = re.compile(
    r"\b(?:answer|solution|choose|choice would be"
    r"|(?:correct|best|right|most (?:likely|accurate|appropriate))\s(?:\w{1,30}\s){0,9}?is)\b"
    r"|答え|正解|答案|解答|정답|الإجابة|الجواب|ответ",
    re.IGNORECASE,
)
_DECLARED_BEFORE = re.compile(r"(?:\b(?:is|was|would be)|は|是)\s?:\s*$")
_DECLARED_AFTER = re.compile(
    rf"[\s:,.]{{0,3}}(?:{_OPEN}.{_CLOSE})?[\s,.]{{0,3}}(?:is|would be)(?: \w{{1,30}}){{0,2}} the"
    r" (?:(?:correct|best|right|final|most \w{1,30}) )?(?:answer|choice|option|one)\b",
    re.IGNORECASE,
)
_REJECTED_BEFORE = re.compile(
    r"(?:\b(?:not|unlike|than|instead of|neither|nor|eliminate|rule out)|n['’]t)"
    r"(?:\s(?:the|an?|option|choice|answer)){0,2}\s?$",
    re.IGNORECASE,
)
_REJECTED_AFTER = re.compile(
    rf"[\s:,.]{{0,3}}(?:{_OPEN}.{_CLOSE})?[\s,.]{{0,3}}"
    rf"(?:(?:[\s,]|and|or|nor|options?|\([A-Z]\)|{_OPEN}.{_CLOSE}){{0,20}}(?:are|were|do)\b"
    r"|(?:is|was|does|can|could|would)\b)\s?(?:also |all |both |be |the |an? ){0,2}"
    r"(?:incorrect|wrong|false|(?:not|n['’]t)\b(?: (?:be|the|an?|\w{1,20}ly)){0,3}"
    r" (?:correct|right|best|accurate|true|valid|good|answer|likely))",
    re.IGNORECASE,
)
# Long enough for what stands right before a mention.
_WINDOW_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Mention:
    """An option that a sentence names and does not reject."""

    letter: str
    is_label: bool
    leads: bool
    """It starts its sentence, or what follows a colon."""
    declared: bool
    """Its sentence calls it the answer."""


def choice(answer: str, reference: str, prompt: str = "") -> float:
    """1.0 where the answer settles on the option that the reference names, else 0.0.

    The reference is an option's letter or text; the prompt lists the options. Raises ValueError for a reference that
    names none of them.
    """
    options = options_of(prompt)
    return float(chosen(answer, options) == right_option(reference, options))


def chosen(answer: str, options: Options) -> str | None:
    """The letter of the option that the answer settles on; None where it names none, or declares several.

    An answer that is nothing but one option says that. Else counts, in this order: what it declares ("the correct
    answer is (B)"); the only option that it names; the one that it starts with, or, where it goes through them one by
    one, the one that its last sentence concludes on; the only one in the first sentence that names any. Options that a
    sentence rejects ("(A) is incorrect") are not named. Letters go before texts; where there is neither, an option's
    words may stand apart, or be nearly all of a sentence. Without options every letter is one.
    """
    whole = options_named(answer, options)
    if len(whole) == 1:
        return whole[0]
    letters = "".join(options) or ascii_uppercase
    named = [
        [mention for mention in _mentions(sentence) if mention.letter in letters]
        for sentence in sentences(_marked(answer, options))
    ]
    labels = [[mention for mention in mentions if mention.is_label] for mentions in named]
    for by_sentence in (labels, named):
        mentions = [mention for mentions in by_sentence for mention in mentions]
        if declared := {mention.letter for mention in mentions if mention.declared}:
            return declared.pop() if len(declared) == 1 else None
        if mentions:
            return _settled(by_sentence, mentions, letters)
    return _spelt_out(answer, options) or _resembled(answer, options)


def _settled(by_sentence: Sequence[Sequence[Mention]], mentions: Sequence[Mention], letters: str) -> str | None:
    if len({mention.letter for mention in mentions}) == 1:
        return mentions[0].letter
    leading = [mention.letter for mention in mentions if mention.leads]
    naming = [found for found in by_sentence if found]
    if not mentions[0].leads:
        deciding = naming[0]
    elif "".join(leading[:2]) != letters[:2]:
        return leading[0]
    else:
        # The options one by one: what matters is the conclusion, where there is one.
        deciding = [mention for mention in naming[-1] if not mention.leads]
    decided = {mention.letter for mention in deciding}
    return decided.pop() if len(decided) == 1 else None


def _spelt_out(answer: str, options: Options) -> str | None:
    """The one option that is all that the answer says in the options' words ("First: true. Second: false.")."""
    forms = {letter: words(text) for letter, text in options.items()}
    vocabulary = {word for form in forms.values() for word in form}
    said = [word for word in words(answer) if word in vocabulary]
    alike = [letter for letter, form in forms.items() if form == said]
    return alike[0] if len(alike) == 1 else None


def _resembled(answer: str, options: Options) -> str | None:
    """The one option whose words are nearly those of a sentence of the answer ("Both are [only] physical changes")."""
    forms = {letter: Counter(words(text)[:_MAX_OPTION_WORDS]) for letter, text in options.items()}
    said = [Counter(words(sentence)) for sentence in sentences(composed(answer))]
    alike = {letter for letter, form in forms.items() for sentence in said if overlap(sentence, form) >= _RESEMBLANCE}
    return alike.pop() if len(alike) == 1 else None


def _marked(answer: str, options: Options) -> str:
    text = composed(answer).replace(_OPEN, " ").replace(_CLOSE, " ")
    text = _EMPHASISED.sub(lambda match: f"({match[1] or match[2]})", text)
    text = _HEADING.sub(lambda match: f" ({match[1]}) ", _MARKUP.sub("", text))
    pattern = _option_texts(options)
    if pattern is None:
        return text
    return pattern.sub(lambda match: f"{_OPEN}{match.lastgroup}{_CLOSE}", text)


def _option_texts(options: Options) -> re.Pattern[str] | None:
    found = {letter: _option_words(text) for letter, text in options.items()}
    folded = {tuple(word.casefold() for word in text) for text in found.values()}
    # Options that differ in case alone ("Dear Ms. Perry", "dear Ms. Perry") are told apart by it.
    flags = re.IGNORECASE if len(folded) == len(options) else re.NOFLAG
    longest_first = sorted(found.items(), key=lambda item: -sum(map(len, item[1])))
    texts = [f"(?P<{letter}>" + r"\W+".join(map(re.escape, text)) + ")" for letter, text in longest_first if text]
    return re.compile(rf"(?<!\w)(?:{'|'.join(texts)})(?!\w)", flags) if texts else None


def _option_words(text: str) -> list[str]:
    plain = _LEADING_ARTICLE.sub("", _MARKUP.sub("", text[:_MAX_OPTION_CHARACTERS]))
    return _WORD.findall(plain)[:_MAX_OPTION_WORDS]


def _mentions(sentence: str) -> Iterator[Mention]:
    declaring = _DECLARING.search(sentence)
    start = len(sentence) - len(sentence.lstrip())
    in_parentheses = False
    rejected = set()
    for match in _MENTION.finditer(sentence):
        in_parentheses = in_parentheses or match["parenthesised"] is not None
        if match["bare"] is not None and in_parentheses:
            continue  # names of another kind: "(D): the company lacks contacts with State A."
        letter = match[match.lastgroup or 0].upper()
        before = sentence[max(0, match.start() - _WINDOW_CHARACTERS) : match.start()]
        if _REJECTED_BEFORE.search(before) or _REJECTED_AFTER.match(sentence, match.end()):
            rejected.add(letter)
        if letter in rejected:
            continue
        declared = (
            (declaring is not None and declaring.end() <= match.start())
            or match["stated"] is not None
            or _DECLARED_BEFORE.search(before) is not None
            or _DECLARED_AFTER.match(sentence, match.end()) is not None
        )
        leads = match.start() <= start or before.rstrip().endswith(":")
        yield Mention(letter, match["text"] is None, leads, declared)
