from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.carbon.daily_profile import ConstantIntensity, DailyProfile, read_daily_profile
from common.carbon.intensity import Scope, SignalKind
from tests.common.carbon.grid_file import HOUR, MIDNIGHT, RAMP, RAMP_ROWS, Write


class TestConstantIntensity:
    def test_same_value_always(self) -> None:
        provider = ConstantIntensity("SE", 45.0, scope=Scope.LIFECYCLE)
        for now in (MIDNIGHT, MIDNIGHT + timedelta(days=4000, minutes=17)):
            intensity = provider.current(now)
            assert (intensity.g_per_kwh, intensity.zone, intensity.source) == (45.0, "SE", "constant")
            assert (intensity.kind, intensity.scope) == (SignalKind.AVERAGE, Scope.LIFECYCLE)
            assert 0 <= intensity.age_seconds(now) < 3600
        assert provider.history(MIDNIGHT, 2) == [(MIDNIGHT - HOUR, 45.0), (MIDNIGHT, 45.0)]

    def test_impossible_value_is_refused(self) -> None:
        with pytest.raises(ValueError, match="g_per_kwh must be finite and at least 0, got -1"):
            ConstantIntensity("SE", -1.0)


class TestDailyProfile:
    @given(day=st.integers(0, 3000), hour=st.integers(0, 23), second=st.integers(0, 3599))
    def test_each_value_holds_for_its_hour_of_every_day(self, day: int, hour: int, second: int) -> None:
        now = MIDNIGHT + timedelta(days=day, hours=hour, seconds=second)
        intensity = DailyProfile("X", RAMP).current(now)
        assert intensity.g_per_kwh == RAMP[hour]
        assert intensity.age_seconds(now) == second

    def test_hours_are_of_the_utc_day(self) -> None:
        tokyo = timezone(timedelta(hours=9))
        assert DailyProfile("X", RAMP).current(datetime(2023, 1, 1, 3, tzinfo=tokyo)).g_per_kwh == RAMP[18]

    def test_history_ends_with_the_present_hour(self) -> None:
        now = MIDNIGHT + timedelta(hours=1, minutes=30)
        expected = [(MIDNIGHT - HOUR, RAMP[23]), (MIDNIGHT, RAMP[0]), (MIDNIGHT + HOUR, RAMP[1])]
        assert DailyProfile("X", RAMP).history(now, 3) == expected

    def test_wrong_number_of_hours_is_refused(self) -> None:
        with pytest.raises(ValueError, match="hourly_g_per_kwh must hold 24 values, got 23"):
            DailyProfile("X", RAMP[:23])


class TestReadDailyProfile:
    def test_reads_values_zone_and_scope(self, write: Write) -> None:
        text = f"# a sunny day\n# zone: DEMO\n# scope: lifecycle\nhour,g_per_kwh\n{RAMP_ROWS}"
        intensity = read_daily_profile(write(text, "day.csv")).current(MIDNIGHT + 5 * HOUR)
        assert (intensity.g_per_kwh, intensity.zone) == (RAMP[5], "DEMO")
        assert (intensity.scope, intensity.source) == (Scope.LIFECYCLE, "day.csv")

    def test_scope_is_direct_where_absent(self, write: Write) -> None:
        provider = read_daily_profile(write(f"# zone: DEMO\nhour,g_per_kwh\n{RAMP_ROWS}"))
        assert provider.current(MIDNIGHT).scope is Scope.DIRECT

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"grid\.csv: columns must be hour,g_per_kwh, got ''"),
            ("# zone: X\nhour,grams\n", "columns must be hour,g_per_kwh, got 'hour,grams'"),
            (f"hour,g_per_kwh\n{RAMP_ROWS}", "zone is missing"),
            (
                f"# zone: X\n# scope: all\nhour,g_per_kwh\n{RAMP_ROWS}",
                "scope must be direct or lifecycle, got 'all'",
            ),
            (f"# zone: X\nhour,g_per_kwh\n{RAMP_ROWS[:-9]}", "hour 23 is missing"),
            (
                f"# zone: X\nhour,g_per_kwh\n{RAMP_ROWS}5,1\n",
                "line 27: hour must be one of 0 to 23, each once, got '5'",
            ),
            ("# zone: X\nhour,g_per_kwh\n24,1\n", "line 3: hour must be one of 0 to 23, each once, got '24'"),
            ("# zone: X\nhour,g_per_kwh\n0,1,2\n", "line 3: must hold 2 fields, got 3"),
            (
                "# zone: X\nhour,g_per_kwh\n0,nan\n",
                "line 3: g_per_kwh must be a finite number of at least 0, got 'nan'",
            ),
        ],
    )
    def test_fault_is_named_with_its_line(self, write: Write, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            read_daily_profile(write(text))
