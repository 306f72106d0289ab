"""What a request may ask for: limits that the router's door and the engine's share, and that the contract states."""

import math
from collections.abc import Sequence

from google.protobuf.struct_pb2 import Struct

from common.errors import Violations

MAX_ID_CHARACTERS = 128
MAX_TEMPERATURE = 10.0
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
"""Beyond these, logits would leave the range of their type."""
MAX_LOGIT_BIASES = 4096
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_SUPPRESSED_WORDS = 256
"""Of a request and of a directive: an engine, which gets the words of both, takes twice as many."""
MAX_SUPPRESSED_CHARACTERS = 64
MAX_TEMPLATE_VARIABLES = 8
MAX_VARIABLE_NAME_CHARACTERS = 64
MAX_VARIABLE_CHARACTERS = 256
OWN_TEMPLATE_VARIABLES = frozenset(
    {
        *("messages", "add_generation_prompt", "continue_final_message", "tools", "documents"),
        *("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"),
        *("raise_exception", "strftime_now"),
        *("range", "dict", "lipsum", "cycler", "joiner", "namespace"),
        *("self", "loop", "caller", "super", "varargs", "kwargs"),
    }
)
"""What a chat template is given in any case: by the engine, by those that templates are written for, and by Jinja."""


def check_zone(zone: str) -> str:
    """Return the name of a grid zone, as engines and routers are told it; ValueError where it is none."""
    if len(zone) > MAX_ID_CHARACTERS:
        raise ValueError(f"has {len(zone):,} characters; at most {MAX_ID_CHARACTERS}")
    if not zone.isprintable():
        raise ValueError("has control or other unprintable characters")
    # It would not be seen, and the name not be found.
    if zone != zone.strip():
        raise ValueError("begins or ends with a space")
    return zone


def check_stop(faults: Violations, field: str, stop: Sequence[str]) -> None:
    """Stop strings: any characters, blank ones too."""
    _check_strings(faults, field, stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)


def check_suppressed_words(
    faults: Violations, field: str, words: Sequence[str], most: int = MAX_SUPPRESSED_WORDS
) -> None:
    """Suppressed words: of each, something must be visible."""
    if _check_strings(faults, field, words, most, MAX_SUPPRESSED_CHARACTERS):
        for index, word in enumerate(words):
            faults.require(
                not word or bool(word.strip()), f"{field}[{index}]", "is blank; at least 1 visible character"
            )


def _check_strings(faults: Violations, field: str, values: Sequence[str], most: int, longest: int) -> bool:
    """Whether there are few enough to look at each."""
    if not faults.require(len(values) <= most, field, f"has {len(values):,} entries; at most {most}"):
        return False
    for index, value in enumerate(values):
        at = f"{field}[{index}]"
        faults.require(len(value) > 0, at, "is empty; at least 1 character")
        faults.require(len(value) <= longest, at, f"has {len(value):,} characters; at most {longest}")
    return True


def check_template_variables(faults: Violations, field: str, variables: Struct) -> bool:
    """Variables of a chat template beside its own: few, short, and of a type that a template can compare.

    Returns whether there are few enough to look at each.
    """
    count = len(variables.fields)
    if not faults.require(
        count <= MAX_TEMPLATE_VARIABLES, field, f"has {count:,} variables; at most {MAX_TEMPLATE_VARIABLES}"
    ):
        return False
    for name in sorted(variables.fields):
        value, at = variables.fields[name], f"{field}[{_clipped(name)}]"
        if not name.isidentifier() or len(name) > MAX_VARIABLE_NAME_CHARACTERS:
            faults.add(
                at, f"must be named as in Python: letters, digits and '_', at most {MAX_VARIABLE_NAME_CHARACTERS}"
            )
        elif name in OWN_TEMPLATE_VARIABLES:
            faults.add(at, "is the chat template's own, which no request may set")
        kind = value.WhichOneof("kind")
        if kind == "string_value":
            characters = len(value.string_value)
            faults.require(
                characters <= MAX_VARIABLE_CHARACTERS,
                at,
                f"has {characters:,} characters; at most {MAX_VARIABLE_CHARACTERS}",
            )
        elif kind == "number_value":
            faults.require(math.isfinite(value.number_value), at, f"is {value.number_value}; must be a finite number")
        else:
            faults.require(kind == "bool_value", at, "must be a boolean, a number or text")
    return True


def _clipped(name: str) -> str:
    return repr(name if len(name) <= MAX_VARIABLE_NAME_CHARACTERS else name[: MAX_VARIABLE_NAME_CHARACTERS - 1] + "…")
