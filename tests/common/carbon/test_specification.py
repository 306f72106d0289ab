from pathlib import Path

import pytest

from common.carbon.intensity import Scope
from common.carbon.polled import PolledIntensity
from common.carbon.specification import ProviderSettings, is_live, provider_from_spec
from common.clock import ManualClock
from tests.common.carbon.grid_api import TOKEN, GridApi, said
from tests.common.carbon.grid_file import COLUMN, HOUR, MIDNIGHT, RAMP_ROWS, Write, observations


class TestProviderFromSpec:
    def test_constant(self) -> None:
        intensity = provider_from_spec("constant:DE:420").current(MIDNIGHT)
        assert (intensity.g_per_kwh, intensity.zone, intensity.scope) == (420.0, "DE", Scope.DIRECT)
        assert provider_from_spec("constant:DE:420:lifecycle").current(MIDNIGHT).scope is Scope.LIFECYCLE

    def test_profile_beside_its_base(self, write: Write) -> None:
        path = write(f"# zone: DEMO\nhour,g_per_kwh\n{RAMP_ROWS}", "day.csv")
        assert provider_from_spec("profile:day.csv", path.parent).current(MIDNIGHT).zone == "DEMO"
        assert provider_from_spec(f"profile:{path}", Path("elsewhere")).current(MIDNIGHT).g_per_kwh == 100.0

    def test_csv(self, write: Write) -> None:
        path = write(observations(["300"]))
        intensity = provider_from_spec(f"csv:{path.name}:DE:{COLUMN}:lifecycle", path.parent).current(MIDNIGHT)
        assert (intensity.g_per_kwh, intensity.zone, intensity.scope) == (300.0, "DE", Scope.LIFECYCLE)

    def test_zone(self) -> None:
        intensity = provider_from_spec("zone:DE").current(MIDNIGHT)
        assert (intensity.zone, intensity.scope, intensity.source) == ("DE", Scope.LIFECYCLE, "Ember, mean of 2024")

    def test_csv_expires_as_it_is_told(self, write: Write) -> None:
        path = write(observations(["300", "100"]))
        provider = provider_from_spec(f"csv:{path}:DE:{COLUMN}", settings=ProviderSettings(expires_after_seconds=7200))
        assert provider.current(MIDNIGHT + 3 * HOUR).g_per_kwh == 100.0
        assert provider.current(MIDNIGHT + 4 * HOUR).g_per_kwh == 200.0

    @pytest.mark.parametrize(
        ("spec", "path", "query", "fallback"),
        [
            ("electricitymaps:US-CAL-CISO", "/v3/carbon-intensity/history", "lifecycle", "US"),
            ("electricitymaps:DE:direct", "/v3/carbon-intensity/history", "direct", "DE"),
            ("uk", "/intensity/2022-12-18T01:00Z/2023-01-01T00:00Z", None, "GB"),
            ("uk:13", "/regional/intensity/2022-12-18T01:00Z/2023-01-01T00:00Z/regionid/13", None, "GB"),
        ],
    )
    async def test_live(self, tmp_path: Path, spec: str, path: str, query: str | None, fallback: str) -> None:
        assert is_live(spec)
        async with GridApi(lambda _: said({}, 500)) as server:
            kept = tmp_path / "intensity.json"
            settings = ProviderSettings(3600.0, 60.0, server.url, TOKEN, server.url, kept)
            provider = provider_from_spec(spec, settings=settings, clock=ManualClock(MIDNIGHT))
            assert isinstance(provider, PolledIntensity)
            await provider.start()
            (asked,) = server.asked
            assert (asked.path, asked.query.get("emissionFactorType")) == (path, query)
            assert asked.headers.get("auth-token") == (TOKEN if query else None)
            assert (provider.current(MIDNIGHT).zone, provider.fault) == (fallback, "HTTP 500")
            await provider.close()
        assert TOKEN not in repr(settings)

    def test_what_is_declared_is_not_live_and_never_at_fault(self, write: Write) -> None:
        path = write(f"# zone: DEMO\nhour,g_per_kwh\n{RAMP_ROWS}", "day.csv")
        csv = write(observations(["300"]))
        for spec in ("zone:WORLD", "constant:DE:420", f"profile:{path}", f"csv:{csv}:DE:{COLUMN}"):
            assert not is_live(spec)
            assert provider_from_spec(spec).fault == ""

    @pytest.mark.parametrize(
        "spec",
        [
            "",
            "constant",
            "constant:DE",
            "constant::420",
            "constant:DE:1:direct:x",
            "profile:",
            "csv:a.csv:DE",
            "api:DE",
            "zone:",
            "zone:DE:direct",
            "electricitymaps:",
            "electricitymaps",
            "electricitymaps:DE:direct:x",
            "uk:13:14",
        ],
    )
    def test_unknown_form_lists_the_forms(self, spec: str) -> None:
        with pytest.raises(ValueError, match="intensity provider must be zone:CODE, constant:ZONE:G_PER_KWH"):
            provider_from_spec(spec)

    def test_fault_within_a_form_is_named(self) -> None:
        with pytest.raises(ValueError, match="G_PER_KWH must be a finite number of at least 0, got 'much'"):
            provider_from_spec("constant:DE:much")
        with pytest.raises(ValueError, match="SCOPE must be direct or lifecycle, got 'marginal'"):
            provider_from_spec("constant:DE:1:marginal")
        with pytest.raises(ValueError, match="SCOPE must be direct or lifecycle, got 'all'"):
            provider_from_spec("electricitymaps:DE:all")
        with pytest.raises(ValueError, match="zone 'Germany' must be an ISO 3166-1"):
            provider_from_spec("zone:Germany")
        for region in ("", "0", "18", "London", "१"):
            with pytest.raises(ValueError, match=f"REGION must be 1 to 17, got '{region}'"):
                provider_from_spec(f"uk:{region}")

    def test_absent_file_is_an_error_at_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            provider_from_spec("csv:absent.csv:DE:g", tmp_path)
