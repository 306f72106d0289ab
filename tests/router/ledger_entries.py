"""Entries of the ledger, for tests of what is read from it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.energy.reading import Energy, EnergySource
from router.directives.decide import Reason
from router.ledger import LedgerEntry
from router.store.database import Database
from router.store.ledger import LedgerRepository
from tests.router.admin_client import MODEL

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
UNKNOWN: dict[str, Any] = {"energy": None, "operational_grams": None, "embodied_grams": None, "intensity": None}
GRID = Intensity(120.0, "ES", SignalKind.AVERAGE, Scope.LIFECYCLE, NOON, "profile")


def entry(number: int = 0, **changes: Any) -> LedgerEntry:
    """Served under L1, `number` seconds after NOON: 4 J, 0.021 g."""
    plain = LedgerEntry(
        tenant="acme",
        request_id=f"r{number}",
        task="sums",
        model=MODEL,
        directive="L1",
        directive_revision=1,
        reason=Reason.PLANNED.value,
        planned="L1",
        policy="default",
        policy_revision=1,
        eligible=True,
        evaluation_sample_id="",
        prompt_tokens=10,
        cached_tokens=0,
        output_tokens=20,
        energy=Energy(4.0, EnergySource.MODELLED),
        busy_seconds=0.5,
        operational_grams=0.02,
        embodied_grams=0.001,
        intensity=GRID,
        engine="cpu",
        seed=2**64 - 1,
        finish_reason="STOP",
        started_at=NOON + timedelta(seconds=number),
        seconds=1.0,
    )
    return replace(plain, **changes)


async def record(database: Database, *entries: LedgerEntry) -> None:
    async with database.writing() as connection:
        await LedgerRepository(connection).add_many(entries)
