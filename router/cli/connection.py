"""A connection to one service: its stubs, and calls that carry token and deadline and fail as `CallError`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message
from pith.evaluator.v1.evaluation_pb2_grpc import EvaluationStub
from pith.router.v1.access_pb2_grpc import AccessStub
from pith.router.v1.directives_pb2_grpc import DirectivesStub
from pith.router.v1.feedback_pb2_grpc import FeedbackStub
from pith.router.v1.generation_pb2_grpc import GenerationStub
from pith.router.v1.policies_pb2_grpc import PoliciesStub
from pith.router.v1.reports_pb2_grpc import ReportsStub
from pith.router.v1.tasks_pb2_grpc import TasksStub

from common.client_tls import ClientTls
from common.errors import from_rpc_error
from router.cli.failures import CallError

_MAX_MESSAGE_BYTES = 16 << 20


class PagedRequest(Protocol):
    page_token: str


class PagedReply(Protocol):
    next_page_token: str


Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)
ListRequest = TypeVar("ListRequest", bound=PagedRequest)
ListReply = TypeVar("ListReply", bound=PagedReply)


class Connection:
    """A channel to the router or the evaluator, closed on leaving the `with` block.

    Args:
        service: "router" or "evaluator", as errors name it.
        address: HOST:PORT or a gRPC name.
        token: bearer token; None sends none.
        unary_seconds: deadline of a call with one answer.
        stream_seconds: deadline of a call whose answer is a stream.
        tls: None: in the clear.

    Raises:
        CertificateError: a file of `tls` cannot be used.
    """

    def __init__(
        self,
        service: str,
        address: str,
        *,
        token: str | None,
        unary_seconds: float,
        stream_seconds: float,
        tls: ClientTls | None = None,
    ) -> None:
        self.service = service
        self.address = address
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        self._unary_seconds = unary_seconds
        self._stream_seconds = stream_seconds
        self._tls = tls is not None
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # gRPC's own two minutes would have `top` wait long for a router that is back.
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if tls is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, tls.credentials(), options=[*options, *tls.options])

    @cached_property
    def generation(self) -> GenerationStub:
        return GenerationStub(self._channel)

    @cached_property
    def directives(self) -> DirectivesStub:
        return DirectivesStub(self._channel)

    @cached_property
    def access(self) -> AccessStub:
        return AccessStub(self._channel)

    @cached_property
    def policies(self) -> PoliciesStub:
        return PoliciesStub(self._channel)

    @cached_property
    def reports(self) -> ReportsStub:
        return ReportsStub(self._channel)

    @cached_property
    def feedback(self) -> FeedbackStub:
        return FeedbackStub(self._channel)

    @cached_property
    def tasks(self) -> TasksStub:
        return TasksStub(self._channel)

    @cached_property
    def evaluation(self) -> EvaluationStub:
        return EvaluationStub(self._channel)

    def call(self, method: grpc.UnaryUnaryMultiCallable[Request, Reply], request: Request) -> Reply:
        """One request, one reply. Raises CallError."""
        try:
            return method(request, timeout=self._unary_seconds, metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def pages(
        self, method: grpc.UnaryUnaryMultiCallable[ListRequest, ListReply], request: ListRequest
    ) -> Iterator[ListReply]:
        """The replies for every page. Raises CallError."""
        while True:
            try:
                reply = method(request, timeout=self._unary_seconds, metadata=self._metadata)
            except grpc.RpcError as error:
                raise self._failed(error) from None
            yield reply
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    def stream(self, method: grpc.UnaryStreamMultiCallable[Request, Reply], request: Request) -> Iterator[Reply]:
        """The replies as they come; leaving early, as on Ctrl-C, cancels the call. Raises CallError."""
        replies = method(request, timeout=self._stream_seconds, metadata=self._metadata)
        try:
            yield from replies
        except grpc.RpcError as error:
            raise self._failed(error) from None
        finally:
            replies.cancel()

    def _failed(self, error: grpc.RpcError) -> CallError:
        return CallError(from_rpc_error(error), self.service, self.address, tls=self._tls)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
