"""Runs the evaluator: `python -m evaluator`, told what to do by PITH_EVALUATOR_* (see evaluator/config.py)."""

from __future__ import annotations

import asyncio
import sys

from common.auth import Authenticator
from common.certificates import CertificateError
from common.clock import SystemClock, clock_from_spec
from common.command_line import command_line
from common.config import load
from common.grpc_client import connect
from common.grpc_server import GrpcServer, run_until_signalled
from common.logging import configure, log_uncaught
from common.metrics import Metrics
from evaluator.agreement import AgreementWatch
from evaluator.client import RouterClient
from evaluator.config import EvaluatorConfig
from evaluator.judges.configured import configured_judges
from evaluator.loop import EvaluationLoop
from evaluator.review_client import ReviewClient
from evaluator.service import DESCRIPTOR, ROLES, WATCHES, EvaluationService
from evaluator.trial import Trials


async def serve(config: EvaluatorConfig) -> None:
    """Serves until a signal; health is SERVING once estimates have been rebuilt from the router's scores.

    Raises:
        OSError: an address cannot be listened on.
    """
    metrics = Metrics("evaluator")
    channel = connect(
        config.router,
        token=config.token.get_secret_value() if config.token is not None else None,
        tls=config.router_tls,
        # The client itself tries again, as RetryInfo says.
        max_attempts=1,
        max_message_bytes=config.max_message_bytes,
    )
    async with channel:
        router = RouterClient(
            channel,
            evaluator=config.name,
            back_off=SystemClock(),
            attempts=config.attempts,
            call_deadline_seconds=config.call_deadline_seconds,
            generation_deadline_seconds=config.generation_deadline_seconds,
            lease_seconds=config.lease_seconds,
        )
        clock = clock_from_spec(config.clock)
        judge = configured_judges(config, clock, lambda: loop.knowledge.latest_g_per_kwh, metrics)
        loop = EvaluationLoop(config, router, judge, clock, SystemClock(), metrics)
        server = GrpcServer(config, Authenticator.from_file(config.tokens_file, clock), metrics)
        trials = Trials(router, judge, config.concurrency, config.alpha, loop.spending)
        reviews = ReviewClient(channel, config.call_deadline_seconds)
        agreement = AgreementWatch(reviews, config.disagreement_limit, config.agreement_seconds, clock, metrics)
        server.add(EvaluationService(loop, trials, reviews, agreement), DESCRIPTOR, roles=ROLES, watches=WATCHES)
        if config.metrics_port is not None:
            metrics.serve(config.metrics_port, config.listen_host)
        await server.start()
        polling = asyncio.create_task(loop.run())
        watching = asyncio.create_task(agreement.run())
        announcing = asyncio.create_task(_announce(server, loop))
        try:
            await run_until_signalled(server)
        finally:
            announcing.cancel()
            watching.cancel()
            await loop.stop(config.drain_seconds)
            polling.cancel()
            await judge.close()
            metrics.close()


async def _announce(server: GrpcServer, loop: EvaluationLoop) -> None:
    await loop.knowledge.rebuilt.wait()
    await server.set_serving(True)


def main() -> None:
    config = load(EvaluatorConfig, **command_line(EvaluatorConfig, "evaluator"))
    configure("evaluator", config.log_level, config.log_format)
    log_uncaught()
    try:
        asyncio.run(serve(config))
    except (OSError, CertificateError) as fault:
        sys.exit(f"evaluator: {fault}")


if __name__ == "__main__":
    main()
