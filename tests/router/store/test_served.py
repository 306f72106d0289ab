"""Requests by hour that plans decided for."""

from datetime import timedelta

from router.directives.decide import Reason
from router.store.database import Database
from router.store.served import ServedRepository
from tests.router.admin_client import MODEL
from tests.router.ledger_entries import NOON, entry, record

HOUR = timedelta(hours=1)
L0 = {"directive": "L0", "planned": "L0"}


async def test_requests_are_counted_by_the_hour_in_which_they_started(database: Database) -> None:
    last = timedelta(microseconds=-1)
    await record(
        database,
        entry(1, started_at=NOON),
        entry(2, started_at=NOON + HOUR + last),
        entry(3, started_at=NOON + timedelta(minutes=3), tenant="other"),
        entry(4, started_at=NOON + HOUR),
        entry(5, started_at=NOON + HOUR, model="other@1"),
        entry(6, started_at=NOON + HOUR, task="lists"),
        entry(7, started_at=NOON + HOUR, policy="other"),
        entry(8, started_at=NOON + HOUR, **L0),
        entry(9, started_at=NOON + last),
        entry(10, started_at=NOON + 2 * HOUR),
        entry(11, started_at=NOON + HOUR, directive_revision=2),
    )
    async with database.reading() as connection:
        found = await ServedRepository(connection).by_hour(NOON, NOON + 2 * HOUR)
        nothing = await ServedRepository(connection).by_hour(NOON + 3 * HOUR, NOON + 9 * HOUR)
    assert found == {
        NOON: {("default", MODEL, "sums", "L1", 1): 3},
        NOON + HOUR: {
            ("default", MODEL, "sums", "L1", 1): 1,
            ("default", "other@1", "sums", "L1", 1): 1,
            ("default", MODEL, "lists", "L1", 1): 1,
            ("other", MODEL, "sums", "L1", 1): 1,
            ("default", MODEL, "sums", "L1", 2): 1,
            ("default", MODEL, "sums", "L0", 1): 1,
        },
    }
    assert all(hour.utcoffset() == timedelta(0) for hour in found)
    assert nothing == {}


async def test_those_count_that_a_plan_decided_for(database: Database) -> None:
    """What the plan keeps at L0 whole is not eligible, and in the mean all the same."""
    shadow = {"reason": Reason.SHADOW.value, "eligible": False, "directive": "L0"}
    others = [reason for reason in Reason if reason not in (Reason.PLANNED, Reason.HOLDBACK, Reason.SHADOW)]
    await record(
        database,
        entry(1),
        entry(2, **L0),
        entry(3, directive="L0", planned="L1", reason=Reason.HOLDBACK.value),
        entry(4, eligible=False, **L0),
        entry(5, planned="L2", **shadow),
        entry(6, planned="L0", **shadow),
        *(entry(100 + place, reason=reason.value, eligible=False) for place, reason in enumerate(others)),
        entry(8, evaluation_sample_id="s1"),
        entry(9, policy=""),
    )
    async with database.reading() as connection:
        found = await ServedRepository(connection).by_hour(NOON, NOON + HOUR)
    of = ("default", MODEL, "sums")
    assert found == {NOON: {(*of, "L0", 1): 3, (*of, "L0", None): 1, (*of, "L1", 1): 1, (*of, "L2", None): 1}}
