"""What a request shows that makes a shorter answer a wrong one: declared by its caller, or read from its text.

The text is read in English and Japanese, in the last user message and the system message. A trait that is seen where
there is none costs a saving, one that is missed may cost an answer: in doubt it is there. A wish for a short answer is
no trait: a directive asks for no more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from router.directives.compile import Turn
from router.directives.policy import Trait

READ_CHARACTERS: Final = 1_000
"""From the beginning and from the end of each message: what is asked for stands before or after what it is about."""


def traits_of(turns: Sequence[Turn], declared: Collection[Trait] = (), opt_out: bool = False) -> frozenset[Trait]:
    """What is declared and what is shown. The work is bounded, whatever the messages hold.

    Args:
        turns: The request's messages; may be none.
        opt_out: The same as Trait.OPT_OUT among the declared.
    """
    found = {*declared, Trait.OPT_OUT} if opt_out else set(declared)
    last = {turn.role: turn.content for turn in turns}
    for role in ("user", "system"):
        if text := last.get(role):
            found |= _shown(text)
    return frozenset(found)


def _shown(text: str) -> set[Trait]:
    if len(text) > 2 * READ_CHARACTERS:
        text = f"{text[:READ_CHARACTERS]}\n{text[-READ_CHARACTERS:]}"
    # What is written down is there already, nothing is made.
    text = text.lower().replace("write down", "note")
    tokens: list[str] = _TOKEN.findall(text)
    present = set(tokens)
    if any(map(str.isdigit, present)):
        present.add(_ANY_NUMBER)
    found = {_ALONE[word] for word in _ALONE.keys() & present}
    for word in _RULES.keys() & present:
        for trait, before in _RULES[word]:
            if trait not in found and not present.isdisjoint(before[0][0]) and _follows(tokens, word, before):
                found.add(trait)
    found |= {trait for mark, trait in _MARKS if mark in text}
    if not text.isascii():
        found |= {trait for trait, pattern in _JAPANESE if trait not in found and pattern.search(text)}
    return found


Before = tuple[tuple[frozenset[str], int], ...]
"""Read backwards from a word: one of these at most so many tokens before it, then one of those before that, ..."""


def _follows(tokens: Sequence[str], word: str, before: Before) -> bool:
    at = -1
    for _ in range(tokens.count(word)):
        at = tokens.index(word, at + 1)
        place: int | None = at
        for wanted, distance in before:
            place = None if place is None else _nearest(tokens, place, wanted, distance)
        if place is not None:
            return True
    return False


def _nearest(tokens: Sequence[str], at: int, wanted: frozenset[str], distance: int) -> int | None:
    for index in range(at - 1, max(at - distance, 0) - 1, -1):
        token = tokens[index]
        if token in wanted or (token.isdigit() and _ANY_NUMBER in wanted):
            return index
        if token in _ENDS:
            return None
    return None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _rules(*rules: tuple[Trait, str, Before]) -> Mapping[str, Sequence[tuple[Trait, Before]]]:
    by_word: dict[str, list[tuple[Trait, Before]]] = {}
    for trait, last, before in rules:
        for word in last.split():
            by_word.setdefault(word, []).append((trait, before))
    return by_word


_TOKEN: Final = re.compile("[a-z]+|[0-9]+|[.?!]")
_ENDS: Final = _words(". ? !")
_ANY_NUMBER: Final = "0"
_NUMBERS: Final = _words(
    f"{_ANY_NUMBER} one two three four five six seven eight nine ten eleven twelve fifteen twenty thirty forty fifty"
    " hundred thousand single couple few several"
)
_ARTICLES: Final = _words("a an")
_MAKE: Final = _words(
    "add arrange build compile complete compose construct convert craft create debug define design develop draft"
    " draw fill fix format generate give implement make modify need optimise optimize organise organize output prepare"
    " present produce program provide put refactor return rewrite show summarise summarize transform translate turn up"
    " use want write"
)
_INTO: Final = _words("as in into to within")
_AMOUNT: Final = _words(
    "about approximately around compose draft exactly in least limit maximum minimum most only than under within write"
)
_GIVEN: Final = _words("exact following given output provided required specified sql this")

_ALONE: Final = {
    word: trait
    for trait, words in (
        (Trait.STRUCTURED_OUTPUT, "csv geojson json jsonl markdown ndjson tabular toml tsv xml yaml yml"),
        (Trait.EXPLICIT_LENGTH, "comprehensive detailed elaborate exhaustively thorough thoroughly"),
        (
            Trait.CODE,
            "bash css golang html javascript kotlin latex matlab mysql numpy pandas php postgresql powershell printf"
            " println pseudocode python regex sql typescript vba",
        ),
    )
    for word in words.split()
}
"""Words that need no other."""

_RULES: Final = _rules(
    (Trait.STRUCTURED_OUTPUT, "table spreadsheet", ((_MAKE, 5),)),
    (Trait.STRUCTURED_OUTPUT, "table spreadsheet", ((_ARTICLES, 4), (_INTO, 1))),
    (Trait.STRUCTURED_OUTPUT, "table", ((_words("comparison summary"), 1),)),
    (Trait.STRUCTURED_OUTPUT, "comparing containing listing showing that with", ((_words("table"), 1),)),
    (Trait.STRUCTURED_OUTPUT, "columns", ((_MAKE | _words("with"), 4),)),
    (Trait.STRUCTURED_OUTPUT, "schema", ((_GIVEN | _words("database data the"), 2),)),
    (Trait.STRUCTURED_OUTPUT, "format formats", ((_GIVEN, 2),)),
    (Trait.STRUCTURED_OUTPUT, "format formats", ((_ARTICLES | _words("the this"), 3), (_words("in"), 1))),
    (
        Trait.STRUCTURED_OUTPUT,
        "answer data output reply response results",
        ((_words("format formatted structure"), 2),),
    ),
    (Trait.STRUCTURED_OUTPUT, "separated", ((_words("comma semicolon tab"), 1),)),
    (Trait.STRUCTURED_OUTPUT, "comma commas semicolon semicolons tabs", ((_words("separated"), 3),)),
    (Trait.STRUCTURED_OUTPUT, "pairs", ((_words("value"), 1), (_words("key"), 1))),
    (Trait.STRUCTURED_OUTPUT, "readable", ((_words("machine"), 1),)),
    (Trait.TOOLS, "functions tools", ((_words("access available call can have may must should"), 5),)),
    (Trait.TOOLS, "available", ((_words("functions tools"), 2),)),
    (Trait.TOOLS, "call calling calls choice", ((_words("function tool"), 1),)),
    (Trait.TOOLS, "input", ((_words("action"), 1),)),
    (Trait.EXPLICIT_LENGTH, "characters paragraph paragraphs sentence sentences tokens word words", ((_NUMBERS, 3),)),
    (Trait.EXPLICIT_LENGTH, "bullet bullets", ((_NUMBERS, 2),)),
    (Trait.EXPLICIT_LENGTH, "letters line lines page pages points steps tweets", ((_NUMBERS, 2), (_AMOUNT, 3))),
    (Trait.EXPLICIT_LENGTH, "line page", ((_NUMBERS, 1),)),
    (Trait.EXPLICIT_LENGTH, "line page paragraph sentence tweet word", ((_ARTICLES, 3), (_MAKE | _INTO, 2))),
    (Trait.EXPLICIT_LENGTH, "count limit", ((_words("character length page token word"), 1),)),
    (Trait.EXPLICIT_LENGTH, "depth detail details length", ((_words("at in more much"), 2),)),
    (
        Trait.EXPLICIT_LENGTH,
        "answer article description essay explanation form paragraph post response story",
        ((_words("long longer"), 1),),
    ),
    (
        Trait.CODE,
        "algorithm algorithms api class classes compiler component function functions macro method module parser"
        " program programs query queries script scripts snippet subroutine website",
        ((_MAKE | _words("code"), 5),),
    ),
    # "Give the code and the city" asks for no program.
    (Trait.CODE, "code", ((_MAKE - _words("add fill give output present provide put return show use want"), 5),)),
    (Trait.CODE, "code", ((_words("give output provide show"), 1),)),
    (Trait.CODE, "code", ((_words("me"), 2), (_words("give show"), 1))),
    (Trait.CODE, "case cases tests", ((_words("test unit"), 1), (_MAKE, 4))),
    (
        Trait.CODE,
        "assembly cobol fortran haskell java julia lua perl react ruby rust scala",
        ((_words("in using with"), 1),),
    ),
    (Trait.CODE, "code", ((_words("following given my sample source this your"), 2),)),
    (Trait.CODE, "below for snippet that to", ((_words("code"), 1),)),
    (Trait.CODE, "that to which", ((_words("function program script"), 1),)),
    (Trait.CODE, "command script", ((_words("linux shell terminal unix"), 1),)),
    (Trait.CODE, "formula function", ((_words("excel sheet sheets spreadsheet"), 1),)),
    (Trait.CODE, "it one that this", ((_words("implement"), 1),)),
    (Trait.CODE, "complexity", ((_words("time"), 1),)),
)
"""By the word that ends them. Each is looked for once a time that its word stands in the text, in bounded steps."""

_MARKS: Final = (
    ("```", Trait.CODE),
    ("c++", Trait.CODE),
    ("c#", Trait.CODE),
    ("#include", Trait.CODE),
    ("):\n", Trait.CODE),
    ("<tool", Trait.TOOLS),
)
"""Of no language, as they are written."""

# Each alternative begins with a fixed character, by which the matcher skips nearly all of a text.
_JAPANESE: Final = (
    (
        Trait.STRUCTURED_OUTPUT,
        re.compile(
            "表(?<![発代]表)(?:形式|組み|に(?:して|し、|まと|整理)|で(?:出力|まと|示|比較|整理|表し)|を(?:作|書|出力))"
            "|一覧表|スキーマ|形式で(?:出力|回答|答え|返)|(?:の|る|た)(?:形式|フォーマット|書式)で|カンマ区切り|タブ区切り"
        ),
    ),
    (
        Trait.TOOLS,
        re.compile(
            "ツール(?:を|が)(?:使|呼|利用|用い)|(?:利用|使用)(?:可能|でき)な?る?(?:ツール|関数)|関数(?:を|の)?呼び?出"
        ),
    ),
    (
        Trait.EXPLICIT_LENGTH,
        re.compile(
            r"[0-9０-９一二三四五六七八九十百千数]{1,8}\s?(?:文字|字|文|語|単語|行|段落|ページ|トークン|センテンス|ワード|パラグラフ)"
            "(?:以内|以上|以下|未満|程度|ぐらい|くらい|ほど|前後|まで|ずつ|[でに、])"
        ),
    ),
    (
        Trait.EXPLICIT_LENGTH,
        re.compile("詳し[くい]|くわしく|詳細[なにを]|詳述|長文|長めに|できるだけ長く|徹底的に|文字数|字数"),
    ),
    (
        Trait.CODE,
        re.compile(
            "(?:コード|プログラム|関数|スクリプト|クエリ|マクロ|クラス|アルゴリズム|コマンド|シェル|ワンライナー)[^。？！]{0,12}?"
            "(?:書|作|実装|生成|出力|教え|示し|見せ|直し|修正|デバッグ|ください|下さい|ほしい|欲しい)"
            "|正規表現|コーディング|を実装|デバッグ|リファクタ"
        ),
    ),
)
