"""A page of a quality history, read from the database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from common.errors import FieldViolation, invalid_argument
from router import pagination
from router.directives.levels import NAME_PATTERN
from router.history.records import Cursor, Known, Records
from router.history.replay import Question, tell
from router.history.step import Step
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.quality import Place, QualityRepository
from router.store.revisions import RevisionKey

MOST_RECORDS = 1_000
"""Of each kind (bounds, revisions of directives, revisions of policies) that a page is made from. Beside them, what was
newest at its beginning is held: a bound a cell and a revision a name."""

_MOST_ID = 2**63 - 1
_MOST_REVISION = 2**31 - 1


async def read_page(
    database: Database,
    place: Place,
    question: Question,
    cursor: Cursor,
    size: int,
    now: datetime,
    most_records: int = MOST_RECORDS,
) -> tuple[tuple[Step, ...], Cursor | None]:
    """At most `size` steps that follow the cursor, and from where to go on: None at the end. The steps may be fewer, or
    none, where many records lie between two of them."""
    async with database.reading() as connection:
        quality, directives = QualityRepository(connection), DirectiveRepository(connection)
        policies = PolicyRepository(connection)
        known = Known(
            await quality.newest_as_of(place, cursor.bound) if cursor.bound else (),
            await directives.newest_as_of(cursor.directive) if cursor.directive else (),
            await policies.newest_as_of(cursor.policy) if cursor.policy else (),
        )
        bounds = await quality.records_after(place, cursor.bound, most_records + 1)
        of_directives = await directives.revisions_after(cursor.directive, most_records + 1)
        of_policies = await policies.revisions_after(cursor.policy, most_records + 1)
    sizes = {"bound": len(bounds), "directive": len(of_directives), "policy": len(of_policies)}
    records = Records(
        bounds[:most_records],
        of_directives[:most_records],
        of_policies[:most_records],
        frozenset(kind for kind, found in sizes.items() if found > most_records),
    )
    return await asyncio.to_thread(tell, question, known, records, cursor, size, now)


def write_token(kind: str, cursor: Cursor) -> str:
    """A page token that goes on from the cursor, in histories of the same kind."""
    return pagination.write_token(kind, _texts(cursor))


def read_token(kind: str, token: str) -> Cursor:
    """Raises PithError INVALID_ARGUMENT where it is no token of this kind."""
    texts = pagination.read_token(kind, token, _texts(Cursor()))
    try:
        cursor = _cursor(*texts)
        if _texts(cursor) == texts:
            return cursor
    except (ValueError, TypeError, OverflowError):
        pass
    raise invalid_argument(
        [FieldViolation("page_token", f"is not a token of this list; must be one of {kind}, or empty")]
    )


def _texts(cursor: Cursor) -> tuple[str, ...]:
    return (
        str(cursor.bound),
        *_key_texts(cursor.directive),
        *_key_texts(cursor.policy),
        "" if cursor.at is None else cursor.at.isoformat(),
        str(cursor.told),
    )


def _key_texts(key: RevisionKey | None) -> tuple[str, str, str]:
    return ("", "", "") if key is None else (key[0].isoformat(), key[1], str(key[2]))


def _cursor(bound: str, *rest: str) -> Cursor:
    *keys, at, told = rest
    return Cursor(_whole(bound, _MOST_ID), _key(*keys[:3]), _key(*keys[3:]), _moment(at), _whole(told, _MOST_ID))


def _key(at: str, name: str, revision: str) -> RevisionKey | None:
    moment = _moment(at)
    if moment is None:
        return None
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError("no name")
    return moment, name, _whole(revision, _MOST_REVISION)


def _whole(text: str, most: int) -> int:
    number = int(text)
    if not 0 <= number <= most:
        raise ValueError("out of range")
    return number


def _moment(text: str) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
