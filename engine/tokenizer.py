"""Text to token ids and back: the model's tokenizer, its chat template, and detokenising as tokens arrive."""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.meta
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from common.limits import OWN_TEMPLATE_VARIABLES
from engine.suppression import Suppression, TokenIndex
from engine.weights import ModelError, read_json

SPACE_MARK = "▁"
"""SentencePiece's visible space."""
KEPT_SUPPRESSIONS = 64
"""Lists of suppressed words made ready: directives send the same ones with every request."""
TemplateValue = bool | int | float | str


class TemplateRejectedError(ValueError):
    """The chat template refuses these messages; the text says why."""


class Tokenizer:
    """A model's `tokenizer.json`, with the chat template of `chat_template.jinja` or `tokenizer_config.json`.

    Thread-safe. Raises ModelError where a file is missing, broken, or of a kind that is not supported.
    """

    def __init__(self, directory: Path, vocabulary_size: int) -> None:
        """`vocabulary_size`: the model's; the tokenizer's own may be smaller (padded embeddings), never larger."""
        file = directory / "tokenizer.json"
        serialised = read_json(file)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as fault:  # the library raises bare Exception
            raise ModelError(file, f"not a tokenizer ({fault})") from None
        self._within_text = _without_first_space(self._tokenizer, serialised)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        highest = max(self._tokenizer.get_vocab().values(), default=-1)
        if highest >= vocabulary_size:
            raise ModelError(file, f"token id {highest} is beyond the model's vocabulary of {vocabulary_size}")
        self.vocabulary_size = vocabulary_size
        self._token_bytes, self._strips_first_space = _token_bytes(file, self._tokenizer, serialised, vocabulary_size)
        self._longest_token_bytes = max(map(len, self._token_bytes))
        self._template, self._special_tokens, self.template_variables = _chat_template(directory)
        self._suppression = lru_cache(KEPT_SUPPRESSIONS)(lambda words: Suppression(self._token_index, words))
        added = self._tokenizer.get_added_tokens_decoder().values()
        special = [re.escape(token.content) for token in added if token.special]
        # Where one begins, and its first character; a look ahead, for they may overlap.
        self._special_start = re.compile(f"(?={'|'.join(special) or '(?!)'})(.)", re.DOTALL)

    @property
    def accepts_messages(self) -> bool:
        return self._template is not None

    def max_characters(self, tokens: int) -> int:
        """No text longer than this fits into `tokens` tokens, so that nothing longer need be tokenised to know."""
        return tokens * self._longest_token_bytes

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the model wants around it."""
        return self._tokenizer.encode(text).ids

    def encode_messages(
        self, messages: Sequence[Mapping[str, str]], template_variables: Mapping[str, TemplateValue] | None = None
    ) -> list[int]:
        """Token ids of the conversation {role, content}… up to where the assistant's turn begins.

        Special tokens come from the template alone: content, or a variable, that spells one is encoded as text.

        Args:
            template_variables: beside the template's own, which win; one that it does not read has no effect.

        Raises TemplateRejectedError where the template refuses the messages.
        """
        if self._template is None:
            raise TemplateRejectedError("the model has no chat template")
        variables = template_variables or {}
        contents = [message["content"] for message in messages]
        cut = _absent_character("".join(contents + [value for value in variables.values() if isinstance(value, str)]))

        def quoted(text: str) -> str:
            # Text that spells a special token is text all the same: a cut after its first character keeps the spelling
            # from being read as the token, and the template still sees the text (a cut is no part of other text).
            return self._special_start.sub(rf"\1{cut}", text)

        given = {
            **{name: quoted(value) if isinstance(value, str) else value for name, value in variables.items()},
            **self._special_tokens,
            "messages": [{**message, "content": quoted(message["content"])} for message in messages],
            "add_generation_prompt": True,
        }
        try:
            text = self._template.render(given)
        except Exception as fault:  # a template is a program: it can raise whatever its expressions raise
            raise TemplateRejectedError(str(fault)) from None
        first, *others = text.split(cut)
        token_ids: list[int] = self._tokenizer.encode(first, add_special_tokens=False).ids
        for piece in others:
            special = self._special_start.search(piece)
            end = len(piece) if special is None else special.start()
            token_ids += self._within_text.encode(piece[:end], add_special_tokens=False).ids
            token_ids += self._tokenizer.encode(piece[end:], add_special_tokens=False).ids
        return token_ids

    def suppression(self, words: Sequence[str]) -> Suppression:
        """How an answer avoids these words."""
        return self._suppression(tuple(words))

    @cached_property
    def _token_index(self) -> TokenIndex:
        return TokenIndex(self._token_bytes)

    def detokenizer(self) -> "Detokenizer":
        return Detokenizer(self._token_bytes, self._strips_first_space)


def _without_first_space(tokenizer: tokenizers.Tokenizer, serialised: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """One for text that goes on in the middle: SentencePiece's kind puts a space before each text that it is given."""
    changed = {part: _unprefixed(serialised.get(part)) for part in ("normalizer", "pre_tokenizer")}
    if all(serialised.get(part) == own for part, own in changed.items()):
        return tokenizer
    return tokenizers.Tokenizer.from_str(json.dumps({**serialised, **changed, "truncation": None, "padding": None}))


