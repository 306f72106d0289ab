"""Files of hourly intensities, as exports have them."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

HOUR = timedelta(hours=1)
MIDNIGHT = datetime(2023, 1, 1, tzinfo=UTC)
COLUMN = "Carbon Intensity gCO₂eq/kWh (direct)"
RAMP = [float(100 + 10 * hour) for hour in range(24)]
RAMP_ROWS = "".join(f"{hour},{value}\n" for hour, value in enumerate(RAMP))

Write = Callable[..., Path]


def observations(values: list[str], start: datetime = MIDNIGHT) -> str:
    rows = [f"{start + index * HOUR:%Y-%m-%d %H:%M:%S},DE,{value}" for index, value in enumerate(values)]
    return "\n".join([f"Datetime (UTC),Zone Id,{COLUMN}", *rows]) + "\n"
