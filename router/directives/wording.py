"""What a directive's words must not hold: whatever a model or its chat template would take for more than words.

A directive adds to a turn of the conversation. Text that a template expands, that a tokenizer reads as a special token,
or that looks like the beginning of another turn would let whoever writes directives speak as somebody else; text that
nobody sees could not be reviewed. Look-alikes are found in Unicode's compatibility decomposition (UAX 15, NFKD), in
which whatever NFKC turns into a marker is spelled as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that does not belong into a directive."""

    found: str
    """As it is spelled in the text, or as U+XXXX where it cannot be seen."""
    index: int
    """Of its first character in the text."""
    kind: str
    """What it is, with its article."""
    why: str

    def __str__(self) -> str:
        return f"has {self.kind}, {self.found}, at {self.index}; {self.why}"


def faults_of(text: str) -> Iterator[Fault]:
    """The first fault of each kind; none for text that is only words. Control characters are no business of this."""
    invisible = next((index for index, character in enumerate(text) if _is_invisible(character)), None)
    if invisible is not None:
        name = f"U+{ord(text[invisible]):04X}"
        yield Fault(name, invisible, "an invisible character", "nobody could review what it hides")
    folded, origin = _decomposed(text)
    for pattern, kind, why in _MARKERS:
        if match := pattern.search(folded):
            first, last = origin[match.start("marker")], origin[match.end("marker") - 1]
            yield Fault(repr(text[first : last + 1]), first, kind, why)


_VARIATION_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0), *range(0x180B, 0x1810))))
# Letters and marks of no width that are in no category of their own.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")


def _is_invisible(character: str) -> bool:
    """Format characters (zero width, direction, tags), line separators, private use, fillers, variation selectors."""
    return (
        unicodedata.category(character) in ("Cf", "Zl", "Zp", "Co", "Cs")
        or character in _VARIATION_SELECTORS
        or character in _FILLERS
    )


def _decomposed(text: str) -> tuple[str, list[int]]:
    """The text in NFKD, but for the order of combining marks, and for each of its characters where it came from."""
    pieces = [unicodedata.normalize("NFKD", character) for character in text]
    origin = [index for index, piece in enumerate(pieces) for _ in piece]
    return "".join(pieces), origin


def _words(*words: str) -> str:
    """A pattern for any of them, longest first, in the form that `_decomposed` gives text."""
    return "|".join(re.escape(_decomposed(word)[0]) for word in sorted(words, key=len, reverse=True))


_TEMPLATE_ESCAPE = re.compile(r"(?P<marker>\{[{%#])")

# Of ChatML and Llama 3 (<|im_start|>), DeepSeek (the same with wide bars), Llama 2 and Mistral ([INST], <<SYS>>),
# Gemma (<start_of_turn>), BERT ([SEP]), GLM ([gMASK]), T5 (<extra_id_0>), SentencePiece (<s>, <0x0A>), and of models
# that think aloud or call tools.
_SPECIAL_TOKEN = re.compile(
    r"(?P<marker><\s*\|[^<>|]{0,64}\|\s*>"
    r"|<\s*<\s*/?\s*SYS\s*>\s*>"
    r"|<\s*/?\s*(?:s|bos|eos|pad|unk|sep|cls|mask|eot|eop|sop|eod|bot|think|thinking"
    r"|tool_calls?|tool_response|function_call|function_calls"
    r"|fim_[a-z]+|unused_?\d+|reserved_\w*\d+|extra_id_\d+|0x[0-9A-F]{2}"
    r"|(?:start|end|begin)_?of_?[a-z_]+|endoftext|end_header_id|start_header_id)\s*>"
    r"|\[\s*/?\s*(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK"
    r"|BOS|EOS|PAD|UNK|SEP|CLS|MASK|gMASK|sMASK)\s*\])",
    re.IGNORECASE,
)

_SPEAKERS = _words(
    *("user", "assistant", "system", "human", "ai", "ai assistant", "bot", "chatbot", "developer", "tool", "model"),
    *("system prompt", "system message", "user prompt", "user message"),
    *("ユーザー", "ユーザ", "利用者", "アシスタント", "システム", "システムプロンプト", "人間", "助手", "ボット"),
    *("用户", "系统", "人类", "사용자", "어시스턴트", "시스템"),
)
_SECTIONS = _words(
    *("instruction", "instructions", "response", "input", "output", "context"),
    *("指示", "応答", "回答", "入力", "出力", "質問", "指令", "회답", "명령"),
)
_LINE_BEGINS = r"(?:^|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029])"
# Possessive, here and below: what has been read is not read again, however long it is.
_SPACE = r"[^\S\n\r]*+"
_COLON = r"[:\u2236\ua789\u02d0]"
_LINE_ENDS = r"(?=[\n\r\u2028\u2029]|\Z)"

# A directive stands on a line of its own, so that its first word begins a line whatever comes before it.
_ROLE_MARKER = re.compile(
    rf"{_LINE_BEGINS}{_SPACE}(?P<marker>"
    # "### Instruction", as Alpaca and its descendants begin a turn.
    rf"\#{{2,}}+{_SPACE}(?:{_SPEAKERS}|{_SECTIONS})\b"
    # "[User]", "<system>", "【ユーザー】".
    rf"|[\[(<【「『〈《]{_SPACE}/?(?:{_SPEAKERS}){_SPACE}[\])>】」』〉》]"
    # "User:", "**Assistant**:", "> Human 2:", and the bare word as a whole line.
    rf"|[*_>#\-\"']*+{_SPACE}[*_]*+(?:{_SPEAKERS}){_SPACE}\d{{0,3}}[*_\"']*+{_SPACE}(?:{_COLON}[*_]*+|{_LINE_ENDS})"
    r")",
    re.IGNORECASE,
)

_MARKERS = (
    (_TEMPLATE_ESCAPE, "the beginning of a template expression", "a chat template might expand it"),
    (_SPECIAL_TOKEN, "the spelling of a special token", "models tell by it where turns begin and end"),
    (_ROLE_MARKER, "a role marker", "a directive adds to a turn and must not look like the beginning of another"),
)
