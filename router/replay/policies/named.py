"""Policies by the name that a command line gives."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from router.replay.policies.hindsight import Hindsight
from router.replay.policies.one_level import Base, Co2Opt
from router.replay.policies.oracle import Oracle
from router.replay.policies.pith import Pith
from router.replay.policies.router import Router
from router.replay.policies.sprout import Sprout, Static
from router.replay.recordings import Quality, RecordedSet
from router.replay.replay import Factory

POLICIES: Mapping[str, Factory] = MappingProxyType(
    {
        "base": lambda setting, truth: Base(),
        "co2_opt": lambda setting, truth: Co2Opt(truth),
        "static": Static,
        "sprout": Sprout,
        "oracle": lambda setting, truth: Oracle(truth),
        "hindsight": Hindsight,
        "pith": lambda setting, truth: Pith(setting),
        "router": lambda setting, truth: Router(setting),
        "router_strict": lambda setting, truth: Router(setting, budget=False),
    }
)

PUBLISHED: Final = ("static", "sprout", "oracle")
"""Policies that go by the judge's preference and the extremes of the year."""
WITHOUT_QUALITY: Final = frozenset({"base", "co2_opt"})
"""Policies that look at carbon alone."""


def check_known(name: str, recorded: RecordedSet, quality: Quality) -> None:
    """Raises ValueError where the policy of that name goes by what was not recorded."""
    if name in WITHOUT_QUALITY:
        return
    # The published ones go by preference, whatever is asked for.
    preferred = np.isnan(recorded.preference).sum(axis=1) == 0
    enough = preferred
    if quality is Quality.ACCURACY and name not in PUBLISHED:
        enough = preferred | recorded.checkable[recorded.task]
    if not enough.all():
        known = int(preferred.sum())
        raise ValueError(
            f"policy {name} goes by which level a judge preferred, which is known of {known:,} of {len(recorded):,} "
            f"prompts; {' and '.join(sorted(WITHOUT_QUALITY))} can be replayed"
        )
