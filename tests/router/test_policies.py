"""Service Policies over gRPC: directives and policies are made, changed and listed."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pith.router.v1 import directives_pb2 as dpb
from pith.router.v1 import policies_pb2

from common.clock import ManualClock
from router import pagination
from router.snapshot import SnapshotKeeper
from router.store.database import Database, change_counter
from router.store.directives import DirectiveRepository
from tests.postgres import on_both_databases
from tests.router.admin_client import AdminClient, faults, refused

pb: Any = policies_pb2


@pytest.fixture
async def admin(client: AdminClient) -> AsyncIterator[Any]:
    yield client.policies


async def create_directive(admin: Any, name: str, **fields: Any) -> Any:
    return await admin.CreateDirective(dpb.CreateDirectiveRequest(directive=dpb.Directive(name=name, **fields)))


async def create_policy(admin: Any, name: str, **fields: Any) -> Any:
    fields = {"floor": 0.9, "directives": ["L1"], **fields}
    return await admin.CreatePolicy(pb.CreatePolicyRequest(policy=pb.Policy(name=name, **fields), reason="test"))


async def update_policy(admin: Any, name: str, etag: str, *paths: str, **fields: Any) -> Any:
    mask = FieldMask(paths=paths) if paths else None
    request = pb.UpdatePolicyRequest(policy=pb.Policy(name=name, etag=etag, **fields), update_mask=mask)
    return await admin.UpdatePolicy(request)


async def test_a_new_router_decides_and_records_but_changes_nothing(admin: Any) -> None:
    (policy,) = (await admin.ListPolicies(pb.ListPoliciesRequest())).policies
    assert (policy.name, policy.tenant, policy.task) == ("default", "", "")
    assert (policy.mode, policy.floor, policy.floor_kind) == (pb.MODE_SHADOW, 0.95, pb.FLOOR_KIND_RELATIVE)
    assert list(policy.directives) == ["L1", "L2"]
    directives = (await admin.ListDirectives(dpb.ListDirectivesRequest())).directives
    assert [(d.name, d.text) for d in directives] == [
        ("L0", ""),
        ("L1", "Always answer briefly"),
        ("L2", "Always answer very briefly"),
    ]
    assert (await admin.GetDirective(dpb.GetDirectiveRequest(name="L0"))).name == "L0"


async def test_what_is_left_out_gets_its_default(admin: Any) -> None:
    policy = await create_policy(admin, "plain")
    assert (policy.mode, policy.floor_kind) == (pb.MODE_SHADOW, pb.FLOOR_KIND_RELATIVE)
    assert (policy.traffic_share, policy.holdback_share, policy.sample_share) == (1.0, 0.02, 0.05)
    assert policy.bound_max_age_seconds == 604_800
    zeros = await create_policy(admin, "zeros", traffic_share=0, holdback_share=0, sample_share=0)
    assert (zeros.traffic_share, zeros.holdback_share, zeros.sample_share) == (0.0, 0.0, 0.0)
    assert (await create_directive(admin, "plain")).placement == dpb.PLACEMENT_TAIL


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"name": "a/b"}, "policy.name", "is 'a/b'; must be 1 to 64"),
        ({"floor": math.nan}, "policy.floor", "is nan; must be above 0 and at most 1"),
        ({"floor": 0.0}, "policy.floor", "is 0; must be above 0 and at most 1"),
        ({"floor": 1.01}, "policy.floor", "is 1.01"),
        ({"floor": -math.inf}, "policy.floor", "is -inf"),
        ({"floor_kind": 7}, "policy.floor_kind", "is 7; must be one of FLOOR_KIND_RELATIVE, FLOOR_KIND_ABSOLUTE"),
        ({"mode": -1}, "policy.mode", "is -1; must be one of MODE_OFF, MODE_SHADOW, MODE_ON"),
        ({"traffic_share": 1.5}, "policy.traffic_share", "is 1.5; must be in [0, 1]"),
        ({"traffic_share": math.nan}, "policy.traffic_share", "is nan"),
        ({"holdback_share": 0.6}, "policy.holdback_share", "is 0.6; must be in [0, 0.5]"),
        ({"sample_share": -0.1}, "policy.sample_share", "is -0.1; must be in [0, 1]"),
        ({"directives": ["L1", "L9"]}, "policy.directives[1]", "is 'L9', which does not exist; must be one of L1, L2"),
        ({"directives": ["L0"]}, "policy.directives[0]", "is L0, which is always allowed"),
        ({"directives": ["L1", "L1"]}, "policy.directives[1]", "is L1 again"),
        ({"directives": ["L1"] * 33}, "policy.directives", "has 33 names; at most 32"),
        ({"grader": "vibes"}, "policy.grader", "is 'vibes'; must be one of alias, choice, exact, item_set, numeric, "),
        ({"bound_max_age_seconds": 2**63}, "policy.bound_max_age_seconds", "at most 31,622,400"),
        ({"tenant": "t" * 129}, "policy.tenant", "has 129 characters; at most 128"),
        ({"task": "a\x00"}, "policy.task", "control character U+0000"),
    ],
)
async def test_a_faulty_policy_is_refused_by_field(admin: Any, fields: Any, field: str, fault: str) -> None:
    found = await faults(create_policy(admin, **{"name": "new", **fields}))
    assert set(found) == {field}
    assert fault in found[field]
    assert len((await admin.ListPolicies(pb.ListPoliciesRequest())).policies) == 1


async def test_all_faults_are_told_at_once(admin: Any) -> None:
    policy = pb.Policy(name="", floor=2, grader="vibes", sample_share=9)
    found = await faults(admin.CreatePolicy(pb.CreatePolicyRequest(policy=policy, reason="x" * 1001)))
    assert set(found) == {"policy.name", "policy.floor", "policy.grader", "policy.sample_share", "reason"}
    assert found["reason"] == "has 1,001 characters; at most 1,000"


@on_both_databases
async def test_a_name_is_taken_once(admin: Any) -> None:
    await refused(create_directive(admin, "L1"), "ALREADY_EXISTS", "RESOURCE_EXISTS")
    await refused(create_directive(admin, "L0"), "ALREADY_EXISTS", "RESOURCE_EXISTS")
    error = await refused(create_policy(admin, "default"), "ALREADY_EXISTS", "RESOURCE_EXISTS")
    assert error.metadata == {"resource": "policy", "name": "default"}


async def test_what_does_not_exist_is_not_found(admin: Any) -> None:
    for call in (
        admin.GetDirective(dpb.GetDirectiveRequest(name="nobody")),
        admin.GetPolicy(pb.GetPolicyRequest(name="")),
        admin.DeleteDirective(dpb.DeleteDirectiveRequest(name="nobody", etag="x")),
        admin.DeletePolicy(pb.DeletePolicyRequest(name="nobody", etag="x")),
        update_policy(admin, "nobody", "x"),
        admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="nobody")),
        admin.RollbackPolicy(pb.RollbackPolicyRequest(name="nobody", etag="x", revision=1)),
    ):
        await refused(call, "NOT_FOUND", "RESOURCE_NOT_FOUND")


async def test_an_update_changes_what_the_mask_names(admin: Any) -> None:
    made = await create_policy(admin, "p", traffic_share=0.3, task="sums", grader="exact", sample_share=0.5)
    changed = await update_policy(
        admin, "p", made.etag, "floor", "traffic_share", "grader", floor=0.8, task="ignored", mode=pb.MODE_ON
    )
    assert (changed.floor, changed.traffic_share, changed.grader) == (0.8, 1.0, "")
    assert (changed.task, changed.mode, changed.sample_share) == ("sums", pb.MODE_SHADOW, 0.5)
    assert (changed.revision, changed.etag != made.etag) == (2, True)
    cleared = await update_policy(admin, "p", changed.etag, "directives")
    assert list(cleared.directives) == []


async def test_an_update_without_a_mask_changes_every_field_that_is_set(admin: Any) -> None:
    made = await create_policy(admin, "p", task="sums", sample_share=0.5)
    changed = await update_policy(admin, "p", made.etag, mode=pb.MODE_ON, holdback_share=0.0)
    assert (changed.mode, changed.holdback_share) == (pb.MODE_ON, 0.0)
    assert (changed.task, changed.sample_share, list(changed.directives)) == ("sums", 0.5, ["L1"])


async def test_a_star_replaces_all(admin: Any) -> None:
    made = await create_policy(admin, "p", task="sums", sample_share=0.5)
    changed = await update_policy(admin, "p", made.etag, "*", floor=0.7)
    assert (changed.floor, changed.task, changed.sample_share, list(changed.directives)) == (0.7, "", 0.05, [])


async def test_an_unknown_path_is_named(admin: Any) -> None:
    made = await create_policy(admin, "p")
    found = await faults(update_policy(admin, "p", made.etag, "floor", "colour", floor=0.5))
    assert "has 'colour'; must name fields of Policy: tenant, task" in found["update_mask"]
    assert (await admin.GetPolicy(pb.GetPolicyRequest(name="p"))).floor == 0.9


async def test_an_update_is_checked_as_a_whole(admin: Any) -> None:
    made = await create_policy(admin, "p")
    assert set(await faults(update_policy(admin, "p", made.etag, "floor"))) == {"policy.floor"}
    found = await faults(update_policy(admin, "p", made.etag, "directives", directives=["gone"]))
    assert set(found) == {"policy.directives[0]"}
    assert await admin.GetPolicy(pb.GetPolicyRequest(name="p")) == made


@on_both_databases
async def test_an_etag_is_needed_and_must_be_the_present_one(admin: Any) -> None:
    made = await create_policy(admin, "p")
    delete = dpb.DeleteDirectiveRequest(name="L1")
    assert set(await faults(update_policy(admin, "p", "", floor=0.5))) == {"policy.etag"}
    assert set(await faults(admin.DeleteDirective(delete))) == {"etag"}
    changed = await update_policy(admin, "p", made.etag, floor=0.5)
    for call in (
        update_policy(admin, "p", made.etag, floor=0.6),
        admin.DeletePolicy(pb.DeletePolicyRequest(name="p", etag=made.etag)),
        admin.RollbackPolicy(pb.RollbackPolicyRequest(name="p", etag=made.etag, revision=1)),
    ):
        error = await refused(call, "ABORTED", "ETAG_MISMATCH")
        assert error.metadata["etag"] == changed.etag
    assert (await admin.GetPolicy(pb.GetPolicyRequest(name="p"))).floor == 0.5


async def test_a_change_that_changes_nothing_makes_no_revision(admin: Any) -> None:
    made = await create_policy(admin, "p")
    assert await update_policy(admin, "p", made.etag, floor=0.9) == made
    assert await update_policy(admin, "p", made.etag, "etag", "name") == made
    directive = await admin.GetDirective(dpb.GetDirectiveRequest(name="L1"))
    same = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=directive, reason="to be sure"))
    assert (same.revision, same.etag) == (1, directive.etag)


@on_both_databases
async def test_history_and_rollback(admin: Any, clock: ManualClock) -> None:
    made = await create_policy(admin, "p", floor=0.9)
    await clock.advance(60)
    changed = await update_policy(admin, "p", made.etag, floor=0.5)
    back = await admin.RollbackPolicy(
        pb.RollbackPolicyRequest(name="p", etag=changed.etag, revision=1, reason="too low")
    )
    assert (back.floor, back.revision) == (0.9, 3)
    assert len({made.etag, changed.etag, back.etag}) == 3
    await admin.DeletePolicy(pb.DeletePolicyRequest(name="p", etag=back.etag, reason="done"))
    found = (await admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="p"))).revisions
    assert [(r.policy.revision, r.action, r.reason, r.policy.floor) for r in found] == [
        (4, "delete", "done", 0.9),
        (3, "rollback", "too low", 0.9),
        (2, "update", "", 0.5),
        (1, "create", "test", 0.9),
    ]
    assert {r.policy.updated_by for r in found} == {"the admin"}
    assert found[2].policy.updated_at.ToSeconds() - found[3].policy.updated_at.ToSeconds() == 60


@on_both_databases
async def test_a_deleted_policy_comes_back_by_a_rollback(admin: Any, keeper: SnapshotKeeper) -> None:
    made = await create_policy(admin, "p", floor=0.9)
    changed = await update_policy(admin, "p", made.etag, floor=0.5)
    await admin.DeletePolicy(pb.DeletePolicyRequest(name="p", etag=changed.etag))
    history = pb.ListPolicyRevisionsRequest(name="p")
    deletion = (await admin.ListPolicyRevisions(history)).revisions[0]
    assert deletion.action == "delete"
    # The etag to give is that of the deletion.
    stale = pb.RollbackPolicyRequest(name="p", etag=changed.etag, revision=1)
    await refused(admin.RollbackPolicy(stale), "ABORTED", "ETAG_MISMATCH")
    back = await admin.RollbackPolicy(pb.RollbackPolicyRequest(name="p", etag=deletion.policy.etag, revision=1))
    assert (back.floor, back.revision) == (0.9, 4)
    assert await admin.GetPolicy(pb.GetPolicyRequest(name="p")) == back
    assert "p" in {policy.name for policy in keeper.snapshot.policies}
    assert (await admin.ListPolicyRevisions(history)).revisions[0].action == "rollback"


async def test_a_rollback_to_what_no_longer_fits(admin: Any) -> None:
    directive = await create_directive(admin, "terse")
    made = await create_policy(admin, "p", directives=["terse"])
    changed = await update_policy(admin, "p", made.etag, "directives")
    await admin.DeleteDirective(dpb.DeleteDirectiveRequest(name="terse", etag=directive.etag))
    rollback = pb.RollbackPolicyRequest(name="p", etag=changed.etag, revision=1)
    assert await faults(admin.RollbackPolicy(rollback)) == {"revision": "is 1, which allows terse; no longer there"}
    for revision in (0, 9, 2**32 - 1):
        rollback.revision = revision
        await refused(admin.RollbackPolicy(rollback), "NOT_FOUND", "RESOURCE_NOT_FOUND")


@on_both_databases
async def test_of_two_who_create_at_once_one_wins(admin: Any, keeper: SnapshotKeeper) -> None:
    calls = (create_policy(admin, "p", floor=0.5 + number / 100) for number in range(6))
    results = await asyncio.gather(*calls, return_exceptions=True)
    won = [result for result in results if not isinstance(result, BaseException)]
    lost = [result.code().name for result in results if isinstance(result, BaseException)]  # type: ignore[attr-defined]
    assert (len(won), lost) == (1, ["ALREADY_EXISTS"] * 5)
    assert await admin.GetPolicy(pb.GetPolicyRequest(name="p")) == won[0]
    assert [p.floor for p in keeper.snapshot.policies if p.name == "p"] == [won[0].floor]


@on_both_databases
async def test_of_two_who_update_at_once_one_wins(admin: Any) -> None:
    made = await create_policy(admin, "p")
    for _ in range(3):
        calls = (update_policy(admin, "p", made.etag, floor=0.1 + made.floor / 2 + n / 100) for n in range(6))
        results = await asyncio.gather(*calls, return_exceptions=True)
        won = [result for result in results if not isinstance(result, BaseException)]
        lost = [result.code().name for result in results if isinstance(result, BaseException)]  # type: ignore[attr-defined]
        assert (len(won), lost) == (1, ["ABORTED"] * 5)
        made = won[0]
    revisions = (await admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="p"))).revisions
    assert [r.policy.revision for r in revisions] == [4, 3, 2, 1]


@on_both_databases
async def test_every_change_is_noticed_by_other_routers(admin: Any, database: Database) -> None:
    async def counter() -> int:
        async with database.reading() as connection:
            return await change_counter(connection)

    seen = [await counter()]
    directive = await create_directive(admin, "terse")
    seen.append(await counter())
    directive.text = "One line"
    directive = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=directive))
    seen.append(await counter())
    await admin.DeleteDirective(dpb.DeleteDirectiveRequest(name="terse", etag=directive.etag))
    seen.append(await counter())
    policy = await create_policy(admin, "p")
    seen.append(await counter())
    policy = await update_policy(admin, "p", policy.etag, floor=0.5)
    seen.append(await counter())
    policy = await admin.RollbackPolicy(pb.RollbackPolicyRequest(name="p", etag=policy.etag, revision=1))
    seen.append(await counter())
    await admin.DeletePolicy(pb.DeletePolicyRequest(name="p", etag=policy.etag))
    seen.append(await counter())
    assert sorted(set(seen)) == seen


@on_both_databases
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(0, 2))
async def test_pages_hold_everything_once_and_in_order(admin: Any, sizes: list[int], which: int) -> None:
    names = {p.name for p in (await admin.ListPolicies(pb.ListPoliciesRequest(page_size=500))).policies}
    for number in range(17):
        if f"p{number}" not in names:
            await create_policy(admin, f"p{number}")
            await create_directive(admin, f"d{number}")
    revised = await admin.GetPolicy(pb.GetPolicyRequest(name="default"))
    revised = await update_policy(admin, "default", revised.etag, floor=0.9 - revised.revision / 1000)

    async def page(size: int, token: str) -> tuple[list[Any], str]:
        if which == 0:
            reply = await admin.ListPolicies(pb.ListPoliciesRequest(page_size=size, page_token=token))
            return [policy.name for policy in reply.policies], reply.next_page_token
        if which == 1:
            reply = await admin.ListDirectives(dpb.ListDirectivesRequest(page_size=size, page_token=token))
            return [directive.name for directive in reply.directives], reply.next_page_token
        request = pb.ListPolicyRevisionsRequest(name="default", page_size=size, page_token=token)
        reply = await admin.ListPolicyRevisions(request)
        return [-revision.policy.revision for revision in reply.revisions], reply.next_page_token

    everything, _ = await page(500, "")
    found: list[Any] = []
    token, turn = "", 0
    while turn == 0 or token:
        size = sizes[turn % len(sizes)]
        items, token = await page(size, token)
        assert len(items) == size or not token
        found += items
        assert len(found) <= len(everything)
        turn += 1
    assert found == everything == sorted(set(everything))


@pytest.mark.parametrize("token", ["x", "é", "WzFd", "W10", "bnVsbA", "=", "a" * 5000, "WyJwb2xpY2llcyIsIDFd"])
async def test_a_made_up_page_token_is_refused(admin: Any, token: str) -> None:
    for call in (
        admin.ListPolicies(pb.ListPoliciesRequest(page_token=token)),
        admin.ListDirectives(dpb.ListDirectivesRequest(page_token=token)),
        admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="default", page_token=token)),
    ):
        assert "is not a token of this list" in (await faults(call))["page_token"]


async def test_a_page_token_beyond_all_that_is_counted_is_refused(admin: Any) -> None:
    for position in (2**40, 10**30, -1):
        token = pagination.write_token("revisions of default", position)
        call = admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="default", page_token=token))
        assert "is not a token of this list" in (await faults(call))["page_token"]


async def test_a_page_token_of_another_list_is_refused(admin: Any) -> None:
    token = (await admin.ListDirectives(dpb.ListDirectivesRequest(page_size=1))).next_page_token
    assert token
    assert set(await faults(admin.ListPolicies(pb.ListPoliciesRequest(page_token=token)))) == {"page_token"}


async def test_only_admins_may(client: AdminClient) -> None:
    for role in ("client", "evaluator"):
        policies, _, _ = client.as_role(role)
        await refused(create_policy(policies, "p"), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED")
    policies, _, _ = client.as_role("nobody")
    await refused(policies.ListPolicies(pb.ListPoliciesRequest()), "UNAUTHENTICATED", "BAD_TOKEN")


async def test_without_its_database_the_service_says_so(admin: Any, database: Database, monkeypatch: Any) -> None:
    from router.store.database import StoreUnavailable

    async def down(_self: DirectiveRepository) -> None:
        raise StoreUnavailable("connection refused")

    monkeypatch.setattr(DirectiveRepository, "all", down)
    error = await refused(admin.ListDirectives(dpb.ListDirectivesRequest()), "UNAVAILABLE", "DATABASE")
    assert "refused" not in error.message
