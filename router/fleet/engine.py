"""One engine: its channel, what it said of itself, and a router's requests there."""

from __future__ import annotations

from collections.abc import Container

import grpc
import structlog
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2

from common.certificates import CertificateError
from common.client_tls import ClientTls
from common.clock import Clock
from common.grpc_client import connect
from common.limits import MAX_ID_CHARACTERS
from common.model_identity import model_identity
from router.convert import to_energy_model
from router.fleet.balance import Candidate
from router.fleet.batch import BusyBatch
from router.fleet.breaker import Breaker
from router.fleet.view import EngineState, EngineView
from router.optimizer.pricing import EnergyModel

STREAM_GENERATE = "/pith.engine.v1.Inference/StreamGenerate"
RETRY_AFTER_SECONDS = 1.0
"""What a caller is told when no engine is there: about what an engine needs to come back after a restart."""

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
        zone: Of the grid, as it last said; empty for the default's, also where the one that it named is not known.
    """

    def __init__(
        self,
        name: str,
        address: str,
        breaker: Breaker,
        token: str | None,
        tls: ClientTls | None,
        clock: Clock,
        zones: Container[str],
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
        self.zone = ""
        self._zones = zones
        self._unknown_zone = ""
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

    def candidate(self, grams: float = 0.0) -> Candidate:
        load = self.load or control_pb2.Load()
        there = load.running + load.waiting
        waiting = 0 if _holds_another(load) else load.waiting
        return Candidate(self.name, there, self._since_report, self.in_flight, load.max_running, waiting, grams)

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
        self.zone = self._read_zone(info.zone)
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

    def _read_zone(self, named: str) -> str:
        if named in self._zones:
            return named
        # Said once, however often the engine is lost and found again.
        if named and named != self._unknown_zone:
            self._unknown_zone = named
            log.warning(
                "the engine's zone is not one of PITH_ROUTER_ZONES; its energy is charged by PITH_ROUTER_INTENSITY",
                engine=self.name,
                zone=named[:MAX_ID_CHARACTERS],
            )
        return ""

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
            self.name, self.address, self.state, self.info, self.load, self.in_flight, self.fault or broken, self.zone
        )


def _holds_another(load: control_pb2.Load) -> bool:
    """Whether the KV cache has room for one more request like those that run, as far as the engine tells: then who
    waits there has just come, and joins the batch in its next step."""
    used = load.kv_blocks_total - load.kv_blocks_free
    return load.kv_blocks_total > 0 and load.kv_blocks_free * load.running >= used


def refused_token(said: str) -> str:
    """A fault, with what an operator can do about it."""
    return f"{said}; the engine refuses the router's token, PITH_ROUTER_ENGINE_TOKEN"
