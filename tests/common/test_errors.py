"""Errors keep their details on the way over the wire, within what a trailer can hold."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from common import errors
from common.errors import FieldViolation, PithError, QuotaViolation, Violations

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=100)
ERRORS = st.builds(
    PithError,
    st.sampled_from([code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]),
    st.from_regex(r"[A-Z][A-Z_]{1,40}", fullmatch=True),
    TEXT,
    violations=st.lists(st.builds(FieldViolation, TEXT, TEXT), max_size=3),
    metadata=st.dictionaries(TEXT, TEXT, max_size=2),
    retry_after_seconds=st.none() | st.integers(0, 10**9).map(lambda us: us / 1e6),
    quota=st.none() | st.builds(QuotaViolation, TEXT, TEXT),
)


def over_the_wire(error: PithError) -> PithError:
    status = errors.to_status(error)
    trailers = grpc.aio.Metadata(("other", "x"), (errors.STATUS_DETAILS_KEY, status.SerializeToString()))
    return errors.from_rpc_error(grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), trailers, status.message))


@given(ERRORS)
def test_an_error_comes_back_as_it_was_raised(error: PithError) -> None:
    assert vars(over_the_wire(error)) == vars(error)


@given(
    count=st.integers(0, 300),
    text=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=4).map(lambda t: t * 400),
)
def test_a_status_always_fits_a_trailer(count: int, text: str) -> None:
    error = PithError(
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELDS",
        text,
        violations=[FieldViolation(text, text)] * count,
        metadata={"name": text},
        retry_after_seconds=1,
    )
    status = errors.to_status(error)
    assert status.ByteSize() <= 3072
    assert over_the_wire(error).code is grpc.StatusCode.INVALID_ARGUMENT


def test_the_details_are_the_ones_google_rpc_defines() -> None:
    status = errors.to_status(errors.resource_exhausted("QUEUE_FULL", "64 requests wait", 1.5))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info) and status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("QUEUE_FULL", "pith.dev")
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)
    assert status.code == 8


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.invalid_argument([FieldViolation("f", "d")]), "INVALID_ARGUMENT", "INVALID_FIELDS"),
        (errors.undecodable("pith.v1.X"), "INVALID_ARGUMENT", "UNDECODABLE"),
        (errors.not_found("policy", "p"), "NOT_FOUND", "RESOURCE_NOT_FOUND"),
        (errors.already_exists("policy", "p"), "ALREADY_EXISTS", "RESOURCE_EXISTS"),
        (
            errors.already_exists("request", "r", reason="REQUEST_ANSWERED"),
            "ALREADY_EXISTS",
            "REQUEST_ANSWERED",
        ),
        (errors.aborted("ETAG_MISMATCH", "changed", {"etag": "7"}), "ABORTED", "ETAG_MISMATCH"),
        (errors.failed_precondition("IN_USE", "used"), "FAILED_PRECONDITION", "IN_USE"),
        (errors.resource_exhausted("QUEUE_FULL", "full", 1), "RESOURCE_EXHAUSTED", "QUEUE_FULL"),
        (errors.unavailable("NO_ENGINE", "none"), "UNAVAILABLE", "NO_ENGINE"),
        (errors.deadline_exceeded(), "DEADLINE_EXCEEDED", "DEADLINE"),
        (errors.unauthenticated("who?"), "UNAUTHENTICATED", "BAD_TOKEN"),
        (errors.permission_denied("client", ["admin"]), "PERMISSION_DENIED", "ROLE_NOT_ALLOWED"),
        (errors.unimplemented("Simulate"), "UNIMPLEMENTED", "NOT_YET"),
        (errors.internal("oops"), "INTERNAL", "INTERNAL"),
    ],
)
def test_each_constructor_has_its_code_and_reason(error: PithError, code: str, reason: str) -> None:
    assert (error.code.name, error.reason) == (code, reason)


def test_violations_are_raised_together() -> None:
    found = Violations()
    assert found.require(True, "text", "is never wrong")
    assert not found.require(False, "max_tokens", "is 0; must be 1 to 4096")
    found.add("seed", "is -1; must be >= 0")
    with pytest.raises(PithError) as raised:
        found.raise_if_any()
    assert [v.field for v in raised.value.violations] == ["max_tokens", "seed"]
    assert raised.value.message == "max_tokens: is 0; must be 1 to 4096 (and 1 more)"


def test_no_violations_raise_nothing() -> None:
    Violations().raise_if_any()


def test_an_error_of_another_server_is_kept_without_details() -> None:
    error = errors.from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, None, None, "failed to connect"))
    assert (error.code, error.message) == (grpc.StatusCode.UNAVAILABLE, "failed to connect")
    assert (error.reason, error.violations, error.metadata) == ("UNSPECIFIED", (), {})


def test_details_that_are_not_of_this_error_are_ignored() -> None:
    other = errors.to_status(errors.not_found("policy", "p")).SerializeToString()
    broken = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0])
    broken.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    for details in (other, b"\xff\xff", b"", broken.SerializeToString()):
        trailers = grpc.aio.Metadata((errors.STATUS_DETAILS_KEY, details))
        failed = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), trailers, "broken")
        error = errors.from_rpc_error(failed)
        assert (error.code, error.reason, error.message) == (
            grpc.StatusCode.INTERNAL, "UNSPECIFIED", "broken",
        )  # fmt: skip
