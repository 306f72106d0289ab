import gzip
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.carbon.csv_intensity import CsvIntensity
from common.clock import ManualClock
from tests.common.carbon.grid_file import COLUMN, HOUR, MIDNIGHT, RAMP, Write, observations


class TestCsvIntensity:
    def test_observation_is_in_force_from_its_hour(self, write: Write) -> None:
        provider = CsvIntensity(write(observations(["300", "310.5", "290"])), "DE", COLUMN)
        for minutes, value, age_seconds in [
            (0, 300.0, 0),
            (59, 300.0, 3540),
            (60, 310.5, 0),
            (130, 290.0, 600),
        ]:
            now = MIDNIGHT + timedelta(minutes=minutes)
            intensity = provider.current(now)
            assert (intensity.g_per_kwh, intensity.age_seconds(now)) == (value, age_seconds)
            assert (intensity.zone, intensity.source) == ("DE", "grid.csv")

    def test_who_has_nothing_in_force_says_so(self, write: Write) -> None:
        path = write(observations(["300", "200"]))
        for hours, fault in [
            (-1, "grid.csv begins later"),
            (7, ""),
            (8, "grid.csv has nothing since 2023-01-01 01:00Z"),
        ]:
            now = MIDNIGHT + hours * HOUR
            provider = CsvIntensity(path, "DE", COLUMN, clock=ManualClock(now))
            assert provider.fault == fault
            assert provider.current(now).source.startswith("annual mean of") == (fault != "")

    def test_gap_keeps_the_last_value_until_it_expires(self, write: Write) -> None:
        provider = CsvIntensity(
            write(observations(["300", "200", "", "", "", "", "100"])),
            "DE",
            COLUMN,
            expires_after_seconds=7200,
        )
        kept = provider.current(MIDNIGHT + 3 * HOUR)
        assert (kept.g_per_kwh, kept.observed_at, kept.source) == (200.0, MIDNIGHT + HOUR, "grid.csv")
        mean = provider.current(MIDNIGHT + 3 * HOUR + timedelta(seconds=1))
        assert (mean.g_per_kwh, mean.observed_at) == (250.0, MIDNIGHT + HOUR)
        assert mean.source == "annual mean of grid.csv"
        assert provider.current(MIDNIGHT + 6 * HOUR).g_per_kwh == 100.0

    def test_missing_rows_are_a_gap_too(self, write: Write) -> None:
        lines = observations(["300", "200", "100", "50"]).splitlines(keepends=True)
        provider = CsvIntensity(write("".join(lines[:2] + lines[4:])), "DE", COLUMN)
        assert provider.current(MIDNIGHT + 2 * HOUR).g_per_kwh == 300.0
        assert provider.history(MIDNIGHT + 3 * HOUR, 4) == [(MIDNIGHT, 300.0), (MIDNIGHT + 3 * HOUR, 50.0)]

    def test_mean_is_of_the_last_year_up_to_the_last_observation(self, write: Write) -> None:
        old = observations(["900"] * 10, MIDNIGHT - timedelta(days=400))
        recent = observations(["100", "300"]).split("\n", 1)[1]
        provider = CsvIntensity(write(old + recent), "DE", COLUMN)
        assert provider.current(MIDNIGHT + timedelta(days=1000)).g_per_kwh == 200.0

    def test_before_the_first_observation_the_mean_of_the_file(self, write: Write) -> None:
        provider = CsvIntensity(write(observations(["100", "300"])), "DE", COLUMN)
        now = MIDNIGHT - timedelta(seconds=1)
        intensity = provider.current(now)
        assert (intensity.g_per_kwh, intensity.age_seconds(now)) == (200.0, 0)
        assert intensity.source == "annual mean of grid.csv"
        assert provider.history(now, 24) == []

    @given(future=st.lists(st.integers(0, 1000), min_size=48, max_size=48), minutes=st.integers(0, 72 * 60))
    def test_the_future_changes_nothing(
        self, tmp_path_factory: pytest.TempPathFactory, future: list[int], minutes: int
    ) -> None:
        known = [str(100 + hour) for hour in range(24)] + [""] * 8
        now = MIDNIGHT + timedelta(minutes=minutes)
        shown = known + [str(value) for value in future]
        cut = shown[: minutes // 60 + 1]
        folder = tmp_path_factory.mktemp("grid")
        for name, values in (("all", shown), ("past", cut)):
            (folder / name).mkdir()
            (folder / name / "grid.csv").write_text(observations(values))
        full, past = (CsvIntensity(folder / name / "grid.csv", "DE", COLUMN) for name in ("all", "past"))
        assert full.current(now) == past.current(now)
        assert full.history(now, 30) == past.history(now, 30)

    def test_history_holds_the_hours_up_to_now(self, write: Write) -> None:
        provider = CsvIntensity(write(observations([str(value) for value in RAMP])), "DE", COLUMN)
        now = MIDNIGHT + timedelta(hours=10, minutes=30)
        assert provider.history(now, 2) == [(MIDNIGHT + 9 * HOUR, RAMP[9]), (MIDNIGHT + 10 * HOUR, RAMP[10])]
        assert len(provider.history(now, 24)) == 11

    def test_compressed_file_byte_order_mark_and_offsets(self, write: Write) -> None:
        text = "\ufeffdatetime,g\r\n2023-01-01T02:00:00+02:00,300\r\n2023-01-01T01:00:00Z,310\r\n\r\n"
        provider = CsvIntensity(write(text, "grid.csv.gz"), "DE", "g")
        assert provider.history(MIDNIGHT + HOUR, 2) == [(MIDNIGHT, 300.0), (MIDNIGHT + HOUR, 310.0)]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"grid\.csv, line 1: exactly one column must begin with 'datetime', got \[\]"),
            ("Datetime,datetime2,g\n", "exactly one column must begin with 'datetime'"),
            ("datetime,h\n2023-01-01,1\n", r"line 1: column 'g' must be there once, got \['datetime', 'h'\]"),
            ("datetime,g\n", "column 'g' must hold at least one value"),
            ("datetime,g\n2023-01-01,\n", "column 'g' must hold at least one value"),
            ("datetime,g\n2023-01-01\n", "line 2: must hold 2 fields, got 1"),
            (
                "datetime,g\nyesterday,1\n",
                "line 2: datetime must be an ISO 8601 date and time, got 'yesterday'",
            ),
            ("datetime,g\n2023-01-01,1\n2023-01-01,1\n", "line 3: datetime must be after the line before"),
            ("datetime,g\n2023-01-01,-1\n", "line 2: g must be a finite number of at least 0, got '-1'"),
            ("datetime,g\n2023-01-01,inf\n", "line 2: g must be a finite number of at least 0, got 'inf'"),
            ("datetime,g\n2023-01-01,n/a\n", "line 2: g must be a finite number of at least 0, got 'n/a'"),
        ],
    )
    def test_fault_is_named_with_its_line(self, write: Write, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CsvIntensity(write(text), "DE", "g")

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", gzip.compress(b"datetime,g\n" * 99, mtime=0)[:-20], b"plain"])
    def test_file_that_is_no_text_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / ("grid.csv" if content.startswith(b"\xff") else "grid.csv.gz")
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"grid\.csv\S*: must be UTF-8 text, plain or \.gz"):
            CsvIntensity(path, "DE", "g")


class TestRealYear:
    def test_electricity_maps_export(self) -> None:
        folder = Path(os.environ.get("PITH_DATA_DIR", "../shared/data"))
        path = folder / "carbon_em_hpe" / "DE-LU_2023_hourly.csv.gz"
        if not path.exists():
            pytest.skip(f"{path} is absent; set PITH_DATA_DIR to the data folder")
        provider = CsvIntensity(path, "DE-LU", COLUMN)
        year = provider.history(datetime(2023, 12, 31, 23, 30, tzinfo=UTC), 365 * 24)
        assert len(year) == 8760
        assert year[0][0] == MIDNIGHT
        assert all(10 < g_per_kwh < 1000 for _, g_per_kwh in year)
        later = provider.current(datetime(2025, 1, 1, tzinfo=UTC))
        assert later.g_per_kwh == pytest.approx(sum(value for _, value in year) / 8760)
        assert later.source == "annual mean of DE-LU_2023_hourly.csv.gz"
