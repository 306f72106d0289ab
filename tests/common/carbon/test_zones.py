import re

import pytest

from common.carbon.intensity import Scope, SignalKind
from common.carbon.zones import nearest_zone_intensity, zone_intensity, zone_means
from tests.common.carbon.grid_file import MIDNIGHT


def test_every_row_says_what_it_is() -> None:
    means = zone_means()
    assert len(means) > 150
    for zone, mean in means.items():
        assert zone == mean.zone and (re.fullmatch(r"[A-Z]{2}", zone) or zone == "WORLD")
        assert mean.name and mean.source == "Ember" and mean.year in (2023, 2024)
        assert mean.scope is Scope.LIFECYCLE
        # Life-cycle, no grid is below hydropower's few grams; none above oil in poor plants.
        assert 10 <= mean.g_per_kwh <= 1500, zone


@pytest.mark.parametrize(("zone", "g_per_kwh"), [("WORLD", 473), ("DE", 342), ("FR", 44), ("PL", 615), ("US", 384)])
def test_published_figures_of_2024(zone: str, g_per_kwh: float) -> None:
    intensity = zone_intensity(zone).current(MIDNIGHT)
    assert (intensity.g_per_kwh, intensity.zone, intensity.source) == (g_per_kwh, zone, "Ember, mean of 2024")
    assert (intensity.kind, intensity.scope) == (SignalKind.AVERAGE, Scope.LIFECYCLE)


def test_an_unknown_zone_is_named_with_a_near_one() -> None:
    with pytest.raises(ValueError, match=r"zone 'wrld' must be an ISO 3166-1 alpha-2 code .*; did you mean WORLD\?"):
        zone_intensity("wrld")
    with pytest.raises(ValueError, match=r"did you mean DE\?"):
        zone_intensity("Germany")
    with pytest.raises(ValueError, match=r"did you mean US\?"):
        zone_intensity("us")


@pytest.mark.parametrize(("zone", "nearest"), [("DE", "DE"), ("US-CAL-CISO", "US"), ("GB-13", "GB"), ("ZZ-1", "WORLD")])
def test_a_part_of_a_country_has_its_country(zone: str, nearest: str) -> None:
    assert nearest_zone_intensity(zone).current(MIDNIGHT).zone == nearest
