"""Keeps who may call, how much, and whose answers are erased up to date with the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import structlog

from common.auth import Authenticator, TokenEntry
from router.rate_limit import RateLimiter
from router.store.access import AccessRepository
from router.store.database import Database, StoreUnavailable
from router.store.erasure import ErasureRepository

RETRY_SECONDS = 1.0
"""Wall time."""

log = structlog.get_logger("access")


class AccessKeeper:
    """Takes tokens, limits and erasures from the database to where they hold. While it is down, the last ones do.

    Args:
        forget: Told a tenant, and from before when its kept answers are to go.
    """

    def __init__(
        self,
        database: Database,
        authenticator: Authenticator,
        rates: RateLimiter,
        forget: Callable[[str, datetime], None],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._database = database
        self._authenticator = authenticator
        self._rates = rates
        self._forget = forget
        self._retry_seconds = retry_seconds
        self._lock = asyncio.Lock()
        self._erasures: dict[str, datetime] = {}
        self._retrying: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Raises StoreUnavailable."""
        # One at a time, so that an older state never replaces a newer one.
        async with self._lock:
            async with self._database.reading() as connection:
                access = AccessRepository(connection)
                tokens, limits = await access.tokens(), await access.own_limits()
                erasures = await ErasureRepository(connection).all()
            self._authenticator.put_stored(
                [
                    TokenEntry(
                        sha256=token.sha256,
                        role=token.role,
                        tenant=token.tenant,
                        name=token.name,
                        expires_at=token.expires_at,
                    )
                    for token in tokens
                    if token.revoked_at is None
                ]
            )
            self._rates.put_limits({own.tenant: own.limit for own in limits})
            for tenant, before in erasures.items():
                if self._erasures.get(tenant) != before:
                    self._forget(tenant, before)
            self._erasures = erasures

    async def refresh(self) -> None:
        """As `load` after a change; where the database is down, goes on trying in the background, and never raises."""
        try:
            await self.load()
        except StoreUnavailable as error:
            log.warning("database is down; known tokens and limits stay in force", fault=error.fault)
            if self._retrying is None or self._retrying.done():
                # Who told of the change tells of it once.
                self._retrying = asyncio.create_task(self._retry(), name="access")

    async def close(self) -> None:
        if self._retrying is not None:
            self._retrying.cancel()
            await asyncio.wait({self._retrying})

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(self._retry_seconds)
            try:
                return await self.load()
            except StoreUnavailable:
                continue
