"""A directive: text, and more, that steers how an answer is generated."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Final

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_TEXT_CHARACTERS: Final = 1_000
TemplateValue = bool | float | str
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Placement(Enum):
    """Where a directive's text goes."""

    TAIL = "tail"
    """The end of the last user message: the prefix stays as it was, so prefix caches keep working."""

    SYSTEM = "system"
    """The system message."""

    NATIVE = "native"
    """Not in the messages: variables of the model's chat template."""


@dataclass(frozen=True, slots=True)
class Directive:
    """One generation directive, as the policy database holds it.

    `revision` counts the changes to what an answer depends on (text, placement, cap, ...): quality bounds speak of one
    revision, and a new one is closed until the evaluator has judged it.
    """

    name: str
    text: str = ""
    placement: Placement = Placement.TAIL
    max_output_tokens: int = 0
    """Cap on the answer; 0 is none."""
    stop: tuple[str, ...] = ()
    suppressed_words: tuple[str, ...] = ()
    history_messages: int = 0
    """Newest messages that are kept, beside the system message; 0 is all."""
    template_variables: tuple[tuple[str, TemplateValue], ...] = ()
    """(name, value), by name, for the model's chat template; only with Placement.NATIVE."""
    model: str = ""
    """"name@digest" of a model that answers in the place of the one asked for; empty where that does."""
    revision: int = 1
    updated_at: datetime = field(default=EPOCH, compare=False)
    updated_by: str = field(default="", compare=False)

    @property
    def etag(self) -> str:
        return etag("directive", self.name, self.revision)

    @property
    def changes_messages(self) -> bool:
        """Whether anything but the model that answers makes another answer of it."""
        return bool(
            self.text.strip()
            or self.max_output_tokens
            or self.stop
            or self.suppressed_words
            or self.history_messages
            or self.template_variables
        )


L0: Final = Directive(name="L0")
"""No directive: always allowed, never edited, the baseline that every quality is a share of."""

TRIAL: Final = "trial"
"""The name that a directive goes by while it is tried and is not one yet."""

SEEDED: Final = (
    Directive(name="L1", text="Always answer briefly"),
    Directive(name="L2", text="Always answer very briefly"),
)
"""The levels that SPROUT published, which a new policy database starts with."""

PRIOR_RELATIVE_CARBON: Final = {"L0": 1.0, "L1": 0.224, "L2": 0.150}
"""Energy of a request as a share of L0's before anything is observed: the mean over six question sets with Llama-2-13B
that SPROUT's authors measured. Only ever used to order what to try first."""


def etag(kind: str, name: str, revision: int) -> str:
    """Opaque version tag of a resource (AIP-154), quoted as RFC 9110 has it."""
    return '"' + hashlib.sha256(f"{kind}/{name}/{revision}".encode()).hexdigest()[:16] + '"'
