"""The demo's tokenizer: a byte-level BPE trained on the demo's own text, and its chat template.

Byte-level means that any text is accepted: what was never seen becomes single bytes. Each word and number
of the tasks is one token with its leading space, and the template puts a space before every message, so
that a word is the same token wherever it stands in a line. A generated answer therefore begins with a
space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.demo.tasks import LEVELS, TASKS, examples, message

BEGIN, END, USER, ASSISTANT, SYSTEM = "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"
SPECIAL_TOKENS = (BEGIN, END, USER, ASSISTANT, SYSTEM)
LARGEST_VOCABULARY = 2048

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('role: expected system, user or assistant') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """A tokenizer of which every word of the tasks is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    # Each piece equally often: merges then follow how common letters are, and rare words become tokens too.
    tokenizer.train_from_iterator(sorted(_pieces(tokenizer, seed)) * 2, trainer)
    return tokenizer


def _pieces(tokenizer: Tokenizer, seed: int) -> set[str]:
    """Every different piece (a word with its space, a sign, a number) of much generated text."""
    pieces = {f" {number}" for number in range(100)}
    for text in _texts(seed):
        for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            pieces.add(text[start:end])
    return pieces


def _texts(seed: int) -> Iterator[str]:
    for task in TASKS:
        for example in islice(examples(task, "train", seed), 4000):
            for level in LEVELS:
                yield " " + message(example.prompt, level)
                yield " " + example.answers[level]


def write_tokenizer(tokenizer: Tokenizer, directory: Path, longest_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face tools read them."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; raises KeyError where the tokenizer lacks it."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found
