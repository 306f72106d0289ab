"""Membership: one channel an engine, and a task that keeps in touch with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence

import grpc
import structlog
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2

from common.certificates import CertificateError
from common.client_tls import ClientTls
from common.clock import Clock
from common.errors import PithError, not_found, unavailable
from common.grpc_client import connect
from router.backoff import backoff_seconds
from router.convert import to_energy_model
from router.fleet.balance import Candidate, least_loaded
from router.fleet.batch import BusyBatch, mean_batch
from router.fleet.breaker import Breaker
from router.fleet.totals import EngineTotals, read_totals
from router.fleet.view import EngineState, EngineView
from router.optimizer.pricing import EnergyModel, Price

STREAM_GENERATE = "/pith.engine.v1.Inference/StreamGenerate"
INFO_TIMEOUT_SECONDS = 5.0
RETRY_AFTER_SECONDS = 1.0
"""What a caller is told when no engine is there: about what an engine needs to come back after a restart."""
DIGEST_CHARACTERS = 12
"""Of the model's digest, as cells have it: enough to tell models apart, short enough to read."""

REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
"""An engine's answers to a token that is not known there, has expired, or is of another role."""

log = structlog.get_logger("fleet")


class Engine:
    """One engine: its channel, what it last said of itself, and this router's requests there.

    Attributes:
        info: The model it serves; None where it was never reached.
        energy_model: What a request costs there; None where it is not calibrated, or reports nonsense.
        load: Its last report; None while it is not reached.
        batch: What it ran at once, by its reports.
        fault: Why it is not reached; empty where it is.
        progressed_at: Moment of `clock.monotonic` at which a report last showed new output tokens.
    """

    def __init__(
        self, name: str, address: str, breaker: Breaker, token: str | None, tls: ClientTls | None, clock: Clock
    ) -> None:
        self.name = name
        self.address = address
        self.breaker = breaker
        self.info: control_pb2.ModelInfo | None = None
        self.energy_model: EnergyModel | None = None
        self.batch = BusyBatch()
        self.load: control_pb2.Load | None = None
        self.fault = "not reached yet"
        self.in_flight = 0
        self.progressed_at = 0.0
        self._refused = False
        self._energy_model_fault = ""
        self._watch: grpc.aio.UnaryStreamCall[control_pb2.WatchLoadRequest, control_pb2.Load] | None = None
        self._since_report = 0
        self._token = token
        self._tls = tls
        self._clock = clock
        self._open_channel()

    def _open_channel(self) -> None:
        # No retries in gRPC: which engine is tried next is the dispatcher's choice.
        self._channel = connect(self.address, token=self._token, tls=self._tls, max_attempts=1)
        self.control = control_pb2_grpc.ControlStub(self._channel)
        # Without a deserializer messages stay bytes: most are relayed as they are.
        self.stream_generate: grpc.aio.UnaryStreamMultiCallable[inference_pb2.GenerateRequest, bytes] = (
            self._channel.unary_stream(
                STREAM_GENERATE, request_serializer=inference_pb2.GenerateRequest.SerializeToString
            )
        )

    @property
    def identity(self) -> str:
        """The model as cells name it, "name@digest"; empty where the engine was never reached."""
        return model_identity(self.info.model, self.info.model_digest) if self.info else ""

    @property
    def state(self) -> EngineState:
        if self.load is None:
            return EngineState.UNREACHABLE
        if self.load.draining:
            return EngineState.DRAINING
        return EngineState.BROKEN if self.breaker.is_open else EngineState.READY

    @property
    def accepts(self) -> bool:
        """Whether a request may be sent: it is reached, does not drain, and its breaker lets one through."""
        return self.load is not None and not self.load.draining and self.breaker.allows

    def serves(self, model: str) -> bool:
        """Whether it serves a model, given by name, by "name@digest", or as empty for any."""
        return self.info is not None and (not model or model in (self.info.model, self.identity))

    def candidate(self) -> Candidate:
        load = self.load or control_pb2.Load()
        return Candidate(self.name, load.running + load.waiting, self._since_report, self.in_flight, load.max_running)

    def begin(self) -> None:
        """A request of this router is sent."""
        self.in_flight += 1
        self._since_report += 1

    def end(self) -> None:
        """A request of this router is over."""
        self.in_flight -= 1
        self._since_report -= 1

    def reached(self, info: control_pb2.ModelInfo) -> None:
        """The engine answered after a time without contact."""
        self.info = info
        self.energy_model = self._read_energy_model(info)
        self.fault = ""
        # One that shows what it is and refuses requests is no better than before.
        if not self._refused:
            self.breaker.reset()
        self._refused = False

    def _read_energy_model(self, info: control_pb2.ModelInfo) -> EnergyModel | None:
        fault = ""
        try:
            return to_energy_model(info.energy_model) if info.HasField("energy_model") else None
        except ValueError as error:
            fault = str(error)
            # Said once, however often the engine is lost and found again.
            if fault != self._energy_model_fault:
                log.warning("the engine's energy model is not used", engine=self.name, model=self.identity, fault=fault)
            return None
        finally:
            self._energy_model_fault = fault

    def watch(self) -> grpc.aio.UnaryStreamCall[control_pb2.WatchLoadRequest, control_pb2.Load]:
        """Its reports of load, until it ends them or `refuse` does."""
        self._watch = self.control.WatchLoad(control_pb2.WatchLoadRequest())
        return self._watch

    @property
    def refused(self) -> bool:
        """It refused a request's token since it was last reached."""
        return self._refused

    def refuse(self, fault: str) -> None:
        """It refused the token with a request. A watch that it let in before goes on there, so it is ended here: then
        the engine is asked anew, with the token."""
        if self._watch is not None and not self._refused:
            self.lose(fault)
            self._refused = True
            self._watch.cancel()

    def report(self, load: control_pb2.Load) -> None:
        if self.load is None or load.output_tokens_total != self.load.output_tokens_total:
            self.progressed_at = self._clock.monotonic()
        self.batch.report(load.running, self._clock.monotonic())
        self.load = load
        self._since_report = 0

    def lose(self, fault: str) -> None:
        self.batch.report(0, self._clock.monotonic())
        self.load = None
        self.fault = fault
        self._refused = False

    async def reconnect(self) -> None:
        """A new channel, so that the next attempt is made now and not when gRPC's own backoff allows it.

        An engine that drains ends its load reports while requests are still answered: they keep the old channel.
        """
        if self.in_flight == 0:
            old = self._channel
            try:
                self._open_channel()
            except CertificateError as fault:
                log.error("certificate not renewed; the one before stays", engine=self.name, fault=str(fault))
                return
            await old.close()

    async def close(self) -> None:
        await self._channel.close()

    def view(self) -> EngineView:
        broken = "failed too often" if self.state is EngineState.BROKEN else ""
        return EngineView(
            self.name, self.address, self.state, self.info, self.load, self.in_flight, self.fault or broken
        )


