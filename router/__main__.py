"""Runs the router: `python -m router`, told what to do by PITH_ROUTER_* (see router/config.py)."""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import Sequence
from datetime import timedelta

from common.auth import Authenticator
from common.carbon.intensity import IntensityProvider
from common.certificates import CertificateError
from common.clock import Clock, SystemClock, clock_from_spec
from common.command_line import command_line
from common.config import load
from common.errors import PithError
from common.grpc_server import GrpcServer, run_until_signalled
from common.logging import configure, log_uncaught
from common.metrics import Metrics
from router.access_keeper import AccessKeeper
from router.accounting import Accountant
from router.admission import Admission
from router.answers import REMEMBERED_FOR, Answers
from router.budget_metrics import BudgetMetrics
from router.config import RouterConfig
from router.fleet.breaker import Breaker
from router.fleet.dispatch import Dispatcher
from router.fleet.engines import Engines
from router.grid_forecast import GridForecast
from router.idle import IdleKeeper
from router.intensity_metrics import IntensityMetrics
from router.ledger import Ledger, Rating, Record, Served
from router.optimizer.costs import CostBook
from router.optimizer.latency import LatencyBook
from router.optimizer.loop import Planner
from router.outcomes import Outcomes
from router.quality_days import QualityDays
from router.rate_limit import RateLimiter
from router.redaction import Redaction
from router.replay.simulate import Simulator
from router.retention import Retention
from router.seal import KEY_BYTES, Sealer
from router.services import access, directives, feedback, generation, policies, reports, reviews, tasks
from router.services.access import AccessService
from router.services.directives import DirectivesService
from router.services.feedback import FeedbackService
from router.services.generation import GenerationService, KeptAnswer
from router.services.policies import PoliciesService
from router.services.reports import ReportsService
from router.services.reviews import ReviewsService
from router.services.tasks import TasksService
from router.snapshot import SnapshotKeeper, seed
from router.spending import Spending
from router.status import StatusReader
from router.store.database import Database
from router.store.ledger import LedgerRepository
from router.store.migrate import SchemaVersionError
from router.store.ratings import RatingRepository
from router.store.samples import SampleRepository
from router.store.seals import SealRepository
from router.task_keeper import TaskKeeper
from router.validation import RequestLimits
from router.zones import zones_of

COSTS_FROM = timedelta(days=7)
"""How far back a router that starts looks for what requests cost and how long their answers take."""
ANSWER_TIMES = 20_000
"""The newest so many are looked at."""


