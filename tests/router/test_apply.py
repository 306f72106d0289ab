"""Apply over gRPC: directives and policies brought to a wished state, all of it or nothing."""

import asyncio
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pith.router.v1 import directives_pb2 as dpb
from pith.router.v1 import policies_pb2

from common.clock import ManualClock
from router.snapshot import SnapshotKeeper
from router.store.database import Database, StoreUnavailable
from router.store.policies import PolicyRepository
from tests.postgres import on_both_databases
from tests.router.admin_client import AdminClient, faults, refused

pb: Any = policies_pb2


@pytest.fixture
def admin(client: AdminClient) -> Any:
    return client.policies


def directive(name: str, text: str = "Be brief", **fields: Any) -> Any:
    return dpb.Directive(name=name, text=text, **fields)


def policy(name: str, **fields: Any) -> Any:
    return pb.Policy(name=name, **{"floor": 0.9, "directives": ["L1"], "tenant": name, **fields})


async def apply(admin: Any, *resources: Any, **fields: Any) -> Any:
    directives = [resource for resource in resources if isinstance(resource, dpb.Directive)]
    policies = [resource for resource in resources if isinstance(resource, pb.Policy)]
    return await admin.Apply(pb.ApplyRequest(directives=directives, policies=policies, reason="from git", **fields))


async def state(admin: Any) -> tuple[list[Any], list[Any]]:
    """All directives but L0, and all policies."""
    directives = (await admin.ListDirectives(dpb.ListDirectivesRequest(page_size=500))).directives
    policies = (await admin.ListPolicies(pb.ListPoliciesRequest(page_size=500))).policies
    return [d for d in directives if d.name != "L0"], list(policies)


def words(reply: Any) -> list[str]:
    """The changes in words, such as "update policy p"."""
    found = []
    for change in reply.changes:
        (kind,) = {field.name.split("_")[0] for field, _ in change.ListFields()}
        before, after = (change.HasField(f"{kind}_{when}") for when in ("before", "after"))
        resource = getattr(change, f"{kind}_{'after' if after else 'before'}")
        found.append(f"{'update' if before and after else 'create' if after else 'delete'} {kind} {resource.name}")
    return found


@on_both_databases
async def test_what_is_wished_is_made_and_in_force(admin: Any, keeper: SnapshotKeeper, clock: ManualClock) -> None:
    await clock.advance(5)
    reply = await apply(
        admin, policy("p", directives=["terse", "L1"]), directive("terse"), directive("L1", text="In one line")
    )
    # Directives first, so that no policy ever names one that is not there.
    assert words(reply) == ["create directive terse", "update directive L1", "create policy p"]
    created, updated, allowed = reply.changes
    assert (updated.directive_before.text, updated.directive_before.revision) == ("Always answer briefly", 1)
    assert (updated.directive_after.text, updated.directive_after.revision) == ("In one line", 2)
    assert (created.directive_after.updated_by, allowed.policy_after.revision) == ("the admin", 1)
    assert allowed.policy_after.updated_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()
    directives, policies = await state(admin)
    assert [d for d in directives if d.name != "L2"] == [updated.directive_after, created.directive_after]
    assert [p.name for p in policies] == ["default", "p"]
    assert policies[1] == allowed.policy_after
    assert keeper.snapshot.directives["L1"].text == "In one line"
    assert [p.name for p in keeper.snapshot.policies] == ["default", "p"]
    history = await admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="p"))
    assert [(r.action, r.reason) for r in history.revisions] == [("create", "from git")]


@on_both_databases
async def test_the_same_twice_changes_nothing_and_makes_no_revision(admin: Any) -> None:
    wish = (directive("terse", stop=["\n"]), policy("p", directives=["terse"], latency=pb.LatencyObjective(seconds=2)))
    await apply(admin, *wish)
    before = await state(admin)
    reply = await apply(admin, *wish)
    assert list(reply.changes) == []
    assert await state(admin) == before
    revisions = await admin.ListPolicyRevisions(pb.ListPolicyRevisionsRequest(name="p"))
    assert len(revisions.revisions) == 1


async def test_what_is_there_can_be_taken_as_the_wish(admin: Any) -> None:
    await apply(admin, directive("terse"), policy("p"))
    directives, policies = await state(admin)
    reply = await apply(admin, *directives, *policies, prune=True)
    assert list(reply.changes) == []


