"""Runs the router: `python -m router`, told what to do by PITH_ROUTER_* (see router/config.py)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta

from common.auth import Authenticator
from common.carbon.providers import provider_from_spec
from common.clock import Clock, SystemClock, clock_from_spec
from common.config import load
from common.errors import PithError
from common.grpc_server import GrpcServer, run_until_signalled
from common.logging import configure
from common.metrics import Metrics
from router.accounting import Accountant
from router.answers import REMEMBERED_FOR, Answers
from router.config import RouterConfig
from router.fleet.breaker import Breaker
from router.fleet.dispatch import Dispatcher
from router.fleet.engines import Engines
from router.ledger import Ledger, Record
from router.optimizer.costs import CostBook
from router.optimizer.loop import Planner
from router.services import directives, feedback, generation, policies, reports
from router.services.directives import DirectivesService
from router.services.feedback import FeedbackService
from router.services.generation import GenerationService, KeptAnswer
from router.services.policies import PoliciesService
from router.services.reports import ReportsService
from router.snapshot import SnapshotKeeper, seed
from router.store.database import Database
from router.store.ledger import LedgerRepository
from router.store.migrate import SchemaVersionError
from router.store.samples import SampleRepository
from router.validation import RequestLimits

COSTS_FROM = timedelta(days=7)
"""How far back a router that starts looks for what requests cost."""


class Router:
    """One router, put together from its parts.

    Attributes:
        server: Its gRPC server.
        metrics: What it counts.
        ledger: What it writes down.
    """

    def __init__(self, config: RouterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self.metrics = Metrics("router")
        self._database = Database(config.database_url)
        self._keeper = SnapshotKeeper(self._database, clock)
        self._intensities = provider_from_spec(config.intensity)
        self._planner: Planner | None = None
        self.server = GrpcServer(config, Authenticator.from_file(config.tokens_file), self.metrics)
        self.ledger = Ledger(self._write, config.outbox_path, max_waiting=config.ledger_waiting)
        backlog = self.metrics.gauge("ledger_backlog", "Records that wait in memory.", unit="records")
        backlog.set_function(lambda: self.ledger.waiting)
        lost = self.metrics.gauge("ledger_lost", "Records that nothing could hold.", unit="records")
        lost.set_function(lambda: self.ledger.lost)
        ready = self.metrics.gauge("engines", "Engines that requests are sent to.", unit="ready")
        self._engines = Engines(
            config.engine_addresses,
            SystemClock(),
            token=config.engine_token.get_secret_value() if config.engine_token else None,
            make_breaker=lambda: Breaker(config.breaker_faults, config.breaker_cooldown_seconds),
            on_change=lambda: ready.set(self._engines.ready),
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
        async with self._database.reading() as connection:
            past = LedgerRepository(connection)
            costs = CostBook(await past.mean_costs(keeper.snapshot.directives, clock.now() - COSTS_FROM))
            answered = await past.recent(clock.now() - REMEMBERED_FOR, config.remembered_requests)
        answers: Answers[KeptAnswer] = Answers(
            clock, config.answer_keep_seconds, config.answer_keep_bytes, config.remembered_requests
        )
        answers.remember(reversed(answered))
        self._planner = planner = Planner(
            keeper, costs, self._intensities, config.carbon, clock, config.plan_interval_seconds
        )
        keeper.subscribe(planner.replan)
        await planner.replan()
        planner.start()
        self.ledger.start()
        self._engines.start()
        self._add_services(answers, costs, planner)
        if config.metrics_port is not None:
            self.metrics.serve(config.metrics_port, config.listen_host)
        port = await self.server.start()
        await self.server.set_serving(True)
        return port

    def _add_services(self, answers: Answers[KeptAnswer], costs: CostBook, planner: Planner) -> None:
        config, clock, keeper, database = self._config, self._clock, self._keeper, self._database
        limits = RequestLimits(config.max_messages, config.max_prompt_characters)
        accountant = Accountant(self.ledger, costs, self._intensities, config.carbon, clock, self.metrics)
        dispatcher = Dispatcher(self._engines, config.stall_seconds, self.metrics)
        self.server.add(
            GenerationService(
                keeper, self._engines, dispatcher, answers, accountant, clock, limits, config.default_model
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
                limits,
            ),
            policies.SERVICE,
            roles=policies.ROLES,
        )
        self.server.add(
            FeedbackService(database, keeper, clock, costs, planner.grams, self._intensities),
            feedback.SERVICE,
            roles=feedback.ROLES,
        )
        self.server.add(
            ReportsService(database, keeper, clock, self._engines.views), reports.SERVICE, roles=reports.ROLES
        )

    async def close(self) -> None:
        """After the server has drained: what it still holds goes to the database, or else to the outbox."""
        await self.server.drain(grace_seconds=0)
        await self._engines.close()
        if self._planner is not None:
            await self._planner.close()
        await self.ledger.close()
        await self._keeper.close()
        await self._database.close()
        self.metrics.close()

    async def _write(self, records: Sequence[Record]) -> None:
        async with self._database.writing() as connection:
            await LedgerRepository(connection).add_many([record.entry for record in records])
            await SampleRepository(connection).add_many([r.sample for r in records if r.sample is not None])


async def serve(config: RouterConfig) -> None:
    """Serves until a signal comes, then drains."""
    router = Router(config, clock_from_spec(config.clock))
    try:
        await router.start()
        await run_until_signalled(router.server)
    finally:
        await router.close()


def main() -> None:
    config = load(RouterConfig)
    configure("router", config.log_level, config.log_format)
    try:
        asyncio.run(serve(config))
    except (PithError, OSError, SchemaVersionError) as fault:
        sys.exit(f"router: {fault}")


if __name__ == "__main__":
    main()
