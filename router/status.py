"""How this router is: what it has served since its start, the grid, budgets, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pith.router.v1 import reports_pb2 as pb

from common.clock import Clock
from common.code_revision import code_revision
from common.metrics import Metrics
from router import convert, policy_messages
from router.directives.decide import Reason
from router.ledger import Ledger
from router.snapshot import SnapshotKeeper
from router.spending import Spending
from router.zones import Zones

_ANSWERING = {f"/pith.router.v1.Generation/{method}" for method in ("Generate", "StreamGenerate")}


class StatusReader:
    """Reads a router's state where it is kept; its counters are those of its metrics.

    Args:
        draining: Whether the server takes its leave.
    """

    def __init__(
        self,
        metrics: Metrics,
        ledger: Ledger,
        keeper: SnapshotKeeper,
        spending: Spending,
        zones: Zones,
        clock: Clock,
        draining: Callable[[], bool],
    ) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._keeper = keeper
        self._spending = spending
        self._zones = zones
        self._clock = clock
        self._draining = draining
        self._version = code_revision()
        self._started_at = clock.now()
        stale = metrics.gauge(
            "snapshot", "1 while decisions rest on what the database said before it went away.", unit="stale"
        )
        stale.set_function(lambda: keeper.stale)
        age = metrics.gauge("plan_age", "Since the plan in force was made, on the router's clock.", unit="seconds")
        age.set_function(lambda: (clock.now() - keeper.snapshot.plan.made_at).total_seconds())

    def read(self) -> pb.RouterStatus:
        now, snapshot = self._clock.now(), self._keeper.snapshot
        status = pb.RouterStatus(
            version=self._version,
            now=convert.timestamp(now),
            started_at=convert.timestamp(self._started_at),
            draining=self._draining(),
            in_flight=round(sum(value for _, value in self._answering("pith_grpc_requests_in_flight"))),
            # Who went away before the answer was there has not been failed.
            failed_total=round(
                sum(
                    value
                    for labels, value in self._answering("pith_grpc_requests_total")
                    if labels["code"] not in ("OK", "CANCELLED")
                )
            ),
            energy_joules_total=self._sum("pith_router_energy_joules_total"),
            output_tokens_total=round(self._sum("pith_router_served_tokens_total", kind="output")),
            ledger_waiting=self._ledger.waiting,
            outbox_in_use=self._ledger.outbox_in_use,
            ledger_lost=self._ledger.lost,
            database_away=self._keeper.stale or self._ledger.database_away,
            planned_at=convert.timestamp(snapshot.plan.made_at),
            intensity_fault=self._zones.default.fault,
        )
        intensity = self._zones.current("")
        if intensity is not None:
            status.intensity.CopyFrom(convert.from_intensity(intensity, now))
            status.carbon_grams_total = self._sum("pith_router_carbon_grams_total", signal=str(intensity.signal))
        served = self._samples("pith_router_decisions_requests_total")
        for labels, value in sorted(served, key=lambda sample: (sample[0]["directive"], sample[0]["reason"])):
            reason = convert.from_reason(Reason(labels["reason"]))
            status.served.add(directive=labels["directive"], reason=reason, requests=round(value))
        status.requests_total = sum(row.requests for row in status.served)
        for policy in snapshot.policies:
            if policy.carbon_budget is not None:
                status.budgets.add(
                    policy=policy.name,
                    grams_spent=self._spending.today(policy.name),
                    grams_per_day=policy.carbon_budget.grams_per_day,
                    when_spent=policy_messages.from_when_spent(policy.carbon_budget.when_spent),
                )
        for zone, provider in self._zones.by_zone.items():
            there = self._zones.current(zone)
            known = None if there is None else convert.from_intensity(there, now)
            status.zones.add(zone=zone, intensity=known, fault=provider.fault)
        return status

    def _sum(self, name: str, **labels: str) -> float:
        return sum(value for found, value in self._samples(name) if labels.items() <= found.items())

    def _answering(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        return (sample for sample in self._samples(name) if sample[0]["method"] in _ANSWERING)

    def _samples(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """(labels, value) of a metric."""
        for family in self._metrics.registry.restricted_registry([name]).collect():
            for sample in family.samples:
                if sample.name == name:
                    yield sample.labels, sample.value
