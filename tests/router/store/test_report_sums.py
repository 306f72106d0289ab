"""Whatever the ledger holds: sums by any dimensions are the total, no gram is counted twice, and none beside another
signal's."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete

from common.carbon.accounting import operational_grams
from common.carbon.intensity import Intensity, Scope, Signal, SignalKind
from common.energy.reading import Energy, EnergySource
from router.ledger import LedgerEntry
from router.report_messages import from_sci
from router.store.database import Database
from router.store.idle import IdleCount, IdleHour, IdleRepository
from router.store.ledger import LedgerRepository
from router.store.reports import DIMENSIONS, ReportRepository, Totals, Window
from router.store.tables import idle, ledger, spent
from tests.router.ledger_entries import NOON, entry

SIGNALS = [Signal(kind, scope) for kind in SignalKind for scope in Scope]
SUMS = ("energy_joules", "building_joules", "operational_grams", "embodied_grams")
NUMBERS = (
    *("requests", "prompt_tokens", "output_tokens", "requests_without_energy", "requests_without_embodied"),
    "output_tokens_without_energy",
)
BY = [*itertools.combinations(DIMENSIONS, 1), *itertools.combinations(DIMENSIONS, 2)]


@dataclass(frozen=True)
class Figures:
    """What the sums of some requests ought to be, added up by hand."""

    requests: int
    without_energy: int
    without_embodied: int
    prompt_tokens: int
    output_tokens: int
    energy_joules: float
    building_joules: float
    operational_grams: float
    embodied_grams: float


@dataclass(frozen=True)
class Books:
    """All that a window holds."""

    entries: tuple[LedgerEntry, ...]
    idle: tuple[tuple[str, IdleHour], ...]

    def of(self, signal: Signal, *, evaluation: bool) -> list[LedgerEntry]:
        """Those that sums under the signal are over, or that have no known carbon at all."""
        return [
            one
            for one in self.entries
            if bool(one.evaluation_sample_id) == evaluation
            and (one.intensity is None or one.intensity.signal == signal)
        ]


@st.composite
def books(draw: st.DrawFn) -> Books:
    entries = tuple(draw(_entry(number)) for number in range(draw(st.integers(0, 24))))
    return Books(entries, tuple(draw(st.lists(st.tuples(st.sampled_from(["e1", "e2"]), _idle_hour()), max_size=5))))


@st.composite
def _entry(draw: st.DrawFn, number: int) -> LedgerEntry:
    changes: dict[str, Any] = {
        "tenant": draw(st.sampled_from(["acme", "other"])),
        "task": draw(st.sampled_from(["", "sums", "lists"])),
        "directive": draw(st.sampled_from(["L0", "L1"])),
        "model": draw(st.sampled_from(["m@1", "m@2"])),
        "policy": draw(st.sampled_from(["", "default"])),
        "engine": draw(st.sampled_from(["", "e1", "e2"])),
        "reason": draw(st.sampled_from(["planned", "holdback"])),
        "started_at": NOON + timedelta(minutes=draw(st.integers(0, 60 * 30))),
        "evaluation_sample_id": draw(st.sampled_from(["", "", "s1"])),
        "prompt_tokens": draw(st.integers(0, 10**6)),
        "output_tokens": draw(st.integers(0, 10**6)),
        "busy_seconds": draw(st.sampled_from([0.0, 0.25])),
    }
    if draw(st.integers(0, 4)) == 0:
        unknown = {"energy": None, "operational_grams": None, "embodied_grams": None, "intensity": None, "pue": None}
        return entry(number, **changes, **unknown)
    joules = draw(st.just(0.0) | st.floats(1e-3, 1e6))
    pue = draw(st.floats(1, 3))
    signal = draw(st.sampled_from(SIGNALS))
    g_per_kwh = draw(st.just(0.0) | st.floats(0.1, 1500))
    return entry(
        number,
        **changes,
        energy=Energy(joules, draw(st.sampled_from(EnergySource))),
        operational_grams=operational_grams(joules, g_per_kwh, pue),
        embodied_grams=draw(st.none() | st.just(0.0) | st.floats(1e-6, 10)),
        intensity=Intensity(g_per_kwh, "ES", signal.kind, signal.scope, NOON, "drawn"),
        # A router of before it was kept wrote none; then the grams tell, of a grid that emits.
        pue=draw(st.sampled_from([pue, None])) if g_per_kwh else pue,
    )


@st.composite
def _idle_hour(draw: st.DrawFn) -> IdleHour:
    seconds = draw(st.floats(1, 3600))
    joules, pue, g_per_kwh = draw(st.floats(0, 1e6)), draw(st.floats(1, 3)), draw(st.floats(0, 1500))
    return IdleHour(
        hour=NOON + timedelta(hours=draw(st.integers(0, 30))),
        signal=draw(st.sampled_from(SIGNALS)),
        device_seconds=seconds,
        seconds_without_energy=draw(st.sampled_from([0.0, seconds / 2])),
        energy_joules=joules,
        energy_source=EnergySource.MEASURED,
        building_joules=joules * pue,
        operational_grams=operational_grams(joules, g_per_kwh, pue),
        embodied_grams=draw(st.floats(0, 1)),
    )


def added_up(entries: Sequence[LedgerEntry]) -> Figures:
    known = [(one, one.energy) for one in entries if one.energy is not None]
    made = [
        one for one, energy in known if one.embodied_grams is not None and (one.busy_seconds > 0 or energy.joules == 0)
    ]
    return Figures(
        requests=len(entries),
        without_energy=len(entries) - len(known),
        without_embodied=len(known) - len(made),
        prompt_tokens=sum(one.prompt_tokens for one in entries),
        output_tokens=sum(one.output_tokens for one in entries),
        energy_joules=math.fsum(energy.joules for _, energy in known),
        building_joules=math.fsum(building_joules(one) for one, _ in known),
        operational_grams=math.fsum(one.operational_grams or 0.0 for one, _ in known),
        embodied_grams=math.fsum(one.embodied_grams or 0.0 for one in made),
    )


def building_joules(one: LedgerEntry) -> float:
    assert one.energy is not None and one.intensity is not None and one.operational_grams is not None
    if one.pue is not None:
        return one.energy.joules * one.pue
    return one.operational_grams / one.intensity.g_per_kwh * 3.6e6


def figures(totals: Totals) -> Figures:
    return Figures(
        requests=totals.requests,
        without_energy=totals.requests_without_energy,
        without_embodied=totals.requests_without_embodied,
        prompt_tokens=totals.prompt_tokens,
        output_tokens=totals.output_tokens,
        energy_joules=totals.energy_joules,
        building_joules=totals.building_joules,
        operational_grams=totals.operational_grams,
        embodied_grams=totals.embodied_grams,
    )


def near(expected: Figures) -> Figures:
    return replace(
        expected,
        energy_joules=_near(expected.energy_joules),
        building_joules=_near(expected.building_joules),
        operational_grams=_near(expected.operational_grams),
        embodied_grams=_near(expected.embodied_grams),
    )


def _near(value: float) -> Any:
    return pytest.approx(value, rel=1e-9, abs=1e-15)


async def keep(database: Database, held: Books) -> None:
    async with database.writing() as connection:
        for table in (ledger, spent, idle):
            await connection.execute(delete(table))
        await LedgerRepository(connection).add_many(held.entries)
        for engine, hour in held.idle:
            await IdleRepository(connection).add(f"process of {engine}", engine, [hour], IdleCount(0.0, None, NOON))


async def check(database: Database, held: Books, signal: Signal, window: Window) -> None:
    async with database.reading() as connection:
        reports = ReportRepository(connection)
        ((_, total),) = await reports.totals(window, signal)
        ((_, evaluation),) = await reports.totals(window, signal, evaluation=True)
        by = {
            (dimensions, of): await reports.totals(window, signal, dimensions, evaluation=of)
            for dimensions in BY
            for of in (False, True)
        }
        others = await reports.other_signals(window, signal, evaluation=True)
        idle_totals = await IdleRepository(connection).totals(window, signal)
        newest = await reports.newest_signal(window)

    # What one adds up by hand, and every way to divide it.
    assert figures(total) == near(added_up(held.of(signal, evaluation=False)))
    assert figures(evaluation) == near(added_up(held.of(signal, evaluation=True)))
    for (dimensions, of), rows in by.items():
        whole = evaluation if of else total
        assert len({tuple(values.values()) for values, _ in rows}) == len(rows), dimensions
        for name in NUMBERS:
            assert sum(getattr(totals, name) for _, totals in rows) == getattr(whole, name), (dimensions, name)
        for name in SUMS:
            assert math.fsum(getattr(totals, name) for _, totals in rows) == _near(getattr(whole, name)), (
                dimensions,
                name,
            )

    # With the other signals it is everything, and nothing twice.
    everything = added_up(held.entries)
    counted = total.requests + evaluation.requests + sum(other.requests for other in others)
    assert counted == everything.requests
    joules = total.energy_joules + evaluation.energy_joules + math.fsum(other.energy_joules for other in others)
    assert joules == _near(everything.energy_joules)
    assert signal not in {other.signal for other in others}
    has_carbon = any(one.intensity is not None for one in held.entries) or bool(held.idle)
    assert (newest is not None) == has_carbon

    # The rate is every gram under the signal, by the requests that were served.
    sci = from_sci(total, evaluation, idle_totals)
    grams = total.grams + evaluation.grams
    grams += math.fsum(hour.operational_grams + hour.embodied_grams for _, hour in held.idle if hour.signal == signal)
    served = total.requests - total.requests_without_energy
    if sci is None:
        assert served == 0 or total.building_joules + evaluation.building_joules == 0
    else:
        assert sci.requests == served
        assert sci.grams_per_request * served == _near(grams)
        assert sci.energy_kwh * sci.intensity_g_per_kwh + sci.embodied_grams == _near(grams)
        assert sci.energy_kwh * 3.6e6 == _near(
            total.building_joules
            + evaluation.building_joules
            + math.fsum(hour.building_joules for _, hour in held.idle if hour.signal == signal)
        )


ON_REAL_DATABASES = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@settings(ON_REAL_DATABASES, max_examples=15)
@given(held=books(), signal=st.sampled_from(SIGNALS))
async def test_the_sums_by_any_dimensions_are_the_total(database: Database, held: Books, signal: Signal) -> None:
    await keep(database, held)
    await check(database, held, signal, Window())


@settings(ON_REAL_DATABASES, max_examples=25)
@given(held=books(), cut=st.datetimes(datetime(2026, 1, 1, 12), datetime(2026, 1, 2, 18)))
async def test_windows_tenants_and_signals_divide_everything(database: Database, held: Books, cut: datetime) -> None:
    moment = cut.replace(tzinfo=NOON.tzinfo)
    windows = [Window(end=moment), Window(start=moment)]
    await keep(database, held)
    async with database.reading() as connection:
        reports = ReportRepository(connection)
        by_signal = [(await reports.totals(Window(), signal))[0][1] for signal in SIGNALS]
        by_window = [(await reports.totals(window, s))[0][1] for window in windows for s in SIGNALS]
        by_tenant = [
            (await reports.totals(Window(tenant=tenant), s))[0][1] for tenant in ("acme", "other") for s in SIGNALS
        ]
        ((_, unknown),) = await reports.totals(Window(), None)
    serving = added_up([one for one in held.entries if not one.evaluation_sample_id])
    assert unknown.requests == unknown.requests_without_energy == serving.without_energy
    for parts in (by_signal, by_window, by_tenant):
        known = sum(part.requests - part.requests_without_energy for part in parts)
        assert known == serving.requests - serving.without_energy
        for name in ("energy_joules", "operational_grams", "embodied_grams"):
            assert math.fsum(getattr(part, name) for part in parts) == _near(getattr(serving, name))
