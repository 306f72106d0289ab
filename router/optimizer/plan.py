"""A plan: for each policy, model and task the share of requests that each directive gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

Shares = tuple[tuple[str, float], ...]
"""(directive, share of eligible requests), summing to 1."""

ALL_AT_L0: Shares = (("L0", 1.0),)


@dataclass(frozen=True, slots=True)
class Plan:
    """Shares by (policy, model, task); whatever it does not name is served at L0."""

    entries: Mapping[tuple[str, str, str], Shares]
    made_at: datetime
    g_per_kwh: float | None = None
    """The intensity that it was made for."""

    def shares(self, policy: str, model: str, task: str) -> Shares:
        return self.entries.get((policy, model, task), ALL_AT_L0)
