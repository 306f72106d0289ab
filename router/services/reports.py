"""Service Reports: what was spent, what it would have been, and how it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pith.common.v1 import energy_pb2
from pith.router.v1 import reports_pb2 as pb
from pith.router.v1 import reports_pb2_grpc

from common.auth import Role
from common.clock import Clock
from common.errors import Violations
from common.grpc_server import Context
from common.limits import MAX_ID_CHARACTERS
from common.quality.estimates import QualityBound
from router import convert, pagination
from router.counterfactual import estimate
from router.fleet.view import EngineView
from router.limits import check_text
from router.openings import allowing, is_open
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.reports import ReportRepository, Totals, Window
from router.window import read_window

SERVICE = pb.DESCRIPTOR.services_by_name["Reports"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}

_DIMENSIONS: Mapping[int, str] = {
    pb.DIMENSION_TENANT: "tenant",
    pb.DIMENSION_TASK: "task",
    pb.DIMENSION_DIRECTIVE: "directive",
    pb.DIMENSION_MODEL: "model",
    pb.DIMENSION_HOUR: "hour",
    pb.DIMENSION_DAY: "day",
    pb.DIMENSION_POLICY: "policy",
    pb.DIMENSION_ENGINE: "engine",
    pb.DIMENSION_REASON: "reason",
}


class ReportsService(reports_pb2_grpc.ReportsServicer):
    """Reads only.

    Args:
        engines: The engines as this router sees them now.
        status: How this router is now.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        engines: Callable[[], Sequence[EngineView]],
        status: Callable[[], pb.RouterStatus],
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._engines = engines
        self._status = status

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.Report:
        """A report on one tenant holds no evaluation: the product pays for that, so it lessens no tenant's saving."""
        window = _window(request, self._clock.now())
        dimensions = [_DIMENSIONS[dimension] for dimension in request.dimensions]
        async with self._database.reading() as connection:
            reports = ReportRepository(connection)
            rows = await reports.totals(window, dimensions)
            ((_, total),) = await reports.totals(window)
            ((_, evaluation),) = await reports.totals(window, evaluation=True)
            strata = await reports.strata(window)
        report = pb.Report(rows=[_row(values, totals) for values, totals in rows], total=_row({}, total))
        evaluation_grams = 0.0
        if not request.tenant:
            report.evaluation.CopyFrom(_row({}, evaluation))
            evaluation_grams = evaluation.grams
        counterfactual = estimate(strata, total.grams, evaluation_grams)
        if counterfactual is not None:
            report.counterfactual.CopyFrom(convert.from_counterfactual(counterfactual))
        return report

    async def ListBounds(self, request: pb.ListBoundsRequest, context: Context) -> pb.ListBoundsResponse:
        bounds = sorted(self._keeper.snapshot.bounds.values(), key=_cell_key)
        start = ("", "", "")
        page, token = pagination.page("bounds", bounds, _cell_key, start, request.page_size, request.page_token)
        now = self._clock.now()
        return pb.ListBoundsResponse(bounds=[self._bound(bound, now) for bound in page], next_page_token=token)

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        views = sorted(self._engines(), key=lambda view: view.name)
        return pb.ListEnginesResponse(engines=map(convert.from_engine, views))

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.RouterStatus:
        return self._status()

    def _bound(self, bound: QualityBound, now: datetime) -> pb.ListBoundsResponse.Bound:
        snapshot, cell = self._keeper.snapshot, bound.cell
        policies = allowing(snapshot.policies, cell.task, cell.directive)
        opened = [policy.name for policy in policies if is_open(snapshot, policy, cell, now)]
        closed = [policy.name for policy in policies if policy.name not in opened]
        return pb.ListBoundsResponse.Bound(bound=convert.from_bound(bound), open_for=opened, closed_for=closed)


def _cell_key(bound: QualityBound) -> tuple[str, ...]:
    return bound.cell.model, bound.cell.task, bound.cell.directive


def _window(request: pb.GetReportRequest, now: datetime) -> Window:
    faults = Violations()
    start, end = read_window(faults, request, now)
    for index, dimension in enumerate(request.dimensions):
        at = f"dimensions[{index}]"
        if dimension not in _DIMENSIONS:
            names = ", ".join(pb.Dimension.keys()[1:])
            faults.add(at, f"is {int(dimension)}; must be one of {names}")
        elif dimension in request.dimensions[:index]:
            faults.add(at, f"is {pb.Dimension.Name(dimension)} again; each may be named once")
    check_text(faults, "tenant", request.tenant, MAX_ID_CHARACTERS)
    faults.raise_if_any()
    return Window(start, end, request.tenant)


def _row(values: Mapping[str, Any], totals: Totals) -> pb.Report.Row:
    row = pb.Report.Row(
        requests=totals.requests,
        prompt_tokens=totals.prompt_tokens,
        output_tokens=totals.output_tokens,
        energy_joules=totals.energy_joules,
        operational_grams=totals.operational_grams,
        embodied_grams=totals.embodied_grams,
        requests_without_energy=totals.requests_without_energy,
        requests_without_embodied=totals.requests_without_embodied,
        energy_source=(
            convert.from_energy_source(totals.energy_source)
            if totals.energy_source
            else energy_pb2.ENERGY_SOURCE_UNSPECIFIED
        ),
        rated_requests=totals.rated_requests,
        mean_rating=totals.mean_rating,
    )
    for name, value in values.items():
        if isinstance(value, datetime):
            getattr(row, name).CopyFrom(convert.timestamp(value))
        else:
            setattr(row, name, value)
    return row
