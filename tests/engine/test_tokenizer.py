"""Text to tokens and back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from common.limits import OWN_TEMPLATE_VARIABLES
from engine.tokenizer import TemplateRejectedError, Tokenizer
from engine.weights import ModelError
from tests.engine.tiny_model import BEGIN, END, TURN, byte_tokenizer, write_tokenizer

VOCABULARY = 262
"""Three more than the tokenizer knows, as in checkpoints with padded embeddings."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return Tokenizer(directory, VOCABULARY)


def detokenised(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert detokenised(tokenizer, tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, 258)))
def test_any_tokens_give_the_text_that_the_library_gives(tokenizer: Tokenizer, token_ids: list[int]) -> None:
    assert detokenised(tokenizer, token_ids) == byte_tokenizer().decode(token_ids, skip_special_tokens=True)


@given(st.text())
def test_a_character_comes_whole_and_with_its_last_byte(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = tokenizer.detokenizer()
    seen = ""
    for count, token_id in enumerate(tokenizer.encode(text), start=1):
        seen += detokenizer.push(token_id)
        complete = text.encode()[:count].decode(errors="ignore")
        assert seen == complete


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: Tokenizer) -> None:
    assert detokenised(tokenizer, [VOCABULARY - 1, BEGIN, END]) == ""


def test_messages_go_through_the_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "be <b>"}, {"role": "user", "content": "é"}]
    token_ids = tokenizer.encode_messages(messages)
    assert token_ids.count(TURN) == 3
    assert detokenised(tokenizer, token_ids) == "system:be <b>user:éassistant:"


SPELLINGS = ("<|turn|>", "<|end|>", "<|begin|>")


@given(st.lists(st.sampled_from([*SPELLINGS, "<|", "turn|>", "<", "|>", "é", "\U0010fffd", "\U0010fffc"]), max_size=8))
def test_content_that_spells_a_special_token_is_text(tokenizer: Tokenizer, parts: list[str]) -> None:
    content = "".join(parts)
    token_ids = tokenizer.encode_messages([{"role": "user", "content": content}])
    # The template's own two turns, and nothing else that is special.
    assert [token_id for token_id in token_ids if token_id in (BEGIN, END, TURN)] == [TURN, TURN]
    assert detokenised(tokenizer, token_ids) == f"user:{content}assistant:"