class Engines:
    """All engines of a router. The list is fixed; who of them is there is found out, again and again.

    Args:
        addresses: By name.
        clock: Wall time, whatever the service's: engines do not hurry with a simulated day.
        token: Bearer token for engines that ask for one.
        tls: None: engines are called in the clear. Its files are read anew for each new channel.
        make_breaker: A breaker for each engine.
        on_change: Called after every report and every loss.
        on_totals: Called with each report that has some, and the engine's name.
        on_energy_model: Called where an engine is reached and its energy model is another than before.
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
        on_totals: Callable[[str, EngineTotals], None] = lambda name, totals: None,
        on_energy_model: Callable[[], None] = lambda: None,
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
        self._on_totals = on_totals
        self._on_energy_model = on_energy_model
        self._first_backoff_seconds = first_backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._rng = rng or random.Random()
        self._members: dict[str, Engine] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to reach the engines; returns at once, whoever is there."""
        for name, address in self._addresses.items():
            engine = Engine(name, address, self._make_breaker(), self._token, self._tls, self.clock)
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
        """The least loaded engine that serves the model and accepts requests; None where there is none."""
        name = least_loaded(
            engine.candidate()
            for engine in self._members.values()
            if engine.name not in excluding and engine.accepts and engine.serves(model)
        )
        return None if name is None else self._members[name]

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
                    self._on_change()
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
            self._on_change()
            failures += 1
            pause = backoff_seconds(failures, self._first_backoff_seconds, self._max_backoff_seconds, self._rng)
            await asyncio.sleep(pause)
            await engine.reconnect()

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


def refused_token(said: str) -> str:
    """A fault, with what an operator can do about it."""
    return f"{said}; the engine refuses the router's token, PITH_ROUTER_ENGINE_TOKEN"


def model_identity(model: str, digest: str) -> str:
    """The model as cells name it."""
    return f"{model}@{digest[:DIGEST_CHARACTERS]}"
