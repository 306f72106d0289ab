"""One exception for what a caller is told, and its form on the wire: google.rpc.Status with typed details."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DOMAIN = "pith.dev"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

# A status travels in HTTP/2 trailers, whose size gRPC limits to 8 KiB by default: a larger one would reach
# the caller as RESOURCE_EXHAUSTED. Base64 adds a third, and the message travels twice, once percent-encoded.
_MAX_STATUS_BYTES = 3072
_MAX_MESSAGE_CHARACTERS = 250
_MAX_FIELD_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request (path as in the .proto: `sampling.temperature`), its fault and the limit."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """What was used up: whose (`subject`, e.g. "tenant:acme"), and which limit."""

    subject: str
    description: str


class PithError(Exception):
    """What a caller is told when a call fails.

    Args:
        code: gRPC status code, never OK.
        reason: a name of pith.common.v1.ErrorReason without its prefix, such as "QUEUE_FULL".
        message: one sentence for a person; no prompt text, no internals.
        violations: faulty fields of the request.
        metadata: facts for a program, such as the current etag.
        retry_after_seconds: when to try again, where that helps.
        quota: what was used up, where that is why.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        quota: QuotaViolation | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds
        self.quota = quota

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}"


class Violations:
    """Collects the faults of one request, so that its caller learns all of them at once."""

    def __init__(self) -> None:
        self._found: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        self._found.append(FieldViolation(field, description))

    def require(self, holds: bool, field: str, description: str) -> bool:
        """Records a violation unless `holds`; returns `holds`, for checks that build on it."""
        if not holds:
            self.add(field, description)
        return holds

    def raise_if_any(self) -> None:
        """Raises INVALID_ARGUMENT with every violation, if there is one."""
        if self._found:
            raise invalid_argument(self._found)


def invalid_argument(violations: Sequence[FieldViolation]) -> PithError:
    first = f"{violations[0].field}: {violations[0].description}" if violations else "the request is not valid"
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return PithError(
        grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELDS", _clip(first, 220) + more, violations=violations
    )


def undecodable(message_type: str) -> PithError:
    return PithError(
        grpc.StatusCode.INVALID_ARGUMENT, "UNDECODABLE", f"the bytes of the request are not a {message_type}"
    )


def not_found(resource: str, name: str) -> PithError:
    """`resource` is the kind ("policy"), `name` what was asked for."""
    return PithError(
        grpc.StatusCode.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
        f"{resource} {name!r} does not exist",
        metadata={"resource": resource, "name": name},
    )


def already_exists(resource: str, name: str, *, reason: str = "RESOURCE_EXISTS") -> PithError:
    return PithError(
        grpc.StatusCode.ALREADY_EXISTS,
        reason,
        f"{resource} {name!r} exists already",
        metadata={"resource": resource, "name": name},
    )


def aborted(reason: str, message: str, metadata: Mapping[str, str] | None = None) -> PithError:
    return PithError(grpc.StatusCode.ABORTED, reason, message, metadata=metadata)


def failed_precondition(reason: str, message: str, metadata: Mapping[str, str] | None = None) -> PithError:
    return PithError(grpc.StatusCode.FAILED_PRECONDITION, reason, message, metadata=metadata)


def resource_exhausted(reason: str, message: str, retry_after_seconds: float) -> PithError:
    return PithError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message, retry_after_seconds=retry_after_seconds)


def quota_exceeded(reason: str, subject: str, description: str, retry_after_seconds: float) -> PithError:
    """RESOURCE_EXHAUSTED with QuotaFailure. `subject` is whose quota ("tenant:acme"), `description` the limit."""
    return PithError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        reason,
        f"{subject}: {description}",
        retry_after_seconds=retry_after_seconds,
        quota=QuotaViolation(subject, description),
    )


def unavailable(reason: str, message: str, retry_after_seconds: float | None = None) -> PithError:
    return PithError(grpc.StatusCode.UNAVAILABLE, reason, message, retry_after_seconds=retry_after_seconds)


def deadline_exceeded(message: str = "the deadline has passed") -> PithError:
    return PithError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE", message)


def unauthenticated(message: str) -> PithError:
    return PithError(grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN", message)


def permission_denied(role: str, needed: Iterable[str]) -> PithError:
    """`role` is the caller's, `needed` are the roles that may."""
    roles = ", ".join(sorted(needed))
    return PithError(
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_NOT_ALLOWED",
        f"role {role} may not call this; needed: {roles}",
        metadata={"role": role, "needed": roles},
    )


def unimplemented(what: str) -> PithError:
    return PithError(grpc.StatusCode.UNIMPLEMENTED, "NOT_YET", f"{what} is not part of this version yet")


def internal(message: str) -> PithError:
    return PithError(grpc.StatusCode.INTERNAL, "INTERNAL", message)


def to_status(error: PithError) -> status_pb2.Status:
    """The error as google.rpc.Status: ErrorInfo always, the other details where they apply.

    Texts are clipped and violations beyond the size of a trailer are left out (the message counts them all).
    """
    status = status_pb2.Status(code=error.code.value[0], message=_clip(error.message, _MAX_MESSAGE_CHARACTERS))
    metadata = {key: _clip(value, _MAX_FIELD_CHARACTERS) for key, value in error.metadata.items()}
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.retry_after_seconds is not None:
        delay = Duration()
        delay.FromMicroseconds(round(error.retry_after_seconds * 1e6))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if error.quota is not None:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(
            subject=_clip(error.quota.subject, _MAX_FIELD_CHARACTERS),
            description=_clip(error.quota.description, _MAX_MESSAGE_CHARACTERS),
        )
        status.details.add().Pack(failure)
    if error.violations:
        faults = error_details_pb2.BadRequest()
        room = _MAX_STATUS_BYTES - status.ByteSize() - 64  # the type's URL and lengths
        for violation in error.violations:
            faults.field_violations.add(
                field=_clip(violation.field, _MAX_FIELD_CHARACTERS),
                description=_clip(violation.description, _MAX_MESSAGE_CHARACTERS),
            )
            if faults.ByteSize() > room:
                del faults.field_violations[-1]
                break
        status.details.add().Pack(faults)
    return status


def from_rpc_error(error: grpc.RpcError) -> PithError:
    """The error that a server told us, details and all; "UNSPECIFIED" as the reason where it gave none."""
    code = error.code() or grpc.StatusCode.UNKNOWN
    message = error.details() or ""
    told = PithError(code, "UNSPECIFIED", message)
    trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in trailers:
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes):
            with suppress(DecodeError):
                status = status_pb2.Status.FromString(value)
                if status.code == code.value[0]:
                    _add_details(told, status)
    return told


def _add_details(error: PithError, status: status_pb2.Status) -> None:
    info, faults = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
    for detail in status.details:
        if detail.Unpack(info):
            error.reason = info.reason
            error.metadata = dict(info.metadata)
        elif detail.Unpack(faults):
            error.violations = tuple(FieldViolation(f.field, f.description) for f in faults.field_violations)
        elif detail.Unpack(quota) and quota.violations:
            error.quota = QuotaViolation(quota.violations[0].subject, quota.violations[0].description)
        elif detail.Unpack(retry):
            error.retry_after_seconds = retry.retry_delay.ToMicroseconds() / 1e6


def _clip(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
