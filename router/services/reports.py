"""Service Reports: what was spent, what it would have been, and how it is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import structlog
from pith.router.v1 import reports_pb2 as pb
from pith.router.v1 import reports_pb2_grpc

from common.auth import Role
from common.carbon.forecast import MOST_FORECAST_HOURS
from common.carbon.intensity import Signal
from common.clock import Clock
from common.errors import Violations
from common.grpc_server import Context
from common.limits import MAX_ID_CHARACTERS
from common.quality.bound import QualityBound
from router import convert, pagination, report_messages
from router.counterfactual import estimate
from router.fleet.view import EngineView
from router.grid_forecast import GridForecast
from router.history import page as history
from router.history.replay import Question
from router.limits import check_text
from router.openings import allowing, opens
from router.snapshot import SnapshotKeeper
from router.store.database import Database
from router.store.idle import IdleRepository
from router.store.quality import Place
from router.store.reports import ReportRepository, Window
from router.store.strata import StratumRepository
from router.window import read_window
from router.zones import Zones

SERVICE = pb.DESCRIPTOR.services_by_name["Reports"]
ROLES = {method.name: {Role.ADMIN} for method in SERVICE.methods}

DEFAULT_HOURS = 24
MOST_PAST_HOURS = 744

log = structlog.get_logger("reports")

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
        zones: The grid's, of each.
    """

    def __init__(
        self,
        database: Database,
        keeper: SnapshotKeeper,
        clock: Clock,
        engines: Callable[[], Sequence[EngineView]],
        status: Callable[[], pb.RouterStatus],
        zones: Zones,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._clock = clock
        self._engines = engines
        self._status = status
        self._zones = zones
        self._forecasts = {zone: GridForecast(zones.of(zone)) for zone in ("", *zones.by_zone)}

    async def GetReport(self, request: pb.GetReportRequest, context: Context) -> pb.Report:
        """A report on one tenant holds neither evaluation nor idle time: the product pays for those, so they lessen no
        tenant's saving."""
        window, signal = _window(request, self._clock.now())
        dimensions = [_DIMENSIONS[dimension] for dimension in request.dimensions]
        of_product = not request.tenant
        async with self._database.reading() as connection:
            reports = ReportRepository(connection)
            signal = signal or await reports.newest_signal(window)
            rows = await reports.totals(window, signal, dimensions)
            ((_, total),) = await reports.totals(window, signal)
            ((_, evaluation),) = await reports.totals(window, signal, evaluation=True)
            others = await reports.other_signals(window, signal, evaluation=of_product)
            strata = await StratumRepository(connection).all(window, signal)
            idle = await IdleRepository(connection).totals(window, signal) if of_product and signal else ()
        report = pb.Report(
            rows=[report_messages.from_totals(values, totals) for values, totals in rows],
            total=report_messages.from_totals({}, total),
            signal=None if signal is None else convert.from_signal(signal),
            other_signals=map(report_messages.from_other_signal, others),
            idle=map(report_messages.from_idle, idle),
        )
        evaluation_grams = 0.0
        if of_product:
            report.evaluation.CopyFrom(report_messages.from_totals({}, evaluation))
            evaluation_grams = evaluation.grams
            if (sci := report_messages.from_sci(total, evaluation, idle)) is not None:
                report.sci.CopyFrom(sci)
        counterfactual = estimate(strata, total.grams, evaluation_grams)
        if counterfactual is not None:
            report.counterfactual.CopyFrom(convert.from_counterfactual(counterfactual))
        return report

    async def ListBounds(self, request: pb.ListBoundsRequest, context: Context) -> pb.ListBoundsResponse:
        bounds = sorted(self._keeper.snapshot.bounds.values(), key=_cell_key)
        start = ("", "", "", "")
        page, token = pagination.page("bounds", bounds, _cell_key, start, request.page_size, request.page_token)
        now = self._clock.now()
        return pb.ListBoundsResponse(bounds=[self._bound(bound, now) for bound in page], next_page_token=token)

    async def ListQualityHistory(
        self, request: pb.ListQualityHistoryRequest, context: Context
    ) -> pb.ListQualityHistoryResponse:
        place, question = _history_question(request)
        # A token is valid for the question that it was made for.
        asked = {field.name: value for field, value in request.ListFields() if not field.name.startswith("page_")}
        kind = ", ".join(["quality history", *(f"{field} {value!r}" for field, value in asked.items())])
        cursor = history.read_token(kind, request.page_token)
        size = pagination.page_size(request.page_size)
        steps, end = await history.read_page(self._database, place, question, cursor, size, self._clock.now())
        return pb.ListQualityHistoryResponse(
            steps=map(report_messages.from_step, steps),
            next_page_token="" if end is None else history.write_token(kind, end),
        )

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        views = sorted(self._engines(), key=lambda view: view.name)
        now = self._clock.now()
        return pb.ListEnginesResponse(
            engines=[convert.from_engine(view, self._zones.current(view.zone), now) for view in views]
        )

    async def GetIntensity(self, request: pb.GetIntensityRequest, context: Context) -> pb.IntensityOutlook:
        history_hours, forecast_hours = _hours(request, self._zones)
        intensities = self._zones.of(request.zone)
        now = self._clock.now()
        try:
            current = intensities.current(now)
            past = intensities.history(now, history_hours)
            coming = await self._forecasts[request.zone].hours(now, forecast_hours)
        except Exception as error:
            # As in GetStatus: whatever is wrong with the provider, to say so is what is asked for.
            log.warning("no intensity", fault=str(error))
            return pb.IntensityOutlook(fault=f"the provider fails: {error}")
        return pb.IntensityOutlook(
            current=convert.from_intensity(current, now),
            history=[
                pb.IntensityOutlook.Hour(start_time=convert.timestamp(start), g_per_kwh=g_per_kwh)
                for start, g_per_kwh in past
            ],
            forecast=[
                pb.IntensityOutlook.Forecast(start_time=convert.timestamp(start), g_per_kwh=convert.from_interval(hour))
                for start, hour in coming
            ],
            fault=intensities.fault,
        )

    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.RouterStatus:
        return self._status()

    def _bound(self, bound: QualityBound, now: datetime) -> pb.ListBoundsResponse.Bound:
        snapshot, cell = self._keeper.snapshot, bound.cell
        policies = allowing(snapshot.policies, cell.task, cell.directive, cell.tenant)
        decided = {policy.name: opens(snapshot, policy, cell, now) for policy in policies}
        return pb.ListBoundsResponse.Bound(
            bound=convert.from_bound(bound),
            open_for=[name for name, opened in decided.items() if opened],
            closed_for=[name for name, opened in decided.items() if opened is False],
        )


def _cell_key(bound: QualityBound) -> tuple[str, ...]:
    return bound.cell.model, bound.cell.task, bound.cell.directive, bound.cell.tenant


def _hours(request: pb.GetIntensityRequest, zones: Zones) -> tuple[int, int]:
    """Of history and of forecast, with the defaults for 0."""
    faults = Violations()
    if request.zone and request.zone not in zones:
        named = f"one of {', '.join(zones.by_zone)}, or empty" if zones.by_zone else "empty: no zones are configured"
        faults.add("zone", f"is {request.zone[:MAX_ID_CHARACTERS]!r}; must be {named}")
    for field, hours, most in (
        ("history_hours", request.history_hours, MOST_PAST_HOURS),
        ("forecast_hours", request.forecast_hours, MOST_FORECAST_HOURS),
    ):
        faults.require(hours <= most, field, f"is {hours:,}; at most {most}")
    faults.raise_if_any()
    return request.history_hours or DEFAULT_HOURS, request.forecast_hours or DEFAULT_HOURS


def _history_question(request: pb.ListQualityHistoryRequest) -> tuple[Place, Question]:
    faults = Violations()
    for field in ("model", "task", "directive", "tenant", "policy"):
        check_text(faults, field, getattr(request, field), MAX_ID_CHARACTERS)
    faults.raise_if_any()
    task = request.task if request.HasField("task") else None
    place = Place(request.model, task, request.directive, request.tenant)
    return place, Question(request.tenant, request.policy, request.all_steps)


def _window(request: pb.GetReportRequest, now: datetime) -> tuple[Window, Signal | None]:
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
    signal = report_messages.to_signal(faults, request.signal) if request.HasField("signal") else None
    faults.raise_if_any()
    return Window(start, end, request.tenant), signal
