"""Tokens and the limits of tenants in the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from common.auth import Role
from router.rate_limit import TenantLimit
from router.store.tables import tenants, tokens


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token, of which only the hash is known."""

    name: str
    sha256: str
    """Lower-case hex."""
    role: Role
    tenant: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    revoked_by: str = ""


@dataclass(frozen=True, slots=True)
class OwnLimit:
    """What one tenant may ask for, and who said so."""

    tenant: str
    limit: TenantLimit
    updated_at: datetime
    updated_by: str


class AccessRepository:
    """Within one transaction; all that changes something within `Database.changing`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def token(self, name: str) -> StoredToken | None:
        row = (await self._connection.execute(select(tokens).where(tokens.c.name == name))).one_or_none()
        return None if row is None else _token(row)

    async def tokens(self) -> tuple[StoredToken, ...]:
        """All, by name; revoked and expired ones too."""
        rows = (await self._connection.execute(select(tokens))).all()
        return tuple(sorted(map(_token, rows), key=lambda token: token.name))

    async def add_token(self, token: StoredToken) -> None:
        """Raises IntegrityError where the name or the hash is taken."""
        await self._connection.execute(
            insert(tokens).values(
                name=token.name,
                sha256=token.sha256,
                role=token.role.value,
                tenant=token.tenant,
                created_at=token.created_at,
                created_by=token.created_by,
                expires_at=token.expires_at,
                revoked_at=token.revoked_at,
                revoked_by=token.revoked_by,
            )
        )

    async def revoke_token(self, name: str, revoked_at: datetime, revoked_by: str) -> None:
        """Without effect on one that is revoked already."""
        await self._connection.execute(
            update(tokens)
            .where(tokens.c.name == name, tokens.c.revoked_at.is_(None))
            .values(revoked_at=revoked_at, revoked_by=revoked_by)
        )

    async def own_limits(self) -> tuple[OwnLimit, ...]:
        """By tenant."""
        rows = (await self._connection.execute(select(tenants))).all()
        return tuple(sorted(map(_own_limit, rows), key=lambda own: own.tenant))

    async def set_limit(self, own: OwnLimit) -> None:
        """In place of what the tenant had; one without any limit of its own leaves no row."""
        await self._connection.execute(delete(tenants).where(tenants.c.tenant == own.tenant))
        if own.limit == TenantLimit():
            return
        await self._connection.execute(
            insert(tenants).values(
                tenant=own.tenant,
                requests_per_minute=own.limit.requests_per_minute,
                concurrent_requests=own.limit.concurrent_requests,
                updated_at=own.updated_at,
                updated_by=own.updated_by,
            )
        )


def _token(row: Row[Any]) -> StoredToken:
    return StoredToken(
        name=row.name,
        sha256=row.sha256,
        role=Role(row.role),
        tenant=row.tenant,
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        revoked_by=row.revoked_by,
    )


def _own_limit(row: Row[Any]) -> OwnLimit:
    limit = TenantLimit(row.requests_per_minute, row.concurrent_requests)
    return OwnLimit(row.tenant, limit, row.updated_at, row.updated_by)
