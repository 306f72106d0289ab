"""Which tokens must not come next, against the definition: those with which the text would hold a word."""

from hypothesis import given
from hypothesis import strategies as st

from engine.suppression import Suppression, TokenIndex, spellings

short = st.binary(max_size=4).map(lambda raw: bytes(b"ab\xc3\xa9\xff"[byte % 5] for byte in raw))
word = st.text(alphabet="abé", min_size=1, max_size=4)


def by_definition(tokens: list[bytes], words: list[str], before: bytes) -> set[int]:
    pieces = {spelling.encode() for one in words for spelling in spellings(one)}
    return {
        token_id
        for token_id, own in enumerate(tokens)
        if own and any((before + own).count(piece) > before.count(piece) for piece in pieces)
    }


@given(st.lists(short, min_size=1, max_size=30), st.lists(word, max_size=3), short)
def test_what_completes_a_word_is_forbidden_and_nothing_else(
    tokens: list[bytes], words: list[str], before: bytes
) -> None:
    # Text that holds a word already is out of the question: nothing would have let it come about.
    pieces = [spelling.encode() for one in words for spelling in spellings(one)]
    if any(piece in before for piece in pieces):
        return
    suppression = Suppression(TokenIndex(tokens), words)
    end = before[max(0, len(before) - suppression.memory_bytes) :]
    assert set(suppression.forbidden(end).tolist()) == by_definition(tokens, words, before)


def test_a_word_goes_in_all_its_spellings() -> None:
    assert spellings(" however ") == {"however", "However", "HOWEVER"}
    assert spellings("iPhone") == {"iPhone", "iphone", "IPHONE", "Iphone", "IPhone"}


def test_tokens_without_text_are_never_forbidden() -> None:
    assert Suppression(TokenIndex([b"", b"a", b""]), ["a"]).forbidden(b"").tolist() == [1]
