"""Tokens and limits of tenants, as rows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from common.auth import Role
from router.rate_limit import TenantLimit
from router.store.access import AccessRepository, OwnLimit, StoredToken
from router.store.database import Database

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOKEN = StoredToken("shop", "a" * 64, Role.CLIENT, "acme", NOON, "root", expires_at=NOON + timedelta(days=1))


async def test_tokens_come_back_as_they_were_by_name(database: Database) -> None:
    second = replace(TOKEN, name="Back", sha256="b" * 64, role=Role.ADMIN, expires_at=None)
    async with database.changing() as connection:
        access = AccessRepository(connection)
        await access.add_token(TOKEN)
        await access.add_token(second)
        assert await access.tokens() == (second, TOKEN)
        assert await access.token("shop") == TOKEN
        assert await access.token("nobody") is None


@pytest.mark.parametrize("changes", [{"sha256": "b" * 64}, {"name": "other"}])
async def test_no_two_tokens_have_one_name_or_one_hash(database: Database, changes: dict[str, str]) -> None:
    async with database.changing() as connection:
        await AccessRepository(connection).add_token(TOKEN)
    with pytest.raises(IntegrityError):
        async with database.changing() as connection:
            await AccessRepository(connection).add_token(replace(TOKEN, **changes))  # type: ignore[arg-type]


async def test_a_token_is_revoked_once(database: Database) -> None:
    async with database.changing() as connection:
        access = AccessRepository(connection)
        await access.add_token(TOKEN)
        await access.revoke_token("shop", NOON, "root")
        await access.revoke_token("shop", NOON + timedelta(hours=1), "another")
        await access.revoke_token("nobody", NOON, "root")
        assert await access.tokens() == (replace(TOKEN, revoked_at=NOON, revoked_by="root"),)


async def test_a_tenant_has_its_last_limits_and_none_of_its_own_leaves_no_row(database: Database) -> None:
    first = OwnLimit("Zeta", TenantLimit(60, 2), NOON, "root")
    last = replace(first, limit=TenantLimit(0, 3), updated_at=NOON + timedelta(hours=1))
    other = OwnLimit("acme", TenantLimit(1, 0), NOON, "root")
    async with database.changing() as connection:
        access = AccessRepository(connection)
        for own in (first, other, last):
            await access.set_limit(own)
        assert await access.own_limits() == (last, other)
        await access.set_limit(replace(last, limit=TenantLimit()))
        assert await access.own_limits() == (other,)
