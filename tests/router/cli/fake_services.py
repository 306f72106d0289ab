"""The router's services and the evaluator's in memory, as the contract describes them, for tests of what calls them."""

import functools
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from pith.evaluator.v1 import evaluation_pb2 as evaluation
from pith.evaluator.v1 import evaluation_pb2_grpc
from pith.router.v1 import directives_pb2 as directives
from pith.router.v1 import (
    directives_pb2_grpc,
    generation_pb2_grpc,
    policies_pb2_grpc,
    reports_pb2_grpc,
)
from pith.router.v1 import generation_pb2 as generation
from pith.router.v1 import policies_pb2 as policies
from pith.router.v1 import reports_pb2 as reports
from pith.router.v1 import reviews_pb2 as reviews

from common.errors import (
    STATUS_DETAILS_KEY,
    PithError,
    Violations,
    aborted,
    already_exists,
    failed_precondition,
    not_found,
    to_status,
    unauthenticated,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OUTPUT_ONLY = {"revision", "etag", "updated_at", "updated_by"}
# Small, so that a list of a few needs more than one page.
_PAGE = 2


def _told(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Records the request, checks the token, and sends a PithError as google.rpc.Status in the trailers."""

    @functools.wraps(handler)
    def call(self: "_Service", request: Message, context: grpc.ServicerContext) -> Any:
        try:
            self.world.admit(handler.__name__, request, context)
            return handler(self, request, context)
        except PithError as error:
            _abort(error, context)

    @functools.wraps(handler)
    def stream(self: "_Service", request: Message, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            self.world.admit(handler.__name__, request, context)
            yield from handler(self, request, context)
        except PithError as error:
            _abort(error, context)

    return stream if handler.__name__ in ("StreamGenerate", "RunEvaluation") else call


def _abort(error: PithError, context: grpc.ServicerContext) -> None:
    status = to_status(error)
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    context.abort(error.code, status.message)


class FakeServices:
    """All services on one port. `with FakeServices() as fake:` ... `fake.address`.

    Attributes:
        token: asked for where it is set.
        failure: raised by every call where it is set.
        requests: (RPC, request) of every call, in order.
        before_write: called with the fake before an update or a delete is carried out, to change things in between.
    """

    def __init__(self) -> None:
        self.token: str | None = None
        self.failure: PithError | None = None
        self.requests: list[tuple[str, Any]] = []
        self.before_write: Callable[[FakeServices], None] = lambda _: None
        self.directives: dict[str, directives.Directive] = {}
        self.policies: dict[str, policies.Policy] = {}
        self.explanation = policies.ExplainResponse()
        self.report = reports.Report()
        self.outlook = reports.IntensityOutlook()
        self.router_status = reports.RouterStatus()
        self.bounds: list[reports.ListBoundsResponse.Bound] = []
        self.steps: list[reports.QualityStep] = []
        self.engines: list[reports.ListEnginesResponse.Engine] = []
        self.answer: Callable[
            [generation.GenerateRequest, grpc.ServicerContext], Iterable[generation.StreamGenerateResponse]
        ] = lambda request, context: ()
        self.status = evaluation.Status()
        self.progress: list[evaluation.EvaluationProgress] = []
        self.reviews: list[reviews.Review] = []
        self.agreement = evaluation.Agreement()
        self.hang = False
        self.stopping = threading.Event()
        self._port = 0
        self._server = self._make_server()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def stop(self) -> None:
        """Goes away: calls in flight are cut off."""
        self._server.stop(0).wait()

    def start_again(self) -> None:
        """Listens where it did before."""
        self._server = self._make_server()
        self._server.start()

    def _make_server(self) -> grpc.Server:
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=[("grpc.so_reuseport", 0)])
        directives_pb2_grpc.add_DirectivesServicer_to_server(_Directives(self), server)
        policies_pb2_grpc.add_PoliciesServicer_to_server(_Policies(self), server)
        generation_pb2_grpc.add_GenerationServicer_to_server(_Generation(self), server)
        reports_pb2_grpc.add_ReportsServicer_to_server(_Reports(self), server)
        evaluation_pb2_grpc.add_EvaluationServicer_to_server(_Evaluation(self), server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        return server

    def called(self, rpc: str) -> list[Any]:
        """The requests of one RPC."""
        return [request for name, request in self.requests if name == rpc]

    def admit(self, rpc: str, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append((rpc, request))
        if self.token is not None:
            given = dict(context.invocation_metadata()).get("authorization")
            if given != f"Bearer {self.token}":
                raise unauthenticated("the token is not known")
        if self.hang:
            wait_for_cancel(self, context)
        if self.failure is not None:
            raise self.failure

    def stamp(self, resource: Any, revision: int) -> None:
        resource.revision = revision
        resource.etag = f'"{resource.name}-{revision}"'
        resource.updated_at.FromDatetime(NOW)
        resource.updated_by = "admin"

    def store_policy(self, policy: policies.Policy) -> policies.Policy:
        self.stamp(policy, policy.revision + 1)
        self.policies[policy.name] = policy
        return policy

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.stop()


def wait_for_cancel(fake: FakeServices, context: grpc.ServicerContext) -> None:
    """Returns when the client has gone away or given up, or the fake is stopped."""
    gone = threading.Event()
    if not context.add_callback(gone.set):
        return
    while not gone.wait(0.02) and not fake.stopping.is_set():
        pass


class _Service:
    def __init__(self, world: FakeServices) -> None:
        self.world = world


class _Directives(_Service, directives_pb2_grpc.DirectivesServicer):
    @_told
    def CreateDirective(self, request: directives.CreateDirectiveRequest, context: Any) -> directives.Directive:
        self._check_directive(request.directive)
        if request.directive.name in self.world.directives:
            raise already_exists("directive", request.directive.name)
        created = self.world.directives[request.directive.name] = directives.Directive()
        created.CopyFrom(request.directive)
        created.placement = created.placement or directives.PLACEMENT_TAIL
        self.world.stamp(created, 1)
        return created

    @_told
    def GetDirective(self, request: directives.GetDirectiveRequest, context: Any) -> directives.Directive:
        return _get(self.world.directives, "directive", request.name)

    @_told
    def ListDirectives(
        self, request: directives.ListDirectivesRequest, context: Any
    ) -> directives.ListDirectivesResponse:
        page, token = _page(sorted(self.world.directives.values(), key=lambda d: d.name), request.page_token)
        return directives.ListDirectivesResponse(directives=page, next_page_token=token)

    @_told
    def UpdateDirective(self, request: directives.UpdateDirectiveRequest, context: Any) -> directives.Directive:
        self.world.before_write(self.world)
        present = _get(self.world.directives, "directive", request.directive.name)
        _check_etag("directive", request.directive.etag, present)
        updated = _masked(present, request.directive, request.update_mask)
        self._check_directive(updated)
        self.world.directives[updated.name] = updated
        self.world.stamp(updated, present.revision + (updated.text != present.text))
        return updated

    @_told
    def DeleteDirective(self, request: directives.DeleteDirectiveRequest, context: Any) -> Empty:
        self.world.before_write(self.world)
        _check_etag("directive", request.etag, _get(self.world.directives, "directive", request.name))
        users = [p.name for p in self.world.policies.values() if request.name in p.directives]
        if users:
            raise failed_precondition("IN_USE", f"policy {users[0]} allows it", {"policies": ", ".join(users)})
        del self.world.directives[request.name]
        return Empty()

    def _check_directive(self, directive: directives.Directive) -> None:
        faults = Violations()
        name_fits = _NAME.fullmatch(directive.name) is not None
        faults.require(name_fits, "directive.name", "has characters other than letters, digits, '.', '_', '-'")
        length = len(directive.text)
        faults.require(length <= 1000, "directive.text", f"has {length} characters, at most 1000 are allowed")
        faults.raise_if_any()


class _Policies(_Service, policies_pb2_grpc.PoliciesServicer):
    @_told
    def CreatePolicy(self, request: policies.CreatePolicyRequest, context: Any) -> policies.Policy:
        self._check_policy(request.policy)
        if request.policy.name in self.world.policies:
            raise already_exists("policy", request.policy.name)
        policy = policies.Policy()
        policy.CopyFrom(request.policy)
        policy.mode = policy.mode or policies.MODE_SHADOW
        policy.floor_kind = policy.floor_kind or policies.FLOOR_KIND_RELATIVE
        return self.world.store_policy(policy)

    @_told
    def GetPolicy(self, request: policies.GetPolicyRequest, context: Any) -> policies.Policy:
        return _get(self.world.policies, "policy", request.name)

    @_told
    def ListPolicies(self, request: policies.ListPoliciesRequest, context: Any) -> policies.ListPoliciesResponse:
        page, token = _page(sorted(self.world.policies.values(), key=lambda p: p.name), request.page_token)
        return policies.ListPoliciesResponse(policies=page, next_page_token=token)

    @_told
    def UpdatePolicy(self, request: policies.UpdatePolicyRequest, context: Any) -> policies.Policy:
        self.world.before_write(self.world)
        present = _get(self.world.policies, "policy", request.policy.name)
        _check_etag("policy", request.policy.etag, present)
        updated = _masked(present, request.policy, request.update_mask)
        self._check_policy(updated)
        return self.world.store_policy(updated)

    @_told
    def DeletePolicy(self, request: policies.DeletePolicyRequest, context: Any) -> Empty:
        self.world.before_write(self.world)
        _check_etag("policy", request.etag, _get(self.world.policies, "policy", request.name))
        del self.world.policies[request.name]
        return Empty()

    @_told
    def Explain(self, request: policies.ExplainRequest, context: Any) -> policies.ExplainResponse:
        faults = Violations()
        if request.request.HasField("floor"):
            faults.require(0 < request.request.floor <= 1, "request.floor", "must be above 0 and at most 1")
        faults.raise_if_any()
        return self.world.explanation

    def _check_policy(self, policy: policies.Policy) -> None:
        faults = Violations()
        faults.require(0 < policy.floor <= 1, "policy.floor", f"is {policy.floor:g}; above 0 and at most 1")
        for index, name in enumerate(policy.directives):
            known = name in self.world.directives
            faults.require(known, f"policy.directives[{index}]", f"{name!r} does not exist")
        faults.raise_if_any()


class _Generation(_Service, generation_pb2_grpc.GenerationServicer):
    @_told
    def StreamGenerate(self, request: generation.GenerateRequest, context: Any) -> Iterable[Any]:
        faults = Violations()
        faults.require(bool(request.messages), "messages", "must not be empty")
        faults.raise_if_any()
        return self.world.answer(request, context)


class _Reports(_Service, reports_pb2_grpc.ReportsServicer):
    @_told
    def GetStatus(self, request: reports.GetStatusRequest, context: Any) -> reports.RouterStatus:
        self.world.router_status.now.FromDatetime(NOW)
        return self.world.router_status

    @_told
    def GetReport(self, request: reports.GetReportRequest, context: Any) -> reports.Report:
        return self.world.report

    @_told
    def GetIntensity(self, request: reports.GetIntensityRequest, context: Any) -> reports.IntensityOutlook:
        return self.world.outlook

    @_told
    def ListBounds(self, request: reports.ListBoundsRequest, context: Any) -> reports.ListBoundsResponse:
        page, token = _page(self.world.bounds, request.page_token)
        return reports.ListBoundsResponse(bounds=page, next_page_token=token)

    @_told
    def ListQualityHistory(
        self, request: reports.ListQualityHistoryRequest, context: Any
    ) -> reports.ListQualityHistoryResponse:
        page, token = _page(self.world.steps, request.page_token)
        return reports.ListQualityHistoryResponse(steps=page, next_page_token=token)

    @_told
    def ListEngines(self, request: Any, context: Any) -> reports.ListEnginesResponse:
        return reports.ListEnginesResponse(engines=self.world.engines)


class _Evaluation(_Service, evaluation_pb2_grpc.EvaluationServicer):
    @_told
    def RunEvaluation(self, request: Any, context: Any) -> Iterable[evaluation.EvaluationProgress]:
        return self.world.progress

    @_told
    def GetStatus(self, request: Any, context: Any) -> evaluation.Status:
        return self.world.status

    @_told
    def ListPendingReviews(
        self, request: evaluation.ListPendingReviewsRequest, context: Any
    ) -> evaluation.ListPendingReviewsResponse:
        answered = {submitted.review_id for submitted in self.world.called("SubmitRating")}
        waiting = [review for review in self.world.reviews if review.review_id not in answered]
        return evaluation.ListPendingReviewsResponse(reviews=waiting[: request.count])

    @_told
    def SubmitRating(self, request: evaluation.SubmitRatingRequest, context: Any) -> evaluation.SubmitRatingResponse:
        return evaluation.SubmitRatingResponse()

    @_told
    def GetAgreement(self, request: evaluation.GetAgreementRequest, context: Any) -> evaluation.Agreement:
        return self.world.agreement


def _get(resources: dict[str, Any], kind: str, name: str) -> Any:
    if name not in resources:
        raise not_found(kind, name)
    return resources[name]


def _check_etag(kind: str, etag: str, present: Any) -> None:
    faults = Violations()
    faults.require(bool(etag), f"{kind}.etag", "must be set")
    faults.raise_if_any()
    if etag != present.etag:
        raise aborted("ETAG_MISMATCH", f"{kind} {present.name!r} has changed since it was read", {"etag": present.etag})


def _masked(present: Any, given: Any, mask: FieldMask) -> Any:
    """A copy of `present` with the fields of `given` that the mask names; without paths, those that are set."""
    faults = Violations()
    known = set(present.DESCRIPTOR.fields_by_name) - _OUTPUT_ONLY - {"name"}
    for path in mask.paths:
        faults.require(path in known, "update_mask", f"{path!r} is no field that can be changed")
    faults.raise_if_any()
    updated = type(present)()
    updated.CopyFrom(present)
    for path in mask.paths or sorted({field.name for field, _ in given.ListFields()} & known):
        updated.ClearField(path)
        part = type(present)()
        part.CopyFrom(given)
        for other in [field.name for field, _ in given.ListFields() if field.name != path]:
            part.ClearField(other)
        updated.MergeFrom(part)
    return updated


def _page(items: list[Any], token: str) -> tuple[list[Any], str]:
    faults = Violations()
    faults.require(not token or token.isdigit(), "page_token", "is none that a list call has returned")
    faults.raise_if_any()
    start = int(token or 0)
    end = start + _PAGE
    return items[start:end], str(end) if end < len(items) else ""
