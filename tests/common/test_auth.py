"""Tokens: what a file may hold, and whom a call's metadata makes the caller."""

import asyncio
import json
from contextvars import copy_context
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from common.auth import (
    Authenticator,
    Principal,
    RequestContext,
    Role,
    TokenEntry,
    current_request,
    enter_request,
    note_asked,
    read_tokens,
)
from common.clock import ManualClock
from common.errors import PithError


def entry(token: str = "secret", role: str = "client", **fields: str) -> dict[str, str]:
    return {"sha256": sha256(token.encode()).hexdigest(), "role": role, "name": f"{token}-holder", **fields}


def toml(*entries: dict[str, str]) -> str:
    return "".join(
        "[[tokens]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
        for fields in entries
    )


@pytest.mark.parametrize("form", ["toml", "json list", "json table"])
def test_both_formats_hold_the_same_tokens(tmp_path: Path, form: str) -> None:
    entries = [entry("one", tenant="acme"), entry("two", "evaluator")]
    path = tmp_path / f"tokens.{form[:4]}"
    path.write_text(
        {"toml": toml(*entries), "json list": json.dumps(entries), "json table": json.dumps({"tokens": entries})}[form]
    )
    tokens = read_tokens(path)
    assert [(t.name, t.role, t.tenant) for t in tokens] == [
        ("one-holder", Role.CLIENT, "acme"),
        ("two-holder", Role.EVALUATOR, "default"),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (toml(entry(role="king")), "tokens.0.role: Input should be 'client'"),
        (toml(entry(), entry("x", sha256="abc")), "tokens.1.sha256: String should match"),
        (toml(entry(tennant="acme")), "tokens.0.tennant: Extra inputs"),
        ("[[tokens]]\nrole = 'client'\nname = 'x'\n", "tokens.0.sha256: Field required"),
        (toml(entry(), entry()), "two entries have the same sha256"),
        ("", "no tokens"),
        ("tokens = 3", "tokens: Input should be a valid list"),
        ("[[tokens", "tokens.toml: "),
    ],
)
def test_a_faulty_file_is_named_with_entry_and_field(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_tokens(path)
    assert str(raised.value).startswith(str(path)) and fault in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_tokens(tmp_path / "nowhere.toml")


def test_a_known_token_makes_its_holder_the_caller() -> None:
    auth = Authenticator([TokenEntry.model_validate(entry(t, tenant=f"of-{t}")) for t in ("one", "two", "three")])
    for token in ("one", "two", "three"):
        # The tenant is the token's, whatever the call says.
        caller = auth.authenticate({"authorization": f"Bearer {token}", "x-tenant": "other"})
        assert caller == Principal(f"{token}-holder", Role.CLIENT, f"of-{token}")


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer secret "},
        {"authorization": "Digest secret"},
        {"authorization": "secret"},
        {"authorization": f"Bearer {sha256(b'secret').hexdigest()}"},
        {"authorization": b"Bearer secret"},
        {"x-tenant": "acme"},
    ],
)
def test_anything_but_a_known_token_is_unauthenticated(metadata: dict[str, str | bytes]) -> None:
    auth = Authenticator([TokenEntry.model_validate(entry())])
    with pytest.raises(PithError) as raised:
        auth.authenticate(metadata)
    assert raised.value.code is grpc.StatusCode.UNAUTHENTICATED
    assert "wrong" not in raised.value.message and "secret" not in raised.value.message


@pytest.mark.parametrize(("metadata", "tenant"), [({}, "default"), ({"x-tenant": "acme"}, "acme")])
def test_without_tokens_every_caller_is_an_admin_of_the_tenant_it_names(
    metadata: dict[str, str | bytes], tenant: str
) -> None:
    caller = Authenticator.from_file(None).authenticate(metadata)
    assert (caller.role, caller.tenant) == (Role.ADMIN, tenant)


def test_an_empty_list_of_tokens_lets_nobody_in() -> None:
    with pytest.raises(PithError):
        Authenticator([]).authenticate({})


def test_outside_a_request_there_is_none() -> None:
    assert current_request() is None


def test_what_remains_of_a_deadline_is_never_negative() -> None:
    caller = Principal("x", Role.CLIENT, "default")
    assert RequestContext("r", caller).remaining_seconds() is None
    assert RequestContext("r", caller, deadline=0.0).remaining_seconds() == 0.0


def with_token(token: str = "secret") -> dict[str, str | bytes]:
    return {"authorization": f"Bearer {token}"}


