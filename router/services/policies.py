"""Service Policies: policies, their history, and what they would decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from google.protobuf.empty_pb2 import Empty
from pith.router.v1 import policies_pb2 as pb
from pith.router.v1 import policies_pb2_grpc

from common.auth import Role, current_request
from common.clock import Clock
from common.errors import (
    FieldViolation,
    Violations,
    already_exists,
    invalid_argument,
    not_found,
    unimplemented,
)
from common.grpc_server import Context
from router import convert, limits, pagination
from router.explain import explain
from router.field_mask import merge
from router.optimizer.costs import Cost, CostBook
from router.revision import BEFORE_ALL, FIXED, check_change, existing, name_of, stamped, unchanged
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action
from router.validation import RequestLimits, check

SERVICE = pb.DESCRIPTOR.services_by_name["Policies"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}


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
            created = stamped(given, await policies.last_revision(given.name) + 1, self._clock.now())
            await policies.add(created, Action.CREATE, request.reason)
        await self._keeper.refresh()
        return convert.from_policy(created)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.Policy:
        async with self._database.reading() as connection:
            found = await PolicyRepository(connection).get(request.name)
        return convert.from_policy(existing("policy", request.name, found))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        async with self._database.reading() as connection:
            every = await PolicyRepository(connection).all()
        page, token = pagination.page("policies", every, name_of, "", request.page_size, request.page_token)
        return pb.ListPoliciesResponse(policies=map(convert.from_policy, page), next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.Policy:
        given = request.policy
        check_change("policy.", given.name, given.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = unchanged("policy", given.name, await policies.get(given.name), given.etag)
            message = merge(convert.from_policy(current), given, request.update_mask, FIXED)
            faults = Violations()
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            limits.check_policy(faults, message, known)
            faults.raise_if_any()
            updated = convert.to_policy(message)
            if replace(updated, revision=current.revision) == current:
                return convert.from_policy(current)
            updated = stamped(updated, current.revision + 1, self._clock.now())
            await policies.add(updated, Action.UPDATE, request.reason)
        await self._keeper.refresh()
        return convert.from_policy(updated)

    async def DeletePolicy(self, request: pb.DeletePolicyRequest, context: Context) -> Empty:
        check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = unchanged("policy", request.name, await policies.get(request.name), request.etag)
            await policies.add(stamped(current, current.revision + 1, self._clock.now()), Action.DELETE, request.reason)
        await self._keeper.refresh()
        return Empty()

    async def ListPolicyRevisions(
        self, request: pb.ListPolicyRevisionsRequest, context: Context
    ) -> pb.ListPolicyRevisionsResponse:
        # A token is valid for the policy that it was made for.
        kind = f"revisions of {request.name}"
        before = pagination.read_token(kind, request.page_token, BEFORE_ALL)
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
        check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = unchanged("policy", request.name, await policies.get(request.name), request.etag)
            older = await policies.revision(request.name, min(request.revision, limits.MAX_REVISION))
            if older is None:
                raise not_found("revision of policy", f"{request.name}/{request.revision}")
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            gone = [name for name in older.policy.directives if name not in known]
            if gone:
                fault = f"is {request.revision}, which allows {', '.join(gone)}; no longer there"
                raise invalid_argument([FieldViolation("revision", fault)])
            restored = stamped(older.policy, current.revision + 1, self._clock.now())
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

    async def CheckPolicies(self, request: pb.CheckPoliciesRequest, context: Context) -> pb.CheckPoliciesResponse:
        raise unimplemented("CheckPolicies")

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        raise unimplemented("Apply")
