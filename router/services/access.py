"""Service Access: tokens, the limits of tenants, and the erasure of what a tenant said."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256

import structlog
from google.protobuf.timestamp_pb2 import Timestamp
from pith.router.v1 import access_pb2 as pb
from pith.router.v1 import access_pb2_grpc

from common.auth import DEFAULT_TENANT, Authenticator, Role, current_request
from common.clock import Clock
from common.errors import Violations, already_exists, failed_precondition, not_found
from common.grpc_server import Context
from common.limits import MAX_ID_CHARACTERS
from router import convert, pagination
from router.limits import check_name
from router.rate_limit import MAX_CONCURRENT_REQUESTS, MAX_REQUESTS_PER_MINUTE, TenantLimit
from router.retention import erase
from router.snapshot import SnapshotKeeper
from router.store.access import AccessRepository, OwnLimit, StoredToken
from router.store.database import Database
from router.store.erasure import ErasureRepository

SERVICE = pb.DESCRIPTOR.services_by_name["Access"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}

PREFIX = "pith_"
"""Of every secret, so that one that got somewhere it should not be is known for what it is."""
SECRET_BYTES = 32

log = structlog.get_logger("access")


class AccessService(access_pb2_grpc.AccessServicer):
    """Every change is one transaction, in force here when the call returns.

    Args:
        authenticator: Asked whether this router asks for tokens at all, and which names its tokens file has taken.
        draw: Random bytes of a secret, that many; nobody must be able to guess them.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        authenticator: Authenticator,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._authenticator = authenticator
        self._draw = draw

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Context) -> pb.CreateTokenResponse:
        now = self._clock.now()
        faults = Violations()
        check_name(faults, "name", request.name)
        roles = {pb.TokenRole.Value(f"TOKEN_ROLE_{role.name}"): role for role in Role}
        faults.require(
            request.role in roles,
            "role",
            f"is {int(request.role)}; must be one of {', '.join(f'TOKEN_ROLE_{role.name}' for role in Role)}",
        )
        _check_tenant(faults, "tenant", request.tenant)
        expires_at = _moment(faults, "expires_at", request.expires_at) if request.HasField("expires_at") else None
        if expires_at is not None:
            faults.require(
                expires_at > now,
                "expires_at",
                f"is {expires_at.isoformat()}; must be after the present, {now.isoformat()}",
            )
        faults.raise_if_any()
        if self._authenticator.is_of_file(request.name):
            raise already_exists("token of the tokens file", request.name)
        secret = PREFIX + base64.urlsafe_b64encode(self._draw(SECRET_BYTES)).decode().rstrip("=")
        token = StoredToken(
            name=request.name,
            sha256=sha256(secret.encode()).hexdigest(),
            role=roles[request.role],
            tenant=request.tenant or DEFAULT_TENANT,
            created_at=now,
            created_by=_caller(),
            expires_at=expires_at,
        )
        async with self._database.changing() as connection:
            access = AccessRepository(connection)
            if await access.token(token.name):
                raise already_exists("token", token.name)
            await access.add_token(token)
        await self._keeper.refresh()
        if self._authenticator.open:
            log.warning("a token was made, but without tokens_file every caller is an admin", token=token.name)
        return pb.CreateTokenResponse(token=_from_token(token), secret=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        async with self._database.reading() as connection:
            tokens = await AccessRepository(connection).tokens()
        page, after = pagination.page(
            "tokens", tokens, lambda token: token.name, "", request.page_size, request.page_token
        )
        return pb.ListTokensResponse(tokens=map(_from_token, page), next_page_token=after)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.Token:
        async with self._database.changing() as connection:
            access = AccessRepository(connection)
            await access.revoke_token(request.name, self._clock.now(), _caller())
            token = await access.token(request.name)
            if token is None and self._authenticator.is_of_file(request.name):
                raise failed_precondition(
                    "IN_USE",
                    f"token {request.name!r} is of the tokens file; taken out of there, it is refused within 5 s",
                    {"resource": "token", "name": request.name, "used_by": "the tokens file"},
                )
            if token is None:
                raise not_found("token", request.name)
        await self._keeper.refresh()
        return _from_token(token)

    async def SetTenantLimits(self, request: pb.SetTenantLimitsRequest, context: Context) -> pb.TenantLimits:
        given = request.limits
        faults = Violations()
        if faults.require(given.tenant != "", "limits.tenant", "is empty"):
            _check_tenant(faults, "limits.tenant", given.tenant)
        for field, most in (
            ("requests_per_minute", MAX_REQUESTS_PER_MINUTE),
            ("concurrent_requests", MAX_CONCURRENT_REQUESTS),
        ):
            value = getattr(given, field)
            faults.require(value <= most, f"limits.{field}", f"is {value:,}; at most {most:,}")
        faults.raise_if_any()
        limit = TenantLimit(given.requests_per_minute, given.concurrent_requests)
        own = OwnLimit(given.tenant, limit, self._clock.now(), _caller())
        async with self._database.changing() as connection:
            await AccessRepository(connection).set_limit(own)
        await self._keeper.refresh()
        return _from_limit(own)

    async def ListTenantLimits(
        self, request: pb.ListTenantLimitsRequest, context: Context
    ) -> pb.ListTenantLimitsResponse:
        async with self._database.reading() as connection:
            limits = await AccessRepository(connection).own_limits()
        page, after = pagination.page(
            "tenant limits", limits, lambda own: own.tenant, "", request.page_size, request.page_token
        )
        return pb.ListTenantLimitsResponse(limits=map(_from_limit, page), next_page_token=after)

    async def EraseTenantText(self, request: pb.EraseTenantTextRequest, context: Context) -> pb.EraseTenantTextResponse:
        now = self._clock.now()
        faults = Violations()
        if faults.require(request.tenant != "", "tenant", "is empty"):
            _check_tenant(faults, "tenant", request.tenant)
        before = _moment(faults, "before", request.before) if request.HasField("before") else now
        if before is not None:
            faults.require(before <= now, "before", f"is {before.isoformat()}; at most the present, {now.isoformat()}")
        faults.raise_if_any()
        assert before is not None
        # First of all, so that nothing of it is written any more once it is gone.
        async with self._database.changing() as connection:
            await ErasureRepository(connection).record(request.tenant, before, now, _caller())
        await self._keeper.refresh()
        erased = await erase(self._database, before, now, request.tenant)
        log.info("tenant's text erased", tenant=request.tenant, samples=erased.samples, comments=erased.comments)
        return pb.EraseTenantTextResponse(samples=erased.samples, comments=erased.comments)


def _caller() -> str:
    request = current_request()
    assert request is not None, "only called through the server, which enters a request"
    return request.principal.name


def _check_tenant(faults: Violations, field: str, tenant: str) -> None:
    if len(tenant) > MAX_ID_CHARACTERS:
        faults.add(field, f"has {len(tenant):,} characters; at most {MAX_ID_CHARACTERS}")
    elif not tenant.isprintable():
        faults.add(field, "has control or other unprintable characters")


def _moment(faults: Violations, field: str, message: Timestamp) -> datetime | None:
    """None, and a fault, for one that is out of range."""
    try:
        return convert.moment(message)
    except (ValueError, OverflowError):
        faults.add(field, "is out of range; must be in the years 1 to 9999")
        return None


def _from_token(token: StoredToken) -> pb.Token:
    return pb.Token(
        name=token.name,
        role=pb.TokenRole.Value(f"TOKEN_ROLE_{token.role.name}"),
        tenant=token.tenant,
        created_at=convert.timestamp(token.created_at),
        created_by=token.created_by,
        expires_at=None if token.expires_at is None else convert.timestamp(token.expires_at),
        revoked_at=None if token.revoked_at is None else convert.timestamp(token.revoked_at),
        revoked_by=token.revoked_by,
    )


def _from_limit(own: OwnLimit) -> pb.TenantLimits:
    return pb.TenantLimits(
        tenant=own.tenant,
        requests_per_minute=own.limit.requests_per_minute,
        concurrent_requests=own.limit.concurrent_requests,
        updated_at=convert.timestamp(own.updated_at),
        updated_by=own.updated_by,
    )
