"""Service Policies: policies, their history, and what they would decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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
)
from common.grpc_server import Context
from common.model_identity import model_identity
from router import convert, limits, pagination, policy_messages
from router.apply import Change, check_names, work_out, write
from router.conflicts import find_conflicts
from router.directives.bounds import Snapshot
from router.directives.decide import Accepting, Spent, no_other_model, nothing_spent
from router.directives.levels import L0, Directive
from router.directives.policy import Policy
from router.directives.tell import Tell, tells_nothing
from router.explain import explain
from router.field_mask import merge
from router.fleet.view import EngineView
from router.optimizer.costs import Cost, CostBook
from router.replay.simulate import DEFAULT_SPAN, Simulator
from router.replay.simulation import Simulated
from router.revision import BEFORE_ALL, FIXED, check_change, existing, name_of, stamped, unchanged
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action
from router.validation import RequestLimits, check
from router.window import before, read_window

SERVICE = pb.DESCRIPTOR.services_by_name["Policies"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}


class PoliciesService(policies_pb2_grpc.PoliciesServicer):
    """Every change is one transaction, in force here when the call returns.

    Args:
        grams: Carbon of a request at the present intensity; None where that is unknown.
        identity: "name@digest" of what serves a model (empty: the default); empty where no engine serves it.
        engines: The engines as this router sees them now.
        spent: What each policy's requests have emitted today.
        accepting: The models that some engine accepts requests for.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        costs: CostBook,
        grams: Callable[[Cost], float | None],
        identity: Callable[[str], str],
        engines: Callable[[], Sequence[EngineView]],
        simulator: Simulator,
        request_limits: RequestLimits,
        spent: Spent = nothing_spent,
        tell: Tell = tells_nothing,
        accepting: Accepting = no_other_model,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._costs = costs
        self._grams = grams
        self._identity = identity
        self._engines = engines
        self._request_limits = request_limits
        self._spent = spent
        self._tell = tell
        self._accepting = accepting
        self._simulator = simulator

    async def CreatePolicy(self, request: pb.CreatePolicyRequest, context: Context) -> pb.Policy:
        faults = Violations()
        limits.check_text(faults, "reason", request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            limits.check_policy(faults, request.policy, known)
            faults.raise_if_any()
            given = policy_messages.to_policy(request.policy)
            if await policies.get(given.name):
                raise already_exists("policy", given.name)
            created = stamped(given, await policies.last_revision(given.name) + 1, self._clock.now())
            await policies.add(created, Action.CREATE, request.reason)
        await self._keeper.refresh()
        return policy_messages.from_policy(created)

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.Policy:
        async with self._database.reading() as connection:
            found = await PolicyRepository(connection).get(request.name)
        return policy_messages.from_policy(existing("policy", request.name, found))

    async def ListPolicies(self, request: pb.ListPoliciesRequest, context: Context) -> pb.ListPoliciesResponse:
        async with self._database.reading() as connection:
            every = await PolicyRepository(connection).all()
        page, token = pagination.page("policies", every, name_of, "", request.page_size, request.page_token)
        return pb.ListPoliciesResponse(policies=map(policy_messages.from_policy, page), next_page_token=token)

    async def UpdatePolicy(self, request: pb.UpdatePolicyRequest, context: Context) -> pb.Policy:
        given = request.policy
        check_change("policy.", given.name, given.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            current = unchanged("policy", given.name, await policies.get(given.name), given.etag)
            message = merge(policy_messages.from_policy(current), given, request.update_mask, FIXED)
            faults = Violations()
            known = {directive.name for directive in await DirectiveRepository(connection).all()}
            limits.check_policy(faults, message, known)
            faults.raise_if_any()
            updated = policy_messages.to_policy(message)
            if replace(updated, revision=current.revision) == current:
                return policy_messages.from_policy(current)
            updated = stamped(updated, current.revision + 1, self._clock.now())
            await policies.add(updated, Action.UPDATE, request.reason)
        await self._keeper.refresh()
        return policy_messages.from_policy(updated)

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
            revisions=map(policy_messages.from_policy_revision, page),
            next_page_token=pagination.write_token(kind, page[-1].policy.revision) if len(found) > size else "",
        )

    async def RollbackPolicy(self, request: pb.RollbackPolicyRequest, context: Context) -> pb.Policy:
        check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            policies = PolicyRepository(connection)
            # Of one that is deleted, the deletion.
            newest = await policies.revisions(request.name, 1)
            present = newest[0].policy if newest else None
            current = unchanged("policy", request.name, present, request.etag)
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
        return policy_messages.from_policy(restored)

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.ExplainResponse:
        asked = request.request
        check(asked, self._request_limits, messages_needed=False)
        model = self._identity(asked.model)
        if asked.model and not model:
            raise not_found("model", asked.model)
        caller = current_request()
        tenant = asked.tenant or (caller.principal.tenant if caller else "")
        now = self._clock.now()
        return explain(
            asked,
            tenant,
            model,
            self._keeper.snapshot,
            self._costs,
            self._grams,
            now,
            self._spent,
            self._tell,
            self._accepting,
        )

    async def Simulate(self, request: pb.SimulateRequest, context: Context) -> pb.SimulateResponse:
        now = self._clock.now()
        faults = Violations()
        snapshot = self._keeper.snapshot
        limits.check_policy(faults, request.policy, snapshot.directives.keys() - {L0.name})
        start, end = read_window(faults, request, now)
        faults.raise_if_any()
        candidate = policy_messages.to_policy(request.policy)
        start = start or before(end, DEFAULT_SPAN)
        return _from_simulated(await self._simulator.simulate(candidate, start, end, snapshot, now))

    async def CheckPolicies(self, request: pb.CheckPoliciesRequest, context: Context) -> pb.CheckPoliciesResponse:
        faults = Violations()
        check_names(faults, "policies", [policy.name for policy in request.policies])
        faults.raise_if_any()
        # A directive that does not exist is a finding here, not a fault of the request.
        for index, policy in enumerate(request.policies):
            limits.check_policy(faults, policy, set(policy.directives), f"policies[{index}]")
        faults.raise_if_any()
        given = {policy.name: policy_messages.to_policy(policy) for policy in request.policies}
        snapshot = self._keeper.snapshot
        others = (policy for policy in snapshot.policies if policy.name not in given)
        findings = await self._findings(replace(snapshot, policies=(*others, *given.values())))
        return pb.CheckPoliciesResponse(findings=findings)

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        now = self._clock.now()
        transaction = self._database.reading() if request.validate_only else self._database.changing()
        async with transaction as connection:
            directives, policies = DirectiveRepository(connection), PolicyRepository(connection)
            outcome = await work_out(request, directives, policies, now)
            if not request.validate_only:
                await write(outcome, directives, policies, request.reason)
        if not request.validate_only:
            await self._keeper.refresh()
        result = replace(
            self._keeper.snapshot,
            directives={directive.name: directive for directive in (L0, *outcome.directives)},
            policies=outcome.policies,
        )
        return pb.ApplyResponse(changes=map(_from_change, outcome.changes), findings=await self._findings(result))

    async def _findings(self, snapshot: Snapshot) -> Sequence[pb.Finding]:
        read = {view.name: tuple(view.model.template_variables) for view in self._engines() if view.model is not None}
        models = {
            model_identity(view.model.model, view.model.model_digest)
            for view in self._engines()
            if view.model is not None
        }
        # Every policy is held against every bound.
        found = await asyncio.to_thread(find_conflicts, snapshot, read, self._clock.now(), models)
        return [
            pb.Finding(
                severity=pb.Finding.Severity.Value(f"SEVERITY_{finding.severity.name}"),
                subject=finding.subject,
                others=finding.others,
                code=finding.code,
                message=finding.message,
            )
            for finding in found
        ]


def _from_change(change: Change[Directive] | Change[Policy]) -> pb.ApplyResponse.Change:
    message = pb.ApplyResponse.Change()
    for when, resource in (("before", change.before), ("after", change.after)):
        if isinstance(resource, Directive):
            getattr(message, f"directive_{when}").CopyFrom(policy_messages.from_directive(resource))
        elif resource is not None:
            getattr(message, f"policy_{when}").CopyFrom(policy_messages.from_policy(resource))
    return message


def _from_simulated(simulated: Simulated) -> pb.SimulateResponse:
    return pb.SimulateResponse(
        requests=simulated.requests,
        requests_without_energy=simulated.requests_without_energy,
        recorded_grams=simulated.recorded_grams,
        simulated_grams=None if simulated.simulated_grams is None else convert.from_interval(simulated.simulated_grams),
        saving=None if simulated.saving is None else convert.from_interval(simulated.saving),
        served=[
            pb.SimulateResponse.Served(directive=directive, reason=convert.from_reason(reason), requests=requests)
            for directive, reason, requests in simulated.served
        ],
        assumptions=simulated.assumptions,
    )
