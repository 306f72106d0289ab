"""The model that the engine's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.tiny_model import write_model
from tests.integration.served_engine import LONG_CONTEXT


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Without an end token, answers are exactly as long as asked for.
    return write_model(
        tmp_path_factory.mktemp("models") / "tiny", seed=1, max_position_embeddings=LONG_CONTEXT, eos_token_id=None
    )