def test_special_tokens_that_overlap_are_text_too(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    library = byte_tokenizer()
    library.add_special_tokens(["xx", "x>y"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, VOCABULARY)
    for content in ("xxx", "xxxx>y", "x>xx>y"):
        token_ids = tokenizer.encode_messages([{"role": "user", "content": content}])
        assert max(token_ids) == TURN
        assert detokenised(tokenizer, token_ids) == f"user:{content}assistant:"


def test_a_template_may_refuse(tokenizer: Tokenizer) -> None:
    with pytest.raises(TemplateRejectedError, match="not this"):
        tokenizer.encode_messages([{"role": "user", "content": "refuse me"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for x in range(999999999) %}{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_stays_in_its_sandbox(tmp_path: Path, template: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(TemplateRejectedError):
        Tokenizer(tmp_path, VOCABULARY).encode_messages([{"role": "user", "content": "x"}])


def test_a_template_may_use_json_and_special_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content | tojson }}{{ eos_token }}")
    tokenizer = Tokenizer(tmp_path, VOCABULARY)
    token_ids = tokenizer.encode_messages([{"role": "user", "content": '<é"'}])
    assert (token_ids[0], token_ids[-1]) == (BEGIN, END)
    assert detokenised(tokenizer, token_ids) == '"<é\\""'


THINKING_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}:{{ message.content }};{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"
    "{% if effort is defined %}[{{ effort }}]{% endif %}{% if budget is defined %}({{ budget }}){% endif %}"
)
ASKED = [{"role": "user", "content": "x"}]


@pytest.fixture
def thinking(tmp_path: Path) -> Tokenizer:
    """One whose template reads three variables."""
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    return Tokenizer(tmp_path, VOCABULARY)


def test_a_template_reads_the_variables_that_it_knows(thinking: Tokenizer, tokenizer: Tokenizer) -> None:
    assert thinking.template_variables == ("budget", "effort", "enable_thinking")
    plain = detokenised(thinking, thinking.encode_messages(ASKED))
    assert plain == "user:x;assistant:"
    for variables, added in (
        ({"enable_thinking": False}, "<think></think>"),
        ({"enable_thinking": True}, ""),
        ({"effort": "low", "budget": 64}, "[low](64)"),
        ({"budget": 0.5}, "(0.5)"),
        ({"unknown": "x"}, ""),
    ):
        assert detokenised(thinking, thinking.encode_messages(ASKED, variables)) == plain + added
    # One that reads none answers as without.
    assert tokenizer.template_variables == ()
    assert tokenizer.encode_messages(ASKED, {"enable_thinking": False}) == tokenizer.encode_messages(ASKED)


@given(st.lists(st.sampled_from([*SPELLINGS, "<|", "turn|>", "é", "\U0010fffd", "\U0010fffc"]), max_size=6))
def test_a_variable_that_spells_a_special_token_is_text(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("thinking")
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(THINKING_TEMPLATE)
    thinking = Tokenizer(directory, VOCABULARY)
    token_ids = thinking.encode_messages(ASKED, {"effort": "".join(parts)})
    assert [token_id for token_id in token_ids if token_id in (BEGIN, END, TURN)] == [BEGIN]
    assert detokenised(thinking, token_ids) == f"user:x;assistant:[{''.join(parts)}]"


def test_the_templates_own_variables_win(thinking: Tokenizer) -> None:
    own = {"messages": "none", "add_generation_prompt": False, "bos_token": "x"}
    assert thinking.encode_messages(ASKED, own) == thinking.encode_messages(ASKED)


def test_every_name_that_the_engine_gives_a_template_is_reserved(tokenizer: Tokenizer) -> None:
    """What could be set over it would change what a prompt means."""
    template = tokenizer._template
    assert template is not None
    assert OWN_TEMPLATE_VARIABLES.issuperset(template.environment.globals)
    assert OWN_TEMPLATE_VARIABLES.issuperset({"messages", "add_generation_prompt", *tokenizer._special_tokens})


def test_what_the_shipped_templates_of_models_read_is_told(tmp_path: Path) -> None:
    """As Qwen 3's begins and ends: loops, namespaces, tests and its own settings are none of it."""
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{%- if tools %}x{% endif %}{%- set ns = namespace(last=messages|length - 1) %}"
        "{%- for message in messages[::-1] %}{%- set index = loop.index0 %}{{ ns.last }}{{ index }}{% endfor %}"
        "{%- if add_generation_prompt %}{%- if enable_thinking is defined and enable_thinking is false %}y{% endif %}"
        "{% endif %}"
    )
    assert Tokenizer(tmp_path, VOCABULARY).template_variables == ("enable_thinking",)


def test_a_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, VOCABULARY)
    assert not tokenizer.accepts_messages
    with pytest.raises(TemplateRejectedError):
        tokenizer.encode_messages([{"role": "user", "content": "x"}])


@given(st.text(min_size=1))
def test_what_is_too_long_for_the_context_is_known_by_its_characters(tokenizer: Tokenizer, text: str) -> None:
    assert len(text) <= tokenizer.max_characters(len(tokenizer.encode(text)))


def sentencepiece_style(path: Path) -> Library:
    """As Llama 2 exports it: bytes as <0xNN>, spaces as ▁, the first space dropped."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    vocabulary |= {"▁": 259, "▁a": 260, "é": 261}
    library = Library(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<s>", "</s>"])
    library.save(str(path / "tokenizer.json"))
    return library


def test_byte_fallback_tokens_give_the_text_that_the_library_gives(tmp_path: Path) -> None:
    library = sentencepiece_style(tmp_path)
    tokenizer = Tokenizer(tmp_path, VOCABULARY)
    words = st.sampled_from([[1], [259], [260], [261], *([byte + 3 for byte in c.encode()] for c in "x ñ€😀")])

    @settings(max_examples=60)
    @given(st.lists(words))
    def holds(parts: list[list[int]]) -> None:
        token_ids = [token_id for part in parts for token_id in part]
        assert detokenised(tokenizer, token_ids) == library.decode(token_ids, skip_special_tokens=True)

    holds()


@pytest.mark.parametrize(
    ("part", "value", "space"),
    [
        ("normalizer", normalizers.Prepend("▁"), " "),
        ("normalizer", normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), " "),
        ("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="always"), " "),
        ("pre_tokenizer", pre_tokenizers.Metaspace(prepend_scheme="first"), ""),
        ("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never")]), ""),
    ],
)
def test_content_that_spells_a_special_token_gets_no_space(
    tmp_path: Path, part: str, value: object, space: str
) -> None:
    write_tokenizer(tmp_path)
    library = sentencepiece_style(tmp_path)
    library.add_special_tokens(["<|turn|>"])
    setattr(library, part, value)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path, 263)
    for content in ("x<s>y", "<s><s>", "a </s>", "<|turn|>x:<s>"):
        token_ids = tokenizer.encode_messages([{"role": "user", "content": content}])
        assert [token_id for token_id in token_ids if token_id in (1, 2, 262)] == [262, 262]
        # What the library puts between a template's special token and the text after it stays.
        assert detokenised(tokenizer, token_ids) == f"user:{content}{space}assistant:"


def broken(change: dict[str, Any], path: Path) -> Path:
    write_tokenizer(path)
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return path


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model": {"type": "Nonsense"}}, "not a tokenizer"),
        ({"decoder": None}, "decoder must be"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder must be"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError, match=rf"tokenizer\.json: {fault}"):
        Tokenizer(broken(change, tmp_path), VOCABULARY)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json: file is missing"):
        Tokenizer(tmp_path, VOCABULARY)


def test_a_tokenizer_larger_than_the_model_is_refused(directory: Path) -> None:
    with pytest.raises(ModelError, match="token id 258 is beyond the model's vocabulary of 258"):
        Tokenizer(directory, 258)


def test_a_template_that_does_not_compile_is_named(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: chat template does not compile"):
        Tokenizer(tmp_path, VOCABULARY)
