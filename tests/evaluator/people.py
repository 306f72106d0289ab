"""What an evaluator has to do with people, put together as its process does."""

from __future__ import annotations

import grpc

from common.clock import Clock
from common.metrics import Metrics
from evaluator.agreement import AgreementWatch
from evaluator.config import EvaluatorConfig
from evaluator.review_client import ReviewClient


def people(
    channel: grpc.aio.Channel, config: EvaluatorConfig, clock: Clock, metrics: Metrics
) -> tuple[ReviewClient, AgreementWatch]:
    """channel: to the router."""
    reviews = ReviewClient(channel, config.call_deadline_seconds)
    return reviews, AgreementWatch(reviews, config.disagreement_limit, config.agreement_seconds, clock, metrics)
