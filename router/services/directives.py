"""Service Directives: directives and their history."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf.empty_pb2 import Empty
from pith.router.v1 import directives_pb2 as pb
from pith.router.v1 import directives_pb2_grpc

from common.auth import Role
from common.clock import Clock
from common.errors import Violations, already_exists, failed_precondition, not_found
from common.grpc_server import Context
from router import limits, pagination, policy_messages
from router.directives.levels import L0
from router.field_mask import merge
from router.revision import BEFORE_ALL, FIXED, check_change, existing, name_of, stamped, unchanged
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.directives import DirectiveRepository
from router.store.policies import PolicyRepository
from router.store.revisions import Action

SERVICE = pb.DESCRIPTOR.services_by_name["Directives"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}


class DirectivesService(directives_pb2_grpc.DirectivesServicer):
    """Every change is one transaction, in force here when the call returns."""

    def __init__(self, database: Database, keeper: SnapshotKeeper, clock: Clock) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock

    async def CreateDirective(self, request: pb.CreateDirectiveRequest, context: Context) -> pb.Directive:
        if request.directive.name == L0.name:
            raise already_exists("directive", L0.name)
        faults = Violations()
        limits.check_directive(faults, request.directive)
        limits.check_text(faults, "reason", request.reason)
        faults.raise_if_any()
        given = policy_messages.to_directive(request.directive)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            if await directives.get(given.name):
                raise already_exists("directive", given.name)
            created = stamped(given, await directives.last_revision(given.name) + 1, self._clock.now())
            await directives.add(created, Action.CREATE, request.reason)
        await self._keeper.refresh()
        return policy_messages.from_directive(created)

    async def GetDirective(self, request: pb.GetDirectiveRequest, context: Context) -> pb.Directive:
        async with self._database.reading() as connection:
            found = L0 if request.name == L0.name else await DirectiveRepository(connection).get(request.name)
        return policy_messages.from_directive(existing("directive", request.name, found))

    async def ListDirectives(self, request: pb.ListDirectivesRequest, context: Context) -> pb.ListDirectivesResponse:
        async with self._database.reading() as connection:
            stored = await DirectiveRepository(connection).all()
        every = sorted((L0, *stored), key=name_of)
        page, token = pagination.page("directives", every, name_of, "", request.page_size, request.page_token)
        return pb.ListDirectivesResponse(directives=map(policy_messages.from_directive, page), next_page_token=token)

    async def UpdateDirective(self, request: pb.UpdateDirectiveRequest, context: Context) -> pb.Directive:
        given = request.directive
        check_change("directive.", given.name, given.etag, request.reason)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            current = L0 if given.name == L0.name else await directives.get(given.name)
            current = unchanged("directive", given.name, current, given.etag)
            message = merge(policy_messages.from_directive(current), given, request.update_mask, FIXED)
            faults = Violations()
            limits.check_directive(faults, message)
            faults.raise_if_any()
            updated = policy_messages.to_directive(message)
            # Every field but the name is one that answers depend on; without a change, bounds stay valid.
            if replace(updated, revision=current.revision) == current:
                return policy_messages.from_directive(current)
            updated = stamped(updated, current.revision + 1, self._clock.now())
            await directives.add(updated, Action.UPDATE, request.reason)
        await self._keeper.refresh()
        return policy_messages.from_directive(updated)

    async def DeleteDirective(self, request: pb.DeleteDirectiveRequest, context: Context) -> Empty:
        if request.name == L0.name:
            raise failed_precondition("IN_USE", "L0 is what all else is compared with", {"used_by": "every policy"})
        check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            current = await directives.get(request.name)
            current = unchanged("directive", request.name, current, request.etag)
            users = [p.name for p in await PolicyRepository(connection).all() if current.name in p.directives]
            if users:
                by = ", ".join(users)
                raise failed_precondition("IN_USE", f"{current.name} is allowed by policies: {by}", {"used_by": by})
            deleted = stamped(current, current.revision + 1, self._clock.now())
            await directives.add(deleted, Action.DELETE, request.reason)
        await self._keeper.refresh()
        return Empty()

    async def ListDirectiveRevisions(
        self, request: pb.ListDirectiveRevisionsRequest, context: Context
    ) -> pb.ListDirectiveRevisionsResponse:
        # A token is valid for the directive that it was made for.
        kind = f"revisions of directive {request.name}"
        before = pagination.read_token(kind, request.page_token, BEFORE_ALL)
        size = pagination.page_size(request.page_size)
        async with self._database.reading() as connection:
            directives = DirectiveRepository(connection)
            if not await directives.last_revision(request.name):
                raise not_found("directive", request.name)
            found = await directives.revisions(request.name, size + 1, before or None)
        page = found[:size]
        return pb.ListDirectiveRevisionsResponse(
            revisions=map(policy_messages.from_directive_revision, page),
            next_page_token=pagination.write_token(kind, page[-1].directive.revision) if len(found) > size else "",
        )

    async def RollbackDirective(self, request: pb.RollbackDirectiveRequest, context: Context) -> pb.Directive:
        check_change("", request.name, request.etag, request.reason)
        async with self._database.changing() as connection:
            directives = DirectiveRepository(connection)
            # Of one that is deleted, the deletion.
            newest = await directives.revisions(request.name, 1)
            present = newest[0].directive if newest else None
            current = unchanged("directive", request.name, present, request.etag)
            older = await directives.revision(request.name, min(request.revision, limits.MAX_REVISION))
            if older is None:
                raise not_found("revision of directive", f"{request.name}/{request.revision}")
            # It may be from before a rule that holds now.
            faults = Violations()
            limits.check_directive(
                faults, policy_messages.from_directive(older.directive), f"revision {request.revision}"
            )
            faults.raise_if_any()
            restored = stamped(older.directive, current.revision + 1, self._clock.now())
            await directives.add(restored, Action.ROLLBACK, request.reason)
        await self._keeper.refresh()
        return policy_messages.from_directive(restored)
