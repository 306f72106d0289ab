import math

import pytest

from common.energy.reading import Energy, EnergySource, total_energy

MEASURED, ATTRIBUTED, MODELLED = EnergySource.MEASURED, EnergySource.ATTRIBUTED, EnergySource.MODELLED


@pytest.mark.parametrize(
    ("first", "second", "weaker"),
    [
        (MEASURED, MEASURED, MEASURED),
        (MEASURED, ATTRIBUTED, ATTRIBUTED),
        (ATTRIBUTED, MODELLED, MODELLED),
        (MEASURED, MODELLED, MODELLED),
    ],
)
def test_a_sum_claims_no_more_than_its_weaker_part(
    first: EnergySource, second: EnergySource, weaker: EnergySource
) -> None:
    assert Energy(1.5, first) + Energy(2.0, second) == Energy(3.5, weaker)
    assert Energy(2.0, second) + Energy(1.5, first) == Energy(3.5, weaker)


def test_total_of_known_parts() -> None:
    parts = [Energy(1.0, MEASURED), Energy(2.0, ATTRIBUTED), Energy(4.0, MEASURED)]
    assert total_energy(parts) == Energy(7.0, ATTRIBUTED)
    assert total_energy(parts[:1]) == parts[0]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_total_with_an_unknown_part_is_unknown(position: int) -> None:
    parts: list[Energy | None] = [Energy(1.0, MEASURED), Energy(2.0, MEASURED)]
    parts.insert(position, None)
    assert total_energy(parts) is None


def test_total_of_nothing_is_unknown() -> None:
    assert total_energy([]) is None


@pytest.mark.parametrize("joules", [-1e-9, math.nan, math.inf])
def test_impossible_energy_is_refused(joules: float) -> None:
    with pytest.raises(ValueError, match="joules must be finite and at least 0"):
        Energy(joules, MEASURED)


def test_zero_is_a_known_energy() -> None:
    assert total_energy([Energy(0.0, MODELLED)]) == Energy(0.0, MODELLED)
