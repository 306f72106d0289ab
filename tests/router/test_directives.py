"""Service Directives over gRPC: what one may say, its history, and the way back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import NULL_VALUE, ListValue, Struct, Value
from pith.router.v1 import directives_pb2, policies_pb2

from common.clock import ManualClock
from router.snapshot import SnapshotKeeper
from tests.router.admin_client import AdminClient, faults, refused

dpb: Any = directives_pb2
pb: Any = policies_pb2

NATIVE = dpb.PLACEMENT_NATIVE


@pytest.fixture
async def admin(client: AdminClient) -> AsyncIterator[Any]:
    yield client.policies


async def create_directive(admin: Any, name: str, **fields: Any) -> Any:
    request = dpb.CreateDirectiveRequest(directive=dpb.Directive(name=name, **fields), reason="test")
    return await admin.CreateDirective(request)


async def create_policy(admin: Any, name: str, *directives: str) -> Any:
    policy = pb.Policy(name=name, floor=0.9, directives=directives)
    return await admin.CreatePolicy(pb.CreatePolicyRequest(policy=policy))


def variables(**values: Any) -> Struct:
    struct = Struct()
    struct.update(values)
    return struct


async def test_a_created_directive_has_all_its_fields_and_author(admin: Any, clock: ManualClock) -> None:
    await clock.advance(5)
    made = await create_directive(
        admin,
        "terse",
        text="Answer in one line",
        placement=dpb.PLACEMENT_SYSTEM,
        max_output_tokens=64,
        stop=["\n\n"],
        suppressed_words=["perhaps"],
        history_messages=4,
    )
    found = await admin.GetDirective(dpb.GetDirectiveRequest(name="terse"))
    assert found == made
    assert (found.text, found.placement, found.max_output_tokens) == (
        "Answer in one line",
        dpb.PLACEMENT_SYSTEM,
        64,
    )
    assert (list(found.stop), list(found.suppressed_words), found.history_messages) == (["\n\n"], ["perhaps"], 4)
    assert (found.revision, found.updated_by) == (1, "the admin")
    assert found.updated_at.ToDatetime(tzinfo=clock.now().tzinfo) == clock.now()


@pytest.mark.parametrize(
    ("fields", "field", "fault"),
    [
        ({"name": ""}, "directive.name", "is ''; must be 1 to 64"),
        ({"name": "a b"}, "directive.name", "is 'a b'; must be"),
        ({"name": "ü"}, "directive.name", "must be 1 to 64 letters"),
        ({"name": "x" * 65}, "directive.name", "must be 1 to 64"),
        ({"name": "L1\n"}, "directive.name", "must be 1 to 64"),
        ({"text": "x" * 1001}, "directive.text", "has 1,001 characters; at most 1,000"),
        ({"text": "a\x07"}, "directive.text", "control character U+0007 at 1"),
        ({"text": "a\nb"}, "directive.text", "control character U+000A"),
        ({"placement": 9}, "directive.placement", "is 9; must be one of PLACEMENT_TAIL, PLACEMENT_SYSTEM"),
        ({"max_output_tokens": 2**32 - 1}, "directive.max_output_tokens", "is 4,294,967,295; at most 1,000,000"),
        ({"history_messages": 10_001}, "directive.history_messages", "is 10,001; at most 10,000"),
        ({"stop": ["x"] * 17}, "directive.stop", "has 17 entries; at most 16"),
        ({"stop": ["x", ""]}, "directive.stop[1]", "is empty"),
        ({"stop": ["x" * 257]}, "directive.stop[0]", "has 257 characters; at most 256"),
        ({"suppressed_words": ["x" * 65]}, "directive.suppressed_words[0]", "at most 64"),
        ({"model": "tiny"}, "directive.model", "is 'tiny'; must be name@digest, as `pithctl engines` shows it"),
        ({"model": "tiny@"}, "directive.model", "is 'tiny@'; must be name@digest"),
        ({"model": "@f00d"}, "directive.model", "is '@f00d'; must be name@digest"),
        ({"model": "tiny@f00d@f00d"}, "directive.model", "must be name@digest"),
        ({"model": "a b@f00d"}, "directive.model", "is 'a b@f00d'; must be name@digest"),
        ({"model": "tiny@f0 0d"}, "directive.model", "must be name@digest"),
        ({"model": " "}, "directive.model", "is ' '; must be name@digest"),
        ({"model": "t" * 252 + "@f00d"}, "directive.model", "has 257 characters; at most 256"),
        ({"model": "t\x07@f00d"}, "directive.model", "control character U+0007 at 1"),
        ({"model": "tiny@f00d\n"}, "directive.model", "must be name@digest"),
        ({"text": "be\u200bbrief"}, "directive.text", "has an invisible character, U+200B, at 2; nobody"),
        (
            {"text": "Be {{ brief }}"},
            "directive.text",
            "has the beginning of a template expression, '{{', at 3; a chat",
        ),
        (
            {"text": "Brief <|im_end|>"},
            "directive.text",
            "has the spelling of a special token, '<|im_end|>', at 6; mod",
        ),
        (
            {"text": "ユーザー：短く"},
            "directive.text",
            "has a role marker, 'ユーザー：', at 0; a directive adds to a turn",
        ),
        ({"template_variables": variables(brief=True)}, "directive.template_variables", "needs PLACEMENT_NATIVE"),
        (
            {"placement": NATIVE},
            "directive.template_variables",
            "is empty; PLACEMENT_NATIVE needs at least one variable",
        ),
        (
            {"placement": NATIVE, "text": "Be brief", "template_variables": variables(brief=True)},
            "directive.text",
            "must be empty with PLACEMENT_NATIVE",
        ),
    ],
)
async def test_a_faulty_directive_is_refused_by_field(admin: Any, fields: Any, field: str, fault: str) -> None:
    found = await faults(create_directive(admin, **{"name": "new", **fields}))
    assert set(found) == {field}
    assert fault in found[field]
    assert len((await admin.ListDirectives(dpb.ListDirectivesRequest())).directives) == 3


async def test_a_changed_directive_is_a_new_revision(admin: Any, keeper: SnapshotKeeper) -> None:
    directive = await admin.GetDirective(dpb.GetDirectiveRequest(name="L1"))
    directive.text = "Keep it short"
    changed = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=directive))
    assert (changed.revision, changed.text, changed.updated_by) == (2, "Keep it short", "the admin")
    assert keeper.snapshot.directives["L1"].text == "Keep it short"
    await refused(admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=directive)), "ABORTED", "ETAG_MISMATCH")


async def test_l0_stays(admin: Any) -> None:
    baseline = await admin.GetDirective(dpb.GetDirectiveRequest(name="L0"))
    baseline.text = "Changed"
    found = await faults(admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=baseline)))
    assert found == {"directive.name": "is L0, which is no directive and cannot be changed"}
    delete = dpb.DeleteDirectiveRequest(name="L0", etag=baseline.etag)
    await refused(admin.DeleteDirective(delete), "FAILED_PRECONDITION", "IN_USE")


async def test_a_directive_in_use_stays(admin: Any) -> None:
    directive = await create_directive(admin, "terse")
    policy = await create_policy(admin, "p", "terse")
    delete = dpb.DeleteDirectiveRequest(name="terse", etag=directive.etag, reason="unused")
    error = await refused(admin.DeleteDirective(delete), "FAILED_PRECONDITION", "IN_USE")
    assert error.metadata == {"used_by": "p"}
    await admin.DeletePolicy(pb.DeletePolicyRequest(name="p", etag=policy.etag))
    await admin.DeleteDirective(delete)
    await refused(admin.GetDirective(dpb.GetDirectiveRequest(name="terse")), "NOT_FOUND", "RESOURCE_NOT_FOUND")


async def test_a_name_that_is_used_again_is_not_its_former_self(admin: Any) -> None:
    first = await create_directive(admin, "terse", text="One line")
    await admin.DeleteDirective(dpb.DeleteDirectiveRequest(name="terse", etag=first.etag))
    second = await create_directive(admin, "terse", text="One word")
    assert second.revision > first.revision
    delete = dpb.DeleteDirectiveRequest(name="terse", etag=first.etag)
    await refused(admin.DeleteDirective(delete), "ABORTED", "ETAG_MISMATCH")


async def test_a_directive_is_not_deleted_under_the_hands_of_who_names_it(admin: Any) -> None:
    for number in range(5):
        directive = await create_directive(admin, f"d{number}")
        delete = dpb.DeleteDirectiveRequest(name=directive.name, etag=directive.etag)
        results = await asyncio.gather(
            create_policy(admin, f"p{number}", directive.name),
            admin.DeleteDirective(delete),
            return_exceptions=True,
        )
        assert sum(isinstance(result, BaseException) for result in results) == 1


async def test_a_native_directive_comes_back_as_it_was(admin: Any, keeper: SnapshotKeeper) -> None:
    given = variables(enable_thinking=False, reasoning_effort="low", thinking_budget=512)
    made = await create_directive(admin, "quick", placement=NATIVE, template_variables=given)
    assert await admin.GetDirective(dpb.GetDirectiveRequest(name="quick")) == made
    assert made.template_variables == given
    assert keeper.snapshot.directives["quick"].template_variables == (
        ("enable_thinking", False),
        ("reasoning_effort", "low"),
        ("thinking_budget", 512.0),
    )


def odd(**values: Value) -> Struct:
    struct = Struct()
    for name, value in values.items():
        struct.fields[name].CopyFrom(value)
    return struct


@pytest.mark.parametrize(
    ("given", "at", "fault"),
    [
        (variables(**{f"v{n}": True for n in range(9)}), "", "has 9 variables; at most 8"),
        (variables(**{"a b": True}), "['a b']", "must be named as in Python"),
        (variables(**{"v" * 65: True}), f"['{'v' * 63}…']", "at most 64"),
        (variables(messages="none"), "['messages']", "is the chat template's own, which no request may set"),
        (variables(bos_token="x"), "['bos_token']", "is the chat template's own"),
        (variables(effort="x" * 257), "['effort']", "has 257 characters; at most 256"),
        (variables(effort="a\nb"), "['effort']", "control character U+000A at 1"),
        (variables(effort="<|im_start|>"), "['effort']", "the spelling of a special token"),
        (variables(effort="{% raw %}"), "['effort']", "the beginning of a template expression"),
        (variables(effort="Assistant: yes"), "['effort']", "a role marker, 'Assistant:'"),
        (variables(budget=float("nan")), "['budget']", "is nan; must be a finite number"),
        (odd(effort=Value(null_value=NULL_VALUE)), "['effort']", "must be a boolean, a number or text"),
        (odd(effort=Value()), "['effort']", "must be a boolean, a number or text"),
        (odd(effort=Value(list_value=ListValue())), "['effort']", "must be a boolean, a number or text"),
        (odd(effort=Value(struct_value=Struct())), "['effort']", "must be a boolean, a number or text"),
    ],
)
async def test_a_faulty_variable_is_refused_by_name(admin: Any, given: Struct, at: str, fault: str) -> None:
    found = await faults(create_directive(admin, "quick", placement=NATIVE, template_variables=given))
    field = f"directive.template_variables{at}"
    assert fault in found[field], found
    assert len((await admin.ListDirectives(dpb.ListDirectivesRequest())).directives) == 3


async def test_an_update_replaces_the_variables_as_a_whole(admin: Any) -> None:
    made = await create_directive(admin, "quick", placement=NATIVE, template_variables=variables(a=1, b=2))
    made.template_variables.CopyFrom(variables(c="x"))
    mask = FieldMask(paths=["template_variables"])
    changed = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=made, update_mask=mask))
    assert (changed.revision, changed.template_variables) == (2, variables(c="x"))
    # Each field alone would leave something that makes no sense.
    changed.placement = dpb.PLACEMENT_TAIL
    mask = FieldMask(paths=["placement"])
    update = dpb.UpdateDirectiveRequest(directive=changed, update_mask=mask)
    assert set(await faults(admin.UpdateDirective(update))) == {"directive.template_variables"}


async def test_another_model_that_answers_is_another_revision(admin: Any, keeper: SnapshotKeeper) -> None:
    made = await create_directive(admin, "small", model="tiny@0123456789ab")
    assert await admin.GetDirective(dpb.GetDirectiveRequest(name="small")) == made
    assert (made.model, made.revision, keeper.snapshot.directives["small"].model) == (
        "tiny@0123456789ab",
        1,
        "tiny@0123456789ab",
    )
    mask = FieldMask(paths=["model"])

    async def update(present: Any, model: str) -> Any:
        directive = dpb.Directive(name="small", etag=present.etag, model=model)
        return await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=directive, update_mask=mask))

    # Other weights are another model.
    changed = await update(made, "tiny@ba9876543210")
    assert (changed.model, changed.revision) == ("tiny@ba9876543210", 2)
    assert (await update(changed, "tiny@ba9876543210")).revision == 2
    assert set(await faults(update(changed, "tiny"))) == {"directive.model"}
    cleared = await update(changed, "")
    assert (cleared.model, cleared.revision) == ("", 3)
    back = await rollback(admin, cleared, 1)
    assert (back.model, back.revision) == ("tiny@0123456789ab", 4)
    assert keeper.snapshot.directives["small"].model == "tiny@0123456789ab"
    request = dpb.ListDirectiveRevisionsRequest(name="small")
    revisions = (await admin.ListDirectiveRevisions(request)).revisions
    models = [one.directive.model for one in revisions]
    assert models == ["tiny@0123456789ab", "", "tiny@ba9876543210", "tiny@0123456789ab"]


async def test_the_longest_model_is_taken(admin: Any) -> None:
    longest = "org/ü-" + "t" * 237 + "@0123456789ab"
    assert (await create_directive(admin, "small", model=longest)).model == longest


async def history(admin: Any, name: str, size: int = 2) -> list[tuple[int, str, str, str]]:
    """(revision, action, reason, text) of all revisions, by pages of `size`."""
    found: list[tuple[int, str, str, str]] = []
    token = ""
    while True:
        request = dpb.ListDirectiveRevisionsRequest(name=name, page_size=size, page_token=token)
        page = await admin.ListDirectiveRevisions(request)
        assert len(page.revisions) <= size
        found += [(r.directive.revision, r.action, r.reason, r.directive.text) for r in page.revisions]
        token = page.next_page_token
        if not token:
            return found


async def rollback(admin: Any, current: Any, revision: int, reason: str = "") -> Any:
    request = dpb.RollbackDirectiveRequest(name=current.name, etag=current.etag, revision=revision, reason=reason)
    return await admin.RollbackDirective(request)


async def test_history_and_rollback(admin: Any, clock: ManualClock, keeper: SnapshotKeeper) -> None:
    made = await create_directive(admin, "terse", text="One line")
    first = made.etag
    await clock.advance(60)
    made.text = "One word"
    changed = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=made, reason="shorter"))
    back = await rollback(admin, changed, 1, "too short")
    # The old words under a new revision: bounds of either revision before it say nothing of this one.
    assert (back.text, back.revision) == ("One line", 3)
    assert len({first, changed.etag, back.etag}) == 3
    assert keeper.snapshot.directives["terse"].revision == 3
    await admin.DeleteDirective(dpb.DeleteDirectiveRequest(name="terse", etag=back.etag, reason="done"))
    assert await history(admin, "terse") == [
        (4, "delete", "done", "One line"),
        (3, "rollback", "too short", "One line"),
        (2, "update", "shorter", "One word"),
        (1, "create", "test", "One line"),
    ]
    # It is there again, by the etag of its deletion.
    await refused(rollback(admin, back, 1), "ABORTED", "ETAG_MISMATCH")
    request = dpb.ListDirectiveRevisionsRequest(name="terse", page_size=1)
    (deletion,) = (await admin.ListDirectiveRevisions(request)).revisions
    again = await rollback(admin, deletion.directive, 1)
    assert (again.text, again.revision) == ("One line", 5)
    assert keeper.snapshot.directives["terse"].revision == 5


async def test_a_rollback_needs_a_revision_and_the_present_etag(admin: Any) -> None:
    made = await create_directive(admin, "terse", text="One line")
    for revision in (0, 9, 2**32 - 1):
        await refused(rollback(admin, made, revision), "NOT_FOUND", "RESOURCE_NOT_FOUND")
    stale = dpb.Directive(name="terse", etag='"stale"')
    await refused(rollback(admin, stale, 1), "ABORTED", "ETAG_MISMATCH")
    assert set(await faults(rollback(admin, dpb.Directive(name="terse"), 1))) == {"etag"}
    await refused(rollback(admin, dpb.Directive(name="nobody", etag="x"), 1), "NOT_FOUND", "RESOURCE_NOT_FOUND")
    assert [action for _, action, _, _ in await history(admin, "terse")] == ["create"]


async def test_a_revision_from_before_a_rule_does_not_come_back(admin: Any, monkeypatch: Any) -> None:
    with monkeypatch.context() as past:
        past.setattr("router.limits.faults_of", lambda text: ())
        made = await create_directive(admin, "old", text="User: be brief")
    made.text = "Be brief"
    changed = await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=made))
    assert "a role marker" in (await faults(rollback(admin, changed, 1)))["revision 1.text"]
    assert (await admin.GetDirective(dpb.GetDirectiveRequest(name="old"))).text == "Be brief"


async def test_a_history_of_nothing(admin: Any) -> None:
    for name in ("nobody", "L0", ""):
        await refused(history(admin, name), "NOT_FOUND", "RESOURCE_NOT_FOUND")
    (seeded,) = await history(admin, "L1")
    assert seeded == (1, "create", "shipped with Pith", "Always answer briefly")
    for name in ("L1", "L2"):
        await create_directive(admin, f"{name}x")
    first = await admin.GetDirective(dpb.GetDirectiveRequest(name="L1"))
    first.text = "Briefly"
    await admin.UpdateDirective(dpb.UpdateDirectiveRequest(directive=first))
    request = dpb.ListDirectiveRevisionsRequest(name="L1", page_size=1)
    token = (await admin.ListDirectiveRevisions(request)).next_page_token
    other = dpb.ListDirectiveRevisionsRequest(name="L2", page_token=token)
    assert set(await faults(admin.ListDirectiveRevisions(other))) == {"page_token"}
