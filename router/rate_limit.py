"""How much a tenant may ask of one router: a token bucket on its requests, and a bound on those in flight."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from common.clock import Clock
from common.errors import PithError, quota_exceeded

MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_CONCURRENT_REQUESTS = 100_000

_FULL_AFTER_SECONDS = 60.0
"""A bucket that was left alone for this long is full at any rate, which is what a forgotten tenant's is."""
_ROUNDING = 1e-6
"""Of a request: sums of seconds are not exact, and a client that keeps to its rate is never refused for that."""
_SOON_SECONDS = 1.0
"""When to try again where it is not known when a request will end."""


@dataclass(frozen=True, slots=True)
class TenantLimit:
    """0 is no limit of its kind."""

    requests_per_minute: int = 0
    concurrent_requests: int = 0

    @property
    def burst_requests(self) -> float:
        """How many may come at once: what comes in ten seconds at the rate, and at least 1."""
        return max(1.0, self.requests_per_minute / 6)

    def over(self, default: TenantLimit) -> TenantLimit:
        """These limits, those of `default` where they are 0."""
        return TenantLimit(
            self.requests_per_minute or default.requests_per_minute,
            self.concurrent_requests or default.concurrent_requests,
        )


@dataclass(slots=True)
class _Bucket:
    requests: float
    at_seconds: float


class RateLimiter:
    """Admits the requests of each tenant by its limits. In any t minutes at most burst + rate * t are admitted.

    A request that is refused uses up nothing. State is kept of tenants that have a rate and asked within a minute, and
    of those with requests in flight.

    Args:
        default: Of tenants without limits of their own.
        on_refused: Told which limit refused a request: "requests_per_minute" or "concurrent_requests".
    """

    def __init__(self, clock: Clock, default: TenantLimit, on_refused: Callable[[str], None] = lambda limit: None):
        self._clock = clock
        self._default = default
        self._on_refused = on_refused
        self._limits: Mapping[str, TenantLimit] = {}
        # In order of their last use, so that those that are full again stand in front.
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._in_flight: dict[str, int] = {}

    def put_limits(self, limits: Mapping[str, TenantLimit]) -> None:
        """Sets the limits of tenants that have some of their own, in place of all that were set before."""
        self._limits = limits

    @property
    def tenants(self) -> int:
        """Of how many tenants anything is kept."""
        return len(self._buckets.keys() | self._in_flight.keys())

    def in_flight(self, tenant: str) -> int:
        return self._in_flight.get(tenant, 0)

    def limit(self, tenant: str) -> TenantLimit:
        own = self._limits.get(tenant)
        return self._default if own is None else own.over(self._default)

    @contextmanager
    def request(self, tenant: str) -> Iterator[None]:
        """Within the block a request of the tenant is in flight.

        Raises:
            PithError: RESOURCE_EXHAUSTED (RATE_LIMITED); then the block is not entered.
        """
        self._admit(tenant)
        self._in_flight[tenant] = self.in_flight(tenant) + 1
        try:
            yield
        finally:
            if self._in_flight[tenant] == 1:
                del self._in_flight[tenant]
            else:
                self._in_flight[tenant] -= 1

    def _admit(self, tenant: str) -> None:
        limit = self.limit(tenant)
        if 0 < limit.concurrent_requests <= self.in_flight(tenant):
            raise self._refusal(
                tenant,
                "concurrent_requests",
                f"{limit.concurrent_requests:,} requests are in flight, as many as may be at once",
                _SOON_SECONDS,
            )
        now = self._clock.monotonic()
        self._forget_before(now - _FULL_AFTER_SECONDS)
        if not limit.requests_per_minute:
            return
        per_second, burst = limit.requests_per_minute / 60, limit.burst_requests
        bucket = self._buckets.setdefault(tenant, _Bucket(burst, now))
        bucket.requests = min(burst, bucket.requests + (now - bucket.at_seconds) * per_second)
        bucket.at_seconds = now
        self._buckets.move_to_end(tenant)
        if bucket.requests < 1 - _ROUNDING:
            raise self._refusal(
                tenant,
                "requests_per_minute",
                f"more than {limit.requests_per_minute:,} requests a minute",
                (1 - bucket.requests) / per_second,
            )
        bucket.requests -= 1

    def _forget_before(self, seconds: float) -> None:
        while self._buckets:
            tenant = next(iter(self._buckets))
            if self._buckets[tenant].at_seconds > seconds:
                return
            del self._buckets[tenant]

    def _refusal(self, tenant: str, limit: str, description: str, retry_after_seconds: float) -> PithError:
        self._on_refused(limit)
        return quota_exceeded("RATE_LIMITED", f"tenant:{tenant}", description, retry_after_seconds)