@on_both_databases
async def test_an_etag_is_heeded_where_one_is_given(admin: Any) -> None:
    made = (await apply(admin, policy("p"))).changes[0].policy_after
    changed = (await apply(admin, policy("p", floor=0.8))).changes[0].policy_after
    assert (changed.floor, changed.revision) == (0.8, 2)
    stale = policy("p", floor=0.7, etag=made.etag)
    error = await refused(apply(admin, directive("terse"), stale), "ABORTED", "ETAG_MISMATCH")
    assert error.metadata == {"resource": "policy", "name": "p", "etag": changed.etag}
    # Nothing of it was made.
    assert [d.name for d in (await state(admin))[0]] == ["L1", "L2"]
    assert words(await apply(admin, policy("p", floor=0.7, etag=changed.etag))) == ["update policy p"]
    for resource in (policy("gone", etag=made.etag), directive("gone", etag='"x"')):
        error = await refused(apply(admin, resource), "ABORTED", "ETAG_MISMATCH")
        assert "gone has been deleted since it was read" in error.message


@on_both_databases
async def test_prune_deletes_what_is_not_named_but_never_l0(admin: Any, keeper: SnapshotKeeper) -> None:
    await apply(admin, directive("terse"), policy("p", directives=["terse"]), policy("q"))
    reply = await apply(admin, policy("q", directives=["L2"]), directive("L2", "Very brief"), prune=True)
    assert words(reply) == [
        "update directive L2",
        "update policy q",
        "delete policy default",
        "delete policy p",
        "delete directive L1",
        "delete directive terse",
    ]
    assert [[resource.name for resource in kind] for kind in await state(admin)] == [["L2"], ["q"]]
    assert set(keeper.snapshot.directives) == {"L0", "L2"}
    deleted = (await admin.ListDirectiveRevisions(dpb.ListDirectiveRevisionsRequest(name="terse"))).revisions
    assert [(r.directive.revision, r.action, r.reason) for r in deleted] == [
        (2, "delete", "from git"),
        (1, "create", "from git"),
    ]
    # A name that is used again goes on counting.
    again = (await apply(admin, directive("terse", "One word"))).changes[0].directive_after
    assert again.revision == 3
    assert words(await apply(admin, prune=True)) == ["delete policy q", "delete directive L2", "delete directive terse"]
    assert await state(admin) == ([], [])


async def test_a_directive_that_a_remaining_policy_allows_is_not_pruned(admin: Any) -> None:
    before = await state(admin)
    wish = (policy("a", directives=["L1", "L2"]), policy("b"), directive("L2", "Very brief"))
    error = await refused(apply(admin, *wish, prune=True), "FAILED_PRECONDITION", "IN_USE")
    assert error.metadata == {"used_by": "a, b", "name": "L1"}
    assert await state(admin) == before


@on_both_databases
@pytest.mark.parametrize("prune", [False, True])
async def test_validation_alone_shows_the_same_changes_and_makes_none(
    admin: Any, database: Database, prune: bool
) -> None:
    before = await state(admin)
    wish = (directive("L1", "Short"), policy("p"), policy("default", tenant="", mode=pb.MODE_ON))
    tried = await apply(admin, *wish, prune=prune, validate_only=True)
    assert await state(admin) == before
    # Nobody else is made to wait for it, nor told.
    async with database.changing():
        assert len((await apply(admin, *wish, validate_only=True)).changes) == 3
    made = await apply(admin, *wish, prune=prune)
    assert made == tried
    await refused(apply(admin, policy("p", etag='"old"'), validate_only=True), "ABORTED", "ETAG_MISMATCH")


async def test_every_fault_is_told_by_its_place_and_nothing_is_made(admin: Any) -> None:
    before = await state(admin)
    found = await faults(
        apply(
            admin,
            directive("new", "a\x07"),
            directive("L0"),
            policy("p"),
            policy("q", floor=math.nan, mode=7),
            policy("r", directives=["L1", "L9"]),
            policy("s t"),
        )
    )
    assert set(found) == {
        "directives[0].text",
        "directives[1].name",
        "policies[1].floor",
        "policies[1].mode",
        "policies[2].directives[1]",
        "policies[3].name",
    }
    assert "is 'L9', which does not exist" in found["policies[2].directives[1]"]
    assert await state(admin) == before


async def test_a_name_twice_and_too_many_are_refused(admin: Any) -> None:
    found = await faults(apply(admin, policy("p"), policy("q"), policy("p"), directive("d"), directive("d")))
    assert found == {
        "policies[2].name": "is the name of policies[0] too; each may be given once",
        "directives[1].name": "is the name of directives[0] too; each may be given once",
    }
    found = await faults(apply(admin, *(directive(f"d{number}") for number in range(1_001))))
    assert found == {"directives": "has 1,001 entries; at most 1,000"}
    assert set(await faults(admin.Apply(pb.ApplyRequest(reason="x" * 1_001)))) == {"reason"}


