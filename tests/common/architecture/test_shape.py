from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.architecture.shape import ModelShape

LLAMA_2_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
LLAMA_3_1_8B = LLAMA_2_7B | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
LLAMA_3_2_1B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 352,
    "vocab_size": 311,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_3_1_8B, 8_030_261_248),
        (LLAMA_3_2_1B, 1_235_814_400),
        (SMALL, 843_776),
    ],
    ids=["Llama-2-7B", "Llama-3.1-8B", "Llama-3.2-1B", "small"],
)
def test_published_parameter_counts(config: dict[str, object], parameters: int) -> None:
    assert ModelShape.from_hf_config(config).parameters == parameters


def test_tables_are_not_among_the_non_embedding_parameters() -> None:
    tied = ModelShape.from_hf_config(LLAMA_3_2_1B)
    untied = ModelShape.from_hf_config(LLAMA_3_1_8B)
    assert tied.non_embedding_parameters == tied.parameters - 128256 * 2048
    assert untied.non_embedding_parameters == untied.parameters - 2 * 128256 * 4096


def test_query_width_may_differ_from_hidden_size() -> None:
    # Panda-1B (arXiv 2510.18245): 2560 wide, 72 query heads and 18 key-value heads of 64.
    shape = ModelShape(2560, 16, 72, 18, 64, 4096, 128256, True)
    attention = 16 * 2560 * 64 * (72 + 18 + 18 + 72)
    feed_forward = 16 * 3 * 2560 * 4096
    norms = 33 * 2560
    assert shape.non_embedding_parameters == attention + feed_forward + norms


def test_a_step_reads_every_weight_but_the_embedding() -> None:
    untied = ModelShape.from_hf_config(LLAMA_3_1_8B)
    assert untied.weight_bytes_per_step(2) == 2 * (8_030_261_248 - 128256 * 4096)
    tied = ModelShape.from_hf_config(LLAMA_3_2_1B)
    assert tied.weight_bytes_per_step(2) == 2 * 1_235_814_400


@pytest.mark.parametrize(("config", "kib"), [(LLAMA_3_2_1B, 32), (LLAMA_3_1_8B, 128), (LLAMA_2_7B, 512)])
def test_kv_cache_of_a_token_in_bf16(config: dict[str, object], kib: int) -> None:
    assert ModelShape.from_hf_config(config).kv_bytes_per_token(2) == kib * 1024


@pytest.mark.parametrize("absent", ["drop", "null"])
def test_defaults_of_the_configuration_file(absent: str) -> None:
    config: dict[str, object] = dict(LLAMA_2_7B)
    for name in ("num_key_value_heads", "tie_word_embeddings"):
        del config[name]
    if absent == "null":
        config |= {"num_key_value_heads": None, "head_dim": None}
    shape = ModelShape.from_hf_config(config)
    assert (shape.kv_heads, shape.head_dim, shape.tied_embeddings) == (32, 128, False)


@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
def test_missing_field_is_named(name: str) -> None:
    config = {key: value for key, value in LLAMA_2_7B.items() if key != name}
    with pytest.raises(ValueError, match=f"^{name} is missing"):
        ModelShape.from_hf_config(config)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden_size", "4096", "hidden_size must be an integer of at least 1, got '4096'"),
        ("num_hidden_layers", 0, "num_hidden_layers must be an integer of at least 1, got 0"),
        ("vocab_size", True, "vocab_size must be an integer of at least 1, got True"),
        ("intermediate_size", 1.5, "intermediate_size must be an integer of at least 1, got 1.5"),
        ("head_dim", -64, "head_dim must be an integer of at least 1, got -64"),
        ("num_key_value_heads", 5, r"num_key_value_heads must divide num_attention_heads \(32\), got 5"),
        ("hidden_size", 4097, r"hidden_size must be a multiple of num_attention_heads \(32\)"),
        ("tie_word_embeddings", "yes", "tie_word_embeddings must be true or false, got 'yes'"),
    ],
)
def test_invalid_field_is_named_with_its_value(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelShape.from_hf_config(LLAMA_2_7B | {name: value})


def test_a_shape_made_by_hand_is_checked_too() -> None:
    shape = ModelShape.from_hf_config(LLAMA_2_7B)
    with pytest.raises(ValueError, match="layers must be an integer of at least 1, got 0"):
        replace(shape, layers=0)
    with pytest.raises(ValueError, match=r"kv_heads must divide heads \(32\), got 3"):
        replace(shape, kv_heads=3)


@given(group=st.integers(1, 8), kv_heads=st.integers(1, 8), layers=st.integers(1, 6))
def test_grouping_shrinks_cache_by_the_group_and_leaves_queries(group: int, kv_heads: int, layers: int) -> None:
    grouped = ModelShape(64, layers, group * kv_heads, kv_heads, 8, 128, 100, False)
    full = replace(grouped, kv_heads=group * kv_heads)
    assert full.kv_bytes_per_token(2) == group * grouped.kv_bytes_per_token(2)
    assert full.query_size == grouped.query_size