class Router:
    """One router, put together from its parts.

    Attributes:
        server: Its gRPC server.
        metrics: What it counts.
        ledger: What it writes down.
        idle: Counts what its engines report of idle time.
    """

    def __init__(self, config: RouterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.metrics = Metrics("router")
        self._database = Database(config.database_url)
        self._keeper = SnapshotKeeper(self._database, clock)
        self._zones = zones_of(config, clock)
        self.metrics.registry.register(IntensityMetrics(self._zones, clock))
        self._latencies = LatencyBook()
        self._spending = Spending(self._database, clock)
        self._planner: Planner | None = None
        self._auth = Authenticator.from_file(config.tokens_file, clock)
        self.server = GrpcServer(config, self._auth, self.metrics)
        self._refused = self.metrics.counter(
            "refused",
            "Requests refused by a limit of their tenant, or by their policy's carbon budget.",
            unit="requests",
            labels=("limit",),
        )
        self._rates = RateLimiter(clock, config.tenant_limit, lambda limit: self._refused.labels(limit).inc())
        self.metrics.registry.register(BudgetMetrics(self._keeper, self._spending))
        self._access: AccessKeeper | None = None
        self._tasks = TaskKeeper(self._database)
        keep_for = timedelta(days=config.sample_days) if config.sample_days else None
        self._retention = Retention(self._database, clock, keep_for)
        self.ledger = Ledger(self._write, config.outbox_path)
        backlog = self.metrics.gauge("ledger_backlog", "Records that wait in memory.", unit="records")
        backlog.set_function(lambda: self.ledger.waiting)
        outbox = self.metrics.gauge("outbox", "Files of records that wait on disk for the database.", unit="files")
        outbox.set_function(lambda: self.ledger.outbox_files)
        on_disk = self.metrics.gauge("outbox", "Records that wait on disk for the database.", unit="bytes")
        on_disk.set_function(lambda: self.ledger.outbox_bytes)
        lost = self.metrics.gauge("ledger_lost", "Records that nothing could hold.", unit="records")
        lost.set_function(lambda: self.ledger.lost)
        ready = self.metrics.gauge("engines", "Engines that requests are sent to.", unit="ready")
        self.idle = IdleKeeper(self._database, clock, SystemClock(), self._grid, config.carbon)
        self._engines = Engines(
            config.engine_addresses,
            SystemClock(),
            token=config.engine_token.get_secret_value() if config.engine_token else None,
            tls=config.engine_tls,
            make_breaker=lambda: Breaker(config.breaker_faults, config.breaker_cooldown_seconds),
            on_change=lambda: ready.set(self._engines.ready),
            on_models=self._plan_anew,
            on_totals=self.idle.heard,
            on_energy_model=self._plan_anew,
            zones=self._zones,
        )

    async def start(self) -> int:
        """Serves, whether or not any engine is there; returns the port.

        Raises:
            PithError: The database cannot be reached.
            OSError: The address cannot be listened on.
        """
        config, clock, keeper = self._config, self._clock, self._keeper
        await self._database.open()
        await seed(self._database, clock)
        await keeper.start()
        await self._zones.start()
        async with self._database.reading() as connection:
            past = LedgerRepository(connection)
            seen = await past.mean_costs(keeper.snapshot.directives, clock.now() - COSTS_FROM)
            costs = CostBook(seen, self._engines.price, lambda name: keeper.snapshot.directives.get(name))
            for cell, seconds in await past.answer_times(
                keeper.snapshot.directives, clock.now() - COSTS_FROM, ANSWER_TIMES
            ):
                self._latencies.observe(cell, seconds)
            answered = await past.recent(clock.now() - REMEMBERED_FOR, config.remembered_requests)
        async with self._database.writing() as connection:
            secret = await SealRepository(connection).key(secrets.token_bytes(KEY_BYTES))
        answers: Answers[KeptAnswer] = Answers(
            clock, config.answer_keep_seconds, config.answer_keep_bytes, config.remembered_requests
        )
        answers.remember(reversed(answered))
        grid = self._zones.default
        days = QualityDays(self._database, keeper, grid, GridForecast(grid), config.carbon)
        self._planner = planner = Planner(
            keeper,
            costs,
            grid,
            config.carbon,
            clock,
            config.plan_interval_seconds,
            self._latencies,
            days,
            self._engines,
        )
        await self._spending.start()
        self._access = AccessKeeper(self._database, self._auth, self._rates, answers.forget)
        # Before the planner: nothing that goes wrong there may keep a revoked token in force.
        keeper.subscribe(self._access.refresh)
        await self._access.load()
        await self._tasks.load()
        keeper.subscribe(self._tasks.refresh)
        keeper.subscribe(planner.replan)
        await planner.replan()
        planner.start()
        self.ledger.start()
        self._retention.start()
        self.idle.start()
        self._engines.start()
        self._add_services(answers, costs, planner, secret)
        if config.metrics_port is not None:
            self.metrics.serve(config.metrics_port, config.listen_host)
        port = await self.server.start()
        await self.server.set_serving(True)
        return port

    def _add_services(self, answers: Answers[KeptAnswer], costs: CostBook, planner: Planner, secret: bytes) -> None:
        config, clock, keeper, database = self._config, self._clock, self._keeper, self._database
        limits = RequestLimits(config.max_messages, config.max_prompt_characters)
        redaction = Redaction(config.redact, config.redact_patterns)
        accountant = Accountant(
            self.ledger,
            costs,
            self._grid,
            config.carbon,
            clock,
            self.metrics,
            self._latencies,
            self._spending,
            redaction,
            lambda model: self._engines.identity(model) != "",
            secret,
        )
        dispatcher = Dispatcher(self._engines, config.stall_seconds, self.metrics)
        self.server.add(
            GenerationService(
                Admission(
                    keeper,
                    self._rates,
                    self._spending,
                    self._tasks,
                    clock,
                    limits,
                    lambda limit: self._refused.labels(limit).inc(),
                ),
                self._engines,
                dispatcher,
                answers,
                accountant,
                Outcomes(Sealer(secret), keeper, accountant, answers, self.ledger, database, clock, limits, redaction),
                clock,
                config.default_model,
            ),
            generation.SERVICE,
            roles=generation.ROLES,
        )
        self.server.add(DirectivesService(database, keeper, clock), directives.SERVICE, roles=directives.ROLES)
        self.server.add(
            PoliciesService(
                database,
                keeper,
                clock,
                costs,
                planner.grams,
                lambda model: self._engines.identity(model or config.default_model),
                self._engines.views,
                Simulator(database, costs, planner.grams, self._latencies),
                limits,
                spent=self._spending.today,
                tell=self._tasks.tell,
                accepting=self._engines.accepting,
            ),
            policies.SERVICE,
            roles=policies.ROLES,
        )
        self.server.add(
            FeedbackService(
                database, keeper, clock, costs, planner.grams, self._zones.default, self._engines.accepting
            ),
            feedback.SERVICE,
            roles=feedback.ROLES,
        )
        self.server.add(ReviewsService(database, clock, secret), reviews.SERVICE, roles=reviews.ROLES)
        self.server.add(TasksService(database, keeper, self._tasks, clock, limits), tasks.SERVICE, roles=tasks.ROLES)
        self.server.add(AccessService(database, keeper, clock, self._auth), access.SERVICE, roles=access.ROLES)
        status = StatusReader(
            self.metrics,
            self.ledger,
            keeper,
            self._spending,
            self._zones,
            clock,
            lambda: self.server.draining,
        )
        self.server.add(
            ReportsService(database, keeper, clock, self._engines.views, status.read, self._zones),
            reports.SERVICE,
            roles=reports.ROLES,
        )

    async def close(self) -> None:
        """After the server has drained: what it still holds goes to the database, or else to the outbox."""
        await self.server.drain(grace_seconds=0)
        await self._engines.close()
        if self._planner is not None:
            await self._planner.close()
        await self._zones.close()
        await self.ledger.close()
        await self._keeper.close()
        await self._spending.close()
        await self._retention.close()
        await self.idle.close()
        if self._access is not None:
            await self._access.close()
        await self._tasks.close()
        await self._database.close()
        self.metrics.close()

    def _grid(self, engine: str) -> IntensityProvider:
        """Of the zone of an engine, by its name."""
        return self._zones.of(self._engines.zone(engine))

    def _plan_anew(self) -> None:
        if self._planner is not None:
            self._planner.replan_soon()

    async def _write(self, records: Sequence[Record]) -> None:
        served = [record for record in records if isinstance(record, Served)]
        entries = [record.entry for record in served]
        async with self._database.writing() as connection:
            await LedgerRepository(connection).add_many(entries)
            await SampleRepository(connection).add_many([r.sample for r in served if r.sample is not None])
            await RatingRepository(connection).put_many([record for record in records if isinstance(record, Rating)])
        self._spending.written(entries)


async def serve(config: RouterConfig) -> None:
    """Serves until a signal comes, then drains."""
    router = Router(config, clock_from_spec(config.clock))
    try:
        await router.start()
        await run_until_signalled(router.server)
    finally:
        await router.close()


def main() -> None:
    config = load(RouterConfig, **command_line(RouterConfig, "router"))
    configure("router", config.log_level, config.log_format)
    log_uncaught()
    try:
        asyncio.run(serve(config))
    except (PithError, OSError, CertificateError, SchemaVersionError) as fault:
        sys.exit(f"router: {fault}")


if __name__ == "__main__":
    main()
