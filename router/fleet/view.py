"""What this router sees of an engine, for reports."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pith.engine.v1 import control_pb2


class EngineState(Enum):
    """Whether requests are sent to an engine; the names are the contract's, without prefix."""

    READY = "ready"
    UNREACHABLE = "unreachable"
    """Never reached, or lost."""
    DRAINING = "draining"
    BROKEN = "broken"
    """Reachable, but failed too often; tried again from time to time."""


@dataclass(frozen=True, slots=True)
class EngineView:
    """One engine at one moment."""

    name: str
    address: str
    state: EngineState
    model: control_pb2.ModelInfo | None
    """As last reported; None where it was never reached."""
    load: control_pb2.Load | None
    """None while it is not reached."""
    in_flight: int
    """This router's requests there."""
    fault: str
    """Why it is not ready; empty where it is."""
    zone: str = ""
    """Of the grid, by whose intensity its energy is charged; empty for the default's."""
