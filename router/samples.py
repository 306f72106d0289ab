"""Samples of served requests, the answers at hand for them, and the scores that an evaluator gave."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from common.quality.bound import Cell
from common.quality.pairwise import Comparison
from router.directives.compile import Turn


@dataclass(frozen=True, slots=True)
class Answer:
    """One level's answer to a sample's prompt."""

    directive: str
    directive_revision: int
    text: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A served request that was kept to judge directives by, as it came: no directive is in its turns."""

    sample_id: str
    tenant: str
    model: str
    """Name and digest, as cells have it."""
    task: str
    turns: tuple[Turn, ...]
    sampling_json: str
    """pith.common.v1.Sampling as JSON, the seed included."""
    limits_json: str
    reference: str
    """Empty where none is known."""
    grader: str
    served_at: datetime
    answers: tuple[Answer, ...]


def sample_id(secret: bytes, tenant: str, request_id: str, started_at: datetime) -> str:
    """Of a served request: the same for the same ledger entry, so that what is written twice is there once; another
    day's request of that id is another sample. Callers, who choose request ids, do not know it."""
    name = f"{tenant}\x1f{request_id}\x1f{started_at.astimezone(UTC).isoformat()}"
    return hashlib.blake2b(name.encode(), key=secret, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Score:
    """Quality of one answer beside L0's on the same prompt, both in [0, 1], by one judge."""

    cell: Cell
    directive_revision: int
    sample_id: str
    quality: float
    baseline_quality: float
    judge: str
    scored_at: datetime
    comparison: Comparison | None = None
    """Where the answers were compared with one another."""
    tenant: str = ""
    """Whose request it was."""
