"""Membership: one channel an engine, and a task that keeps in touch with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import grpc
import structlog
from pith.engine.v1 import control_pb2

from common.client_tls import ClientTls
from common.clock import Clock
from common.errors import PithError, not_found, unavailable
from router.backoff import backoff_seconds
from router.fleet.balance import expected_grams, least_carbon, least_loaded
from router.fleet.batch import mean_batch
from router.fleet.breaker import Breaker
from router.fleet.engine import REFUSALS, RETRY_AFTER_SECONDS, Engine, refused_token
from router.fleet.totals import EngineTotals, read_totals
from router.fleet.view import EngineState, EngineView
from router.optimizer.pricing import Price
from router.zones import Zones

INFO_TIMEOUT_SECONDS = 5.0

log = structlog.get_logger("fleet")


class Engines:
    """All engines of a router. The list is fixed; who of them is there is found out, again and again.

    Args:
        addresses: By name.
        clock: Wall time, whatever the service's: engines do not hurry with a simulated day.
        token: Bearer token for engines that ask for one.
        tls: None: engines are called in the clear. Its files are read anew for each new channel.
        make_breaker: A breaker for each engine.
        on_change: Called after every report and every loss.
        on_models: Called where the models that some engine accepts requests for are others than before.
        on_totals: Called with each report that has some, and the engine's name.
        on_energy_model: Called where an engine is reached and its energy model is another than before.
        zones: That engines may stand in; None: all engines count as in one.
        first_backoff_seconds, max_backoff_seconds: Wall time between attempts to reach an engine.
    """

    def __init__(
        self,
        addresses: Mapping[str, str],
        clock: Clock,
        *,
        token: str | None = None,
        tls: ClientTls | None = None,
        make_breaker: Callable[[], Breaker] = Breaker,
        on_change: Callable[[], None] = lambda: None,
        on_models: Callable[[], None] = lambda: None,
        on_totals: Callable[[str, EngineTotals], None] = lambda name, totals: None,
        on_energy_model: Callable[[], None] = lambda: None,
        zones: Zones | None = None,
        first_backoff_seconds: float = 0.1,
        max_backoff_seconds: float = 5.0,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock
        self._addresses = dict(addresses)
        self._token = token
        self._tls = tls
        self._make_breaker = make_breaker
        self._on_change = on_change
        self._on_models = on_models
        self._accepting: Collection[str] = set()
        self._on_totals = on_totals
        self._on_energy_model = on_energy_model
        self._zones = zones
        self._first_backoff_seconds = first_backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._rng = rng or random.Random()
        self._members: dict[str, Engine] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to reach the engines; returns at once, whoever is there."""
        for name, address in self._addresses.items():
            zones = self._zones or ()
            engine = Engine(name, address, self._make_breaker(), self._token, self._tls, self.clock, zones)
            self._members[name] = engine
            self._tasks.append(asyncio.create_task(self._keep_in_touch(engine), name=f"engine {name}"))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for engine in self._members.values():
            await engine.close()

    @property
    def ready(self) -> int:
        return sum(engine.state is EngineState.READY for engine in self._members.values())

    def views(self) -> Sequence[EngineView]:
        return [engine.view() for engine in self._members.values()]

    def choose(self, model: str, excluding: Collection[str] = ()) -> Engine | None:
        """The engine that gets a request, of those that serve the model and accept requests; None where there is none.

        Within one zone that is the least loaded. Of several zones, it is one that has room and emits little.
        """
        able = [
            engine
            for engine in self._members.values()
            if engine.name not in excluding and engine.accepts and engine.serves(model)
        ]
        zones = {engine.zone for engine in able}
        g_per_kwh = self._zones.comparable(zones) if self._zones is not None and len(zones) > 1 else None
        if g_per_kwh is None:
            name = least_loaded(engine.candidate() for engine in able)
        else:
            running = mean_batch((engine.batch for engine in able), self.clock.monotonic())
            # What one model spends on a token says nothing of what it spends on an answer beside another model.
            alike = len({engine.identity for engine in able}) == 1
            grams = expected_grams(
                [(engine.energy_model if alike else None, g_per_kwh[engine.zone]) for engine in able], running
            )
            name = least_carbon([engine.candidate(found) for engine, found in zip(able, grams, strict=True)])
        return None if name is None else self._members[name]

    def accepting(self, excluding: Collection[str] = ()) -> Collection[str]:
        """ "name@digest" of the models that `choose` would find an engine for."""
        return {engine.identity for engine in self._members.values() if engine.accepts and engine.name not in excluding}

    def g_per_kwh(self) -> Mapping[str, float]:
        """Of the cleanest zone that a model's engines stand in, by "name@digest": as long as it has room, requests go
        there. Those that accept none count where none does. Without models of which all are in the default's, or whose
        zones cannot be compared with that."""
        accepting = self.accepting()
        zones: dict[str, set[str]] = {}
        for engine in self._members.values():
            if engine.accepts or engine.identity not in accepting:
                zones.setdefault(engine.identity, set()).add(engine.zone)
        found = {}
        for identity, of_model in zones.items():
            if self._zones is None or of_model == {""}:
                continue
            if known := self._zones.comparable({"", *of_model}):
                found[identity] = min(known[zone] for zone in of_model)
        return found

    def zone(self, name: str) -> str:
        """The zone of an engine, last known where it is away; empty for the default's, also where there is no such
        engine."""
        engine = self._members.get(name)
        return "" if engine is None else engine.zone

    def identity(self, model: str) -> str:
        """ "name@digest" of what would serve the model, last known where it is away; empty where nothing is known."""
        known = list(dict.fromkeys(member.identity for member in self._members.values() if member.serves(model)))
        engine = self.choose(model) if len(known) > 1 else None
        return engine.identity if engine else next(iter(known), "")

    def price(self, identity: str) -> Price | None:
        """Of a model's requests at present, "name@digest"; None where no engine that serves it is calibrated.

        Where several are, on devices that differ perhaps, the one measured last stands for all; the batch is of all.
        One that is away keeps its say, so that prices do not jump with it.
        """
        # Plans are made in a thread of their own: a copy cannot change under the loop.
        serving = [member for member in tuple(self._members.values()) if member.identity == identity]
        models = [member.energy_model for member in serving if member.energy_model is not None]
        if not models:
            return None
        newest = max(models, key=lambda model: model.measured_at)
        return Price(newest, mean_batch((member.batch for member in serving), self.clock.monotonic()))

    def absent(self, model: str) -> PithError:
        """What a caller is told where `choose` finds none: NOT_FOUND only when every engine has said what it serves."""
        members = self._members.values()
        if members and all(member.info for member in members) and not any(m.serves(model) for m in members):
            return not_found("model", model)
        what = f"model {model!r}" if model else "any model"
        return unavailable("NO_ENGINE", f"no healthy engine serves {what} at present", RETRY_AFTER_SECONDS)

    async def _keep_in_touch(self, engine: Engine) -> None:
        failures = 0
        while True:
            try:
                info = await engine.control.GetModelInfo(
                    control_pb2.GetModelInfoRequest(), timeout=INFO_TIMEOUT_SECONDS
                )
                before = engine.energy_model
                engine.reached(info)
                log.info("engine reached", engine=engine.name, address=engine.address, model=engine.identity)
                if engine.energy_model != before:
                    self._on_energy_model()
                async for load in engine.watch():
                    failures = 0
                    engine.report(load)
                    if totals := read_totals(load):
                        self._on_totals(engine.name, totals)
                    self._changed()
                fault, lost = "it ended its load reports", True
            except grpc.aio.AioRpcError as error:
                fault, lost = self._fault(error), True
            except asyncio.CancelledError:
                # The end of the watch by `refuse` looks like the end of the task.
                task = asyncio.current_task()
                if not engine.refused or (task and task.cancelling()):
                    raise
                fault, lost = engine.fault, False
            if engine.load is not None or failures == 0:
                log.warning("engine unreachable", engine=engine.name, address=engine.address, fault=fault)
            if lost:
                engine.lose(fault)
            self._changed()
            failures += 1
            pause = backoff_seconds(failures, self._first_backoff_seconds, self._max_backoff_seconds, self._rng)
            await asyncio.sleep(pause)
            await engine.reconnect()

    def _changed(self) -> None:
        self._on_change()
        accepting = self.accepting()
        if accepting != self._accepting:
            self._accepting = accepting
            self._on_models()

    def _fault(self, error: grpc.aio.AioRpcError) -> str:
        """What went wrong, and where the router's own settings are the likely cause, which."""
        said = f"{error.code().name}: {error.details()}"
        if error.code() in REFUSALS:
            return refused_token(said)
        # All that is seen of a server that misses the client's certificate.
        without = self._tls is not None and self._tls.certificate is None
        if without and "Socket closed" in (error.details() or ""):
            settings = "PITH_ROUTER_ENGINE_TLS_CERTIFICATE and PITH_ROUTER_ENGINE_TLS_KEY"
            return f"{said}; an engine with tls_client_ca asks for a certificate: {settings}"
        return said
