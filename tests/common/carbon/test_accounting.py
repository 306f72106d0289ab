import math
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.carbon.accounting import CarbonSettings, embodied_grams, footprint, operational_grams, sci
from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource

SPROUT_EMBODIED_GRAMS = 26_356.568
FIVE_YEARS_SECONDS = 157_680_000
SETTINGS = CarbonSettings(pue=1.2, embodied_grams_total=SPROUT_EMBODIED_GRAMS, lifetime_years=5)


def intensity(g_per_kwh: float) -> Intensity:
    observed_at = datetime(2023, 5, 1, 12, tzinfo=UTC)
    return Intensity(g_per_kwh, "DE", SignalKind.AVERAGE, Scope.DIRECT, observed_at, "test")


def test_one_kilowatt_hour_at_400_grams_and_pue_1_2() -> None:
    assert operational_grams(3_600_000, 400, 1.2) == pytest.approx(480)


def test_embodied_carbon_of_a_second_in_sprout() -> None:
    assert embodied_grams(1, SPROUT_EMBODIED_GRAMS, FIVE_YEARS_SECONDS) == pytest.approx(1.6715e-4, rel=1e-4)
    assert SETTINGS.lifetime_seconds == FIVE_YEARS_SECONDS


def test_embodied_carbon_of_a_share_of_the_device() -> None:
    assert embodied_grams(10, 1000, 100, share=0.25) == 25
    assert embodied_grams(FIVE_YEARS_SECONDS, 1000, FIVE_YEARS_SECONDS) == 1000


def test_mean_request_of_sprout() -> None:
    # 1218 J and 4.90 s without a directive: 0.0338 g at 100 g/kWh and PUE 1, and 8.2e-4 g embodied (2.4 %).
    settings = CarbonSettings(pue=1, embodied_grams_total=SPROUT_EMBODIED_GRAMS, lifetime_years=5)
    result = footprint(Energy(1218, EnergySource.MEASURED), 4.90, intensity(100), settings)
    assert result is not None
    assert result.operational_grams == pytest.approx(0.03383, rel=1e-3)
    assert result.embodied_grams == pytest.approx(8.19e-4, rel=1e-3)
    assert result.embodied_grams / result.total_grams == pytest.approx(0.024, abs=5e-4)


def test_footprint_carries_its_origin() -> None:
    result = footprint(Energy(1.0, EnergySource.MODELLED), 0.5, intensity(300), SETTINGS)
    assert result is not None
    assert result.energy_source is EnergySource.MODELLED
    assert result.intensity == intensity(300)
    assert result.pue == SETTINGS.pue


def test_unknown_energy_has_no_footprint() -> None:
    assert footprint(None, 0.5, intensity(300), SETTINGS) is None


def test_a_grid_without_emissions_leaves_the_embodied_part() -> None:
    result = footprint(Energy(5.0, EnergySource.MEASURED), 2.0, intensity(0), SETTINGS)
    assert result is not None
    assert result.operational_grams == 0
    assert result.total_grams == result.embodied_grams > 0


@given(
    joules=st.floats(0, 1e6),
    seconds=st.floats(0, 1e4),
    g_per_kwh=st.floats(0, 1500),
    factor=st.floats(1, 100),
)
def test_footprint_is_proportional_to_the_work(joules: float, seconds: float, g_per_kwh: float, factor: float) -> None:
    one = footprint(Energy(joules, EnergySource.MEASURED), seconds, intensity(g_per_kwh), SETTINGS)
    many = footprint(Energy(factor * joules, EnergySource.MEASURED), factor * seconds, intensity(g_per_kwh), SETTINGS)
    assert one is not None
    assert many is not None
    assert many.total_grams == pytest.approx(factor * one.total_grams, rel=1e-9)
    assert one.total_grams == one.operational_grams + one.embodied_grams


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pue", 0.99, "pue must be finite and at least 1, got 0.99"),
        ("pue", math.nan, "pue must be finite and at least 1, got nan"),
        ("embodied_grams_total", -1.0, "embodied_grams_total must be finite and at least 0, got -1.0"),
        ("lifetime_years", 0.0, "lifetime_years must be finite and above 0, got 0.0"),
        ("lifetime_years", math.inf, "lifetime_years must be finite and above 0, got inf"),
    ],
)
def test_impossible_settings_are_refused(name: str, value: float, message: str) -> None:
    figures = {"pue": 1.2, "embodied_grams_total": 1000.0, "lifetime_years": 5.0} | {name: value}
    with pytest.raises(ValueError, match=message):
        CarbonSettings(**figures)


