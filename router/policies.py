"""Service Policies: directives and policies, their history, and what they would decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from pith.router.v1 import policies_pb2 as pb
from pith.router.v1 import policies_pb2_grpc

from common.auth import Role, current_request
from common.clock import Clock
from common.errors import (
    FieldViolation,
    Violations,
    aborted,
    already_exists,
    failed_precondition,
    invalid_argument,
    not_found,
    unimplemented,
)
from common.grpc_server import Context
from router import convert, limits, pagination
from router.directives.levels import L0, Directive
from router.directives.policy import Policy
from router.explain import explain
from router.field_mask import merge
from router.optimizer.costs import Cost, CostBook
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action
from router.validation import RequestLimits, check

SERVICE = pb.DESCRIPTOR.services_by_name["Policies"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}

_FIXED = ("name", "revision", "etag", "updated_at", "updated_by")
_BEFORE_ALL = 0

Resource = TypeVar("Resource", Directive, Policy)


class PoliciesService(policies_pb2_grpc.PoliciesServicer):
    """Every change is one transaction, in force here when the call returns.

    Args:
        grams: Carbon of a request at the present intensity; None where that is unknown.
        identity: "name@digest" of what serves a model (empty: the default); empty where no engine serves it.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        costs: CostBook,
        grams: Callable[[Cost], float | None],
        identity: Callable[[str], str],
        request_limits: RequestLimits,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._costs = costs
        self._grams = grams
        self._identity = identity
        self._request_limits = request_limits

    async def CreateDirective(self, request: pb.CreateDirectiveRequest, context: Context) -> pb.Directive:
        if request.directive.name == L0.name:
            raise already_exists("directive", L0.name)
        faults = Violations()
        limits.check_directive(faults, request.directive)
        limits.check_text(faults, "reason", request.reason)
        faults.raise_if_any()
        given = convert.to_directive(request.directive)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            if await directives.get(given.name):
                raise already_exists("directive", given.name)
            created = self._stamped(given, await directives.last_revision(given.name) + 1)
            await directives.add(created, Action.CREATE, request.reason)
        await self._keeper.refresh()
        return convert.from_directive(created)

    async def GetDirective(self, request: pb.GetDirectiveRequest, context: Context) -> pb.Directive:
        async with self._database.reading() as connection:
            found = L0 if request.name == L0.name else await DirectiveRepository(connection).get(request.name)
        return convert.from_directive(_existing("directive", request.name, found))

    async def ListDirectives(self, request: pb.ListDirectivesRequest, context: Context) -> pb.ListDirectivesResponse:
        async with self._database.reading() as connection:
            stored = await DirectiveRepository(connection).all()
        every = sorted((L0, *stored), key=_name)
        page, token = pagination.page("directives", every, _name, "", request.page_size, request.page_token)
        return pb.ListDirectivesResponse(directives=map(convert.from_directive, page), next_page_token=token)

    async def UpdateDirective(self, request: pb.UpdateDirectiveRequest, context: Context) -> pb.Directive:
        given = request.directive
        _check_change("directive.", given.name, given.etag, request.reason)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            current = L0 if given.name == L0.name else await directives.get(given.name)
            current = _unchanged("directive", given.name, current, given.etag)
            message = merge(convert.from_directive(current), given, request.update_mask, _FIXED)
            faults = Violations()
            limits.check_directive(faults, message)
            faults.raise_if_any()
            updated = convert.to_directive(message)
            # Every field but the name is one that answers depend on; without a change, bounds stay valid.
            if replace(updated, revision=current.revision) == current:
                return convert.from_directive(current)
            updated = self._stamped(updated, current.revision + 1)
            await directives.add(updated, Action.UPDATE, request.reason)
        await self._keeper.refresh()
        return convert.from_directive(updated)

    async def DeleteDirective(self, request: pb.DeleteDirectiveRequest, context: Context) -> Empty:
        if request.name == L0.name:
            raise failed_precondition("IN_USE", "L0 is what all else is compared with", {"used_by": "every policy"})
        _check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            current = await directives.get(request.name)
            current = _unchanged("directive", request.name, current, request.etag)
            users = [p.name for p in await PolicyRepository(connection).all() if current.name in p.directives]
            if users:
                by = ", ".join(users)
                raise failed_precondition("IN_USE", f"{current.name} is allowed by policies: {by}", {"used_by": by})
            deleted = self._stamped(current, current.revision + 1)
            await directives.add(deleted, Action.DELETE, request.reason)
        await self._keeper.refresh()
        return Empty()

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: Context) -> pb.Policy:
        faults = Violations()
        limits.check_text(faults, "reason", request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            limits.check_policy(faults, request.policy, known)
            faults.raise_if_any()
            given = convert.to_policy(request.policy)
            if await policies.get(given.name):
                raise already_exists("policy", given.name)
            created = self._stamped(given, await policies.last_revision(given.name) + 1)
            await policies.add(created, Action.CREATE, request.reason)
        await self._keeper.refresh()
        return convert.from_policy(created)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.Policy:
        async with self._database.reading() as connection:
            found = await PolicyRepository(connection).get(request.name)
        return convert.from_policy(_existing("policy", request.name, found))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        async with self._database.reading() as connection:
            every = await PolicyRepository(connection).all()
        page, token = pagination.page("policies", every, _name, "", request.page_size, request.page_token)
        return pb.ListPoliciesResponse(policies=map(convert.from_policy, page), next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.Policy:
        given = request.policy
        _check_change("policy.", given.name, given.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = _unchanged("policy", given.name, await policies.get(given.name), given.etag)
            message = merge(convert.from_policy(current), given, request.update_mask, _FIXED)
            faults = Violations()
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            limits.check_policy(faults, message, known)
            faults.raise_if_any()
            updated = convert.to_policy(message)
            if replace(updated, revision=current.revision) == current:
                return convert.from_policy(current)
            updated = self._stamped(updated, current.revision + 1)
            await policies.add(updated, Action.UPDATE, request.reason)
        await self._keeper.refresh()
        return convert.from_policy(updated)

    async def DeletePolicy(self, request: pb.DeletePolicyRequest, context: Context) -> Empty:
        _check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = _unchanged("policy", request.name, await policies.get(request.name), request.etag)
            await policies.add(self._stamped(current, current.revision + 1), Action.DELETE, request.reason)
        await self._keeper.refresh()
        return Empty()

    async def ListPolicyRevisions(
        self, request: pb.ListPolicyRevisionsRequest, context: Context
    ) -> pb.ListPolicyRevisionsResponse:
        # A token is valid for the policy that it was made for.
        kind = f"revisions of {request.name}"
        before = pagination.read_token(kind, request.page_token, _BEFORE_ALL)
        size = pagination.page_size(request.page_size)
        async with self._database.reading() as connection:
            policies = PolicyRepository(connection)
            if not await policies.last_revision(request.name):
                raise not_found("policy", request.name)
            found = await policies.revisions(request.name, size + 1, before or None)
        page = found[:size]
        return pb.ListPolicyRevisionsResponse(
            revisions=[
                pb.PolicyRevision(policy=convert.from_policy(r.policy), action=r.action.value, reason=r.reason)
                for r in page
            ],
            next_page_token=pagination.write_token(kind, page[-1].policy.revision) if len(found) > size else "",
        )

    async def RollbackPolicy(self, request: pb.RollbackPolicyRequest, context: Context) -> pb.Policy:
        _check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = _unchanged("policy", request.name, await policies.get(request.name), request.etag)
            older = await policies.revision(request.name, min(request.revision, limits.MAX_REVISION))
            if older is None:
                raise not_found("revision of policy", f"{request.name}/{request.revision}")
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            gone = [name for name in older.policy.directives if name not in known]
            if gone:
                fault = f"is {request.revision}, which allows {', '.join(gone)}; no longer there"
                raise invalid_argument([FieldViolation("revision", fault)])
            restored = self._stamped(older.policy, current.revision + 1)
            await policies.add(restored, Action.ROLLBACK, request.reason)
        await self._keeper.refresh()
        return convert.from_policy(restored)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        asked = request.request
        check(asked, self._request_limits, messages_needed=False)
        model = self._identity(asked.model)
        if asked.model and not model:
            raise not_found("model", asked.model)
        caller = current_request()
        tenant = asked.tenant or (caller.principal.tenant if caller else "")
        now = self._clock.now()
        return explain(asked, tenant, model, self._keeper.snapshot, self._costs, self._grams, now)

    async def Simulate(self, request: pb.SimulateRequest, context: Context) -> pb.SimulateResponse:
        raise unimplemented("Simulate")

    def _stamped(self, resource: Resource, revision: int) -> Resource:
        caller = current_request()
        name = caller.principal.name if caller else ""
        return replace(resource, revision=revision, updated_at=self._clock.now(), updated_by=name)


def _name(resource: Directive | Policy) -> str:
    return resource.name


def _existing(kind: str, name: str, found: Resource | None) -> Resource:
    if found is None:
        raise not_found(kind, name)
    return found


def _unchanged(kind: str, name: str, found: Resource | None, etag: str) -> Resource:
    """What the caller has read, if that is still the newest."""
    current = _existing(kind, name, found)
    if current.etag != etag:
        raise aborted(
            "ETAG_MISMATCH",
            f"{kind} {name} has changed since it was read; read it again",
            {"resource": kind, "name": name, "etag": current.etag},
        )
    return current


def _check_change(prefix: str, name: str, etag: str, reason: str) -> None:
    faults = Violations()
    limits.check_name(faults, f"{prefix}name", name)
    faults.require(etag != "", f"{prefix}etag", "is empty; must be the etag of the resource as it was read")
    limits.check_text(faults, "reason", reason)
    faults.raise_if_any()
