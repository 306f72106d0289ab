"""How a model is named where its weights matter: "name@digest", as in cells of quality."""

from __future__ import annotations

import re
from typing import Final

DIGEST_CHARACTERS: Final = 12
"""Of the digest: enough to tell models apart, short enough to read."""
MODEL_IDENTITY: Final = re.compile(r"[^@\s]+@[0-9A-Za-z._-]+")


def model_identity(model: str, digest: str) -> str:
    """Args: as an engine reports them."""
    return f"{model}@{digest[:DIGEST_CHARACTERS]}"