def told(auth: Authenticator, token: str) -> str:
    with pytest.raises(PithError) as raised:
        auth.authenticate(with_token(token))
    assert (raised.value.code, raised.value.reason) == (grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN")
    return raised.value.message


async def test_a_token_holds_until_it_expires_by_the_service_clock() -> None:
    clock = ManualClock()
    lasting = TokenEntry.model_validate({**entry(), "expires_at": clock.now() + timedelta(seconds=60)})
    auth = Authenticator([lasting], clock)
    await clock.advance(59)
    assert auth.authenticate(with_token()).name == "secret-holder"
    await clock.advance(1)
    assert told(auth, "secret") == "the token has expired"


def test_tokens_of_a_store_come_and_go_beside_those_of_the_file() -> None:
    auth = Authenticator([TokenEntry.model_validate(entry("file", "admin"))])
    auth.put_stored([TokenEntry.model_validate(entry(token)) for token in ("one", "two")])
    assert [auth.authenticate(with_token(t)).name for t in ("file", "one", "two")] == [
        "file-holder", "one-holder", "two-holder",
    ]  # fmt: skip
    auth.put_stored([TokenEntry.model_validate(entry("two")), TokenEntry.model_validate(entry("file", "client"))])
    assert told(auth, "one") == "the token is not known"
    assert auth.authenticate(with_token("two")).role is Role.CLIENT
    assert auth.authenticate(with_token("file")).role is Role.ADMIN, "no row takes a token of the file away"


def test_a_service_without_a_store_says_where_its_tokens_are() -> None:
    auth = Authenticator([TokenEntry.model_validate(entry())])
    assert told(auth, "of a router") == "the token is not known: this service knows the tokens of its tokens file"


def test_names_of_the_file_are_known() -> None:
    auth = Authenticator([TokenEntry.model_validate(entry("file"))])
    auth.put_stored([TokenEntry.model_validate(entry("stored"))])
    assert auth.is_of_file("file-holder") and not auth.is_of_file("stored-holder")
    assert not Authenticator(None).is_of_file("file-holder")


def test_a_callers_own_id_is_noted_where_it_is_fit_for_a_log() -> None:
    for given, noted in (("order 7 ä", "order 7 ä"), ("x" * 500, "x" * 128), ("", None), ("a\nb", None)):
        request = RequestContext("r", Principal("x", Role.CLIENT, "default"))

        def handle(request: RequestContext = request, given: str = given) -> None:
            enter_request(request)
            note_asked(given)

        copy_context().run(handle)
        assert request.notes.get("asked") == noted
    note_asked("outside of a request")


def test_a_store_full_of_tokens_closes_no_door_that_is_open() -> None:
    auth = Authenticator(None)
    auth.put_stored([TokenEntry.model_validate(entry())])
    assert auth.authenticate({}).role is Role.ADMIN


async def test_a_changed_file_is_taken_in_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(toml(entry("one"), entry("two")))
    auth = Authenticator.from_file(path)
    auth.put_stored([TokenEntry.model_validate(entry("stored"))])
    path.write_text(toml(entry("one"), entry("new")))
    with capture_logs() as logs:
        await auth.reload()
        await auth.reload()
    assert len(logs) == 1, "one change"
    assert told(auth, "two") == "the token is not known"
    assert auth.authenticate(with_token("new")).name == "new-holder"
    for broken in ("[[tokens", "", toml(entry(role="king")), "[" * 100_000):
        path.write_text(broken)
        with capture_logs() as logs:
            await auth.reload()
            await auth.reload()
        assert [line["log_level"] for line in logs] == ["error"], "said once"
        assert auth.authenticate(with_token("one")).name == "one-holder"
    path.unlink()
    await auth.reload()
    for token in ("one", "new", "stored"):
        assert auth.authenticate(with_token(token)).name == f"{token}-holder"
    path.write_text(toml(entry("one"), entry("new")))
    await auth.reload()
    assert auth.authenticate(with_token("new"))


async def test_a_server_refuses_a_token_that_was_taken_out_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(toml(entry("one"), entry("two")))
    auth = Authenticator.from_file(path)
    watching = asyncio.create_task(auth.watch(poll_seconds=0.001))
    path.write_text(toml(entry("one")))
    while True:
        try:
            auth.authenticate(with_token("two"))
        except PithError:
            break
        await asyncio.sleep(0)
    watching.cancel()
    assert auth.authenticate(with_token("one"))
