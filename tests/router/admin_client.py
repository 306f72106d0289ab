"""What the tests of the router's services hold in their hands: stubs, and what the services are told from outside."""

from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from pith.router.v1 import (
    directives_pb2_grpc,
    feedback_pb2_grpc,
    policies_pb2_grpc,
    reports_pb2_grpc,
    reviews_pb2_grpc,
)

from common.carbon.intensity import Intensity, Scope, SignalKind
from common.errors import PithError, from_rpc_error
from common.grpc_client import connect
from router.fleet.view import EngineView
from router.optimizer.costs import Cost, CostBook

MODEL = "tiny@0123456789ab"


class FixedIntensity:
    """The same at all times."""

    fault = ""

    def current(self, now: datetime) -> Intensity:
        return Intensity(100.0, "ES", SignalKind.AVERAGE, Scope.DIRECT, now, "test")

    def history(self, now: datetime, hours: int) -> Sequence[tuple[datetime, float]]:
        hour = now.replace(minute=0, second=0, microsecond=0)
        return [(hour - timedelta(hours=back), 100.0) for back in reversed(range(hours))]


class AdminClient:
    """Stubs of the admin's services, as an admin, and as others by `as_role`.

    Attributes:
        costs: What requests cost, as the services see it.
        grams_per_joule: Price of energy at present; None makes the grid unknown.
        engines: As the fleet would show them.
    """

    def __init__(self, costs: CostBook) -> None:
        self.costs = costs
        self.grams_per_joule: float | None = 0.5
        self.engines: list[EngineView] = []
        self._port = 0
        self._channels: list[grpc.aio.Channel] = []

    def connect(self, port: int) -> None:
        self._port = port
        self.policies, self.feedback, self.reports = self.as_role("admin")
        self.directives = self.policies

    def as_role(self, role: str) -> tuple[Any, Any, Any]:
        """Stubs of Policies (with Directives), Feedback and Reports."""
        channel = connect(f"127.0.0.1:{self._port}", token=role)
        self._channels.append(channel)
        return (
            SimpleNamespace(
                **vars(policies_pb2_grpc.PoliciesStub(channel)), **vars(directives_pb2_grpc.DirectivesStub(channel))
            ),
            feedback_pb2_grpc.FeedbackStub(channel),
            reports_pb2_grpc.ReportsStub(channel),
        )

    def reviews(self, role: str) -> Any:
        """Stub of Reviews."""
        channel = connect(f"127.0.0.1:{self._port}", token=role)
        self._channels.append(channel)
        return reviews_pb2_grpc.ReviewsStub(channel)

    def grams(self, cost: Cost) -> float | None:
        return None if self.grams_per_joule is None else cost.energy_joules * self.grams_per_joule

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def refused(call: Awaitable[Any], code: str, reason: str) -> PithError:
    """What the server said when it refused the call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    assert (error.code.name, error.reason) == (code, reason), error
    return error


async def faults(call: Awaitable[Any]) -> dict[str, str]:
    """Description by field of a request that is not valid."""
    error = await refused(call, "INVALID_ARGUMENT", "INVALID_FIELDS")
    return {violation.field: violation.description for violation in error.violations}