@pytest.mark.parametrize("energy", [None, Energy(1.0, EnergySource.MEASURED)])
@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_impossible_time_is_refused(energy: Energy | None, seconds: float) -> None:
    with pytest.raises(ValueError, match="busy_seconds must be finite and at least 0"):
        footprint(energy, seconds, intensity(100), SETTINGS)


@dataclass(frozen=True)
class Part:
    """Of what a rate of emission counts."""

    building_joules: float
    operational_grams: float
    embodied_grams: float


def part(joules: float, pue: float, g_per_kwh: float, making_grams: float) -> Part:
    return Part(joules * pue, operational_grams(joules, g_per_kwh, pue), making_grams)


def test_a_thousand_mean_requests_of_sprout_on_the_grid_of_the_united_states() -> None:
    """1218 J and 4.90 s each, PUE 1.2, 373.4 g/kWh (about the mean of EPA's eGRID 2022): by hand,
    E = 1.218 MJ x 1.2 = 0.406 kWh, E x I = 151.6 g, M = 4900 s of 26.36 kg over five years = 0.819 g."""
    making = embodied_grams(4900, SPROUT_EMBODIED_GRAMS, FIVE_YEARS_SECONDS)
    found = sci([part(1_218_000, 1.2, 373.4, making)], requests=1000, output_tokens=250_000)
    assert found is not None
    assert found.energy_kwh == pytest.approx(0.406)
    assert found.intensity_g_per_kwh == pytest.approx(373.4)
    assert found.embodied_grams == pytest.approx(0.819, rel=1e-3)
    assert found.grams_per_request == pytest.approx(0.15242, rel=1e-4)
    assert found.grams_per_thousand_output_tokens == pytest.approx(0.60968, rel=1e-4)


def test_requests_evaluation_and_idle_devices_by_hand() -> None:
    """2 kWh at 100 g/kWh, 1 kWh at 400 and 1 kWh at 200, overhead included: 800 g over 4 kWh."""
    parts = [
        part(3.6e6, 2.0, 100, 10.0),
        part(1.8e6, 2.0, 400, 5.0),
        part(3.0e6, 1.2, 200, 85.0),
    ]
    found = sci(parts, requests=50, output_tokens=0)
    assert found is not None
    assert (found.energy_kwh, found.intensity_g_per_kwh) == pytest.approx((4.0, 200.0))
    assert (found.embodied_grams, found.total_grams) == pytest.approx((100.0, 900.0))
    assert found.grams_per_request == pytest.approx(18.0)
    assert found.grams_per_thousand_output_tokens is None


def test_no_rate_without_requests_or_energy() -> None:
    assert sci([part(3.6e6, 1.0, 100, 1.0)], requests=0, output_tokens=0) is None
    assert sci([part(0.0, 1.0, 100, 1.0)], requests=1, output_tokens=1) is None
    assert sci([], requests=1, output_tokens=1) is None


@given(
    st.lists(
        st.builds(part, st.just(0.0) | st.floats(1e-3, 1e9), st.floats(1, 3), st.floats(0, 1500), st.floats(0, 1e6)),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 10**6),
    st.integers(1, 10**9),
)
def test_rate_times_requests_is_every_gram_and_the_mean_intensity_lies_among_them(
    parts: list[Part], requests: int, output_tokens: int
) -> None:
    found = sci(parts, requests, output_tokens)
    if found is None:
        assert sum(one.building_joules for one in parts) == 0
        return
    grams = math.fsum(one.operational_grams + one.embodied_grams for one in parts)
    assert found.grams_per_request * requests == pytest.approx(grams, rel=1e-9)
    assert found.grams_per_thousand_output_tokens is not None
    assert found.grams_per_thousand_output_tokens * output_tokens / 1000 == pytest.approx(grams, rel=1e-9)
    intensities = [one.operational_grams / (one.building_joules / 3.6e6) for one in parts if one.building_joules]
    assert min(intensities) * (1 - 1e-9) <= found.intensity_g_per_kwh <= max(intensities) * (1 + 1e-9)
