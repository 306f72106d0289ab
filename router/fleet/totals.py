"""What an engine has done since it started, as it says."""

from __future__ import annotations

from dataclasses import dataclass

from pith.common.v1 import energy_pb2
from pith.engine.v1 import control_pb2

from common.energy.reading import EnergySource


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """Running totals of one engine's process. Unchecked: an engine may report nonsense."""

    instance_id: str
    """Of that process."""
    busy_seconds: float
    """Of the device, in which steps ran."""
    idle_seconds: float
    """In which none did."""
    idle_joules: float | None
    """Of the idle time; None where unknown."""
    idle_source: EnergySource | None
    """None where the energy is unknown."""


def read_totals(load: control_pb2.Load) -> EngineTotals | None:
    """None where the engine tells of none, as those of an earlier version."""
    if not load.instance_id:
        return None
    energy = load.idle_energy_total
    # What no source vouches for is not known.
    source = _SOURCES.get(energy.source) if load.HasField("idle_energy_total") else None
    return EngineTotals(
        instance_id=load.instance_id,
        busy_seconds=load.busy_seconds_total,
        idle_seconds=load.idle_seconds_total,
        idle_joules=None if source is None else energy.joules,
        idle_source=source,
    )


_SOURCES = {energy_pb2.EnergySource.Value(f"ENERGY_SOURCE_{source.name}"): source for source in EnergySource}