def _unprefixed(part: Any) -> Any:
    """A normaliser or pre-tokeniser, as serialised, without what puts a space in front."""
    if isinstance(part, list):
        return [own for own in map(_unprefixed, part) if own is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    never = {"prepend_scheme": "never", "add_prefix_space": False}
    return {name: never.get(name, _unprefixed(value)) for name, value in part.items()}


def _absent_character(text: str) -> str:
    """A character for private use that the text does not contain."""
    unused = (character for character in map(chr, range(0x10FFFD, 0xFFFFF, -1)) if character not in text)
    character = next(unused, None)
    if character is None:
        raise TemplateRejectedError("they use up all private-use characters of Unicode's last plane")
    return character


class Detokenizer:
    """Text of one answer as its tokens arrive. Whole characters only; special tokens have no text."""

    def __init__(self, token_bytes: Sequence[bytes], strips_first_space: bool) -> None:
        self._token_bytes = token_bytes
        self._strip = strips_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        return self._stripped(self._utf8.decode(self._token_bytes[token_id]))

    def flush(self) -> str:
        """What an incomplete last character leaves: U+FFFD, or nothing."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _stripped(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


def _token_bytes(
    file: Path, tokenizer: tokenizers.Tokenizer, serialised: Mapping[str, Any], vocabulary_size: int
) -> tuple[list[bytes], bool]:
    """The bytes of every token id, and whether an answer loses its first space."""
    decoder = serialised.get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" in kinds:
        to_bytes = _byte_level
    elif "ByteFallback" in kinds:
        to_bytes = _byte_fallback
    else:
        raise ModelError(file, f"decoder must be ByteLevel or ByteFallback, got {kinds}")
    token_bytes = [b""] * vocabulary_size
    for token, token_id in tokenizer.get_vocab().items():
        token_bytes[token_id] = to_bytes(token)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        token_bytes[token_id] = b"" if added.special else added.content.encode()
    return token_bytes, "Strip" in kinds


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map from the printable characters that stand for bytes to the bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode()


def _byte_fallback(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE_MARK, " ").encode()


def _chat_template(directory: Path) -> tuple[jinja2.Template | None, dict[str, str], tuple[str, ...]]:
    """The compiled template, if the model has one, the special tokens that it may name, and what else it reads."""
    file = directory / "tokenizer_config.json"
    values = read_json(file) if file.exists() else {}
    special = {
        name: token["content"] if isinstance(token, dict) else token
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (token := values.get(name))
    }
    source = values.get("chat_template")
    own_file = directory / "chat_template.jinja"
    if own_file.exists():
        file, source = own_file, own_file.read_text(encoding="utf-8")
    if isinstance(source, list):  # named templates
        source = next((one["template"] for one in source if one.get("name") == "default"), None)
    if source is None:
        return None, special, ()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        read = jinja2.meta.find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), special, tuple(sorted(read - OWN_TEMPLATE_VARIABLES))
    except jinja2.TemplateError as fault:
        raise ModelError(file, f"chat template does not compile ({fault})") from None


def _to_json(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(reason: str) -> NoReturn:
    raise jinja2.TemplateError(reason)