async def test_as_many_as_are_allowed(admin: Any) -> None:
    wish = [
        *(directive(f"d{number}", text="x" * 1_000) for number in range(1_000)),
        *(policy(f"p{number}", directives=[f"d{number}"]) for number in range(1_000)),
    ]
    assert len((await apply(admin, *wish)).changes) == 2_000
    assert list((await apply(admin, *wish)).changes) == []


async def test_a_database_that_fails_halfway_leaves_nothing(
    admin: Any, keeper: SnapshotKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await state(admin)

    async def fails(*_: Any) -> None:
        raise StoreUnavailable("disk full")

    # By then the directives are written.
    monkeypatch.setattr(PolicyRepository, "add_many", fails)
    await refused(apply(admin, directive("terse"), policy("p"), policy("q")), "UNAVAILABLE", "DATABASE")
    assert await state(admin) == before
    await keeper.refresh()
    assert set(keeper.snapshot.directives) == {"L0", "L1", "L2"}


@on_both_databases
async def test_two_at_once_come_one_after_the_other(admin: Any) -> None:
    wishes = [(directive("d", text), policy("p", floor=floor)) for text, floor in (("One", 0.5), ("Two", 0.6))]
    replies = await asyncio.gather(*(apply(admin, *wish) for wish in wishes * 4))
    # Whoever comes second finds the first one's work whole.
    assert all(len(reply.changes) in (0, 2) for reply in replies)
    directives, policies = await state(admin)
    texts = {d.name: d.text for d in directives}
    floors = {p.name: p.floor for p in policies}
    assert (texts["d"], floors["p"]) in (("One", 0.5), ("Two", 0.6))


async def test_findings_are_of_the_outcome(admin: Any) -> None:
    wish = (policy("p", tenant="acme"), policy("q", tenant="acme"))
    for validate_only in (True, False):
        reply = await apply(admin, *wish, validate_only=validate_only)
        conflicts = [f for f in reply.findings if f.severity == pb.Finding.SEVERITY_CONFLICT]
        assert [(f.subject, list(f.others), f.code) for f in conflicts] == [("p", ["q"], "same_match")]
    reply = await apply(admin, policy("p"), directive("L1"), prune=True)
    assert "same_match" not in {finding.code for finding in reply.findings}


_NAMES = st.sampled_from(["a", "b", "c"])
_WISHES = st.tuples(
    st.dictionaries(_NAMES, st.sampled_from(["Brief", "Terse"])),
    st.dictionaries(_NAMES, st.tuples(st.sampled_from([0.5, 0.9]), st.sets(_NAMES))),
    st.booleans(),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_WISHES, min_size=1, max_size=4))
async def test_whatever_is_wished_comes_true_or_nothing_changes(admin: Any, wishes: list[Any]) -> None:
    """Held against a model: names with their contents."""
    await apply(admin, prune=True)
    directives: dict[str, str] = {}
    policies: dict[str, tuple[float, set[str]]] = {}
    for new_directives, new_policies, prune in wishes:
        wished_directives = dict(new_directives) if prune else {**directives, **new_directives}
        wished_policies = dict(new_policies) if prune else {**policies, **new_policies}
        named = {name for _, allowed in wished_policies.values() for name in allowed}
        call = apply(
            admin,
            *(directive(name, text) for name, text in new_directives.items()),
            *(policy(name, floor=f, directives=sorted(allowed)) for name, (f, allowed) in new_policies.items()),
            prune=prune,
        )
        if named <= wished_directives.keys():
            reply = await call
            touched = {w.split(" ", 1)[1] for w in words(reply)}
            expected = {f"directive {n}" for n in directives.keys() | wished_directives.keys()
                        if directives.get(n) != wished_directives.get(n)}  # fmt: skip
            expected |= {f"policy {n}" for n in policies.keys() | wished_policies.keys()
                         if policies.get(n) != wished_policies.get(n)}  # fmt: skip
            assert touched == expected
            assert len(reply.changes) == len(expected)
            directives, policies = wished_directives, wished_policies
        else:
            unknown = not named <= directives.keys() | new_directives.keys()
            if unknown:
                await refused(call, "INVALID_ARGUMENT", "INVALID_FIELDS")
            else:
                await refused(call, "FAILED_PRECONDITION", "IN_USE")
        found_directives, found_policies = await state(admin)
        assert {d.name: d.text for d in found_directives} == directives
        assert {p.name: (p.floor, set(p.directives)) for p in found_policies} == policies
