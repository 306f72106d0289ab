"""An engine in one process: the loaded model, its decode loop, and the answers under way."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import structlog

from common.architecture.shape import ModelShape
from common.energy.calibration import Calibration
from common.energy.reading import Energy, EnergySource
from common.errors import resource_exhausted, unavailable
from common.scheduling import SchedulingLimits
from engine.backends.loading import load_backend
from engine.batching import ContinuousBatch
from engine.calibration import file as calibration_file
from engine.calibration.file import CalibrationFileError
from engine.config import EngineConfig
from engine.energy_counters import find_counter
from engine.kv_cache import BLOCK_SIZE_TOKENS
from engine.metering import ModelledMeter, choose_meter, with_resumed_part
from engine.request import Finished, GenerationRequest, Update, replay
from engine.sampling import SamplingParams
from engine.stream import AnswerStream, Handover
from engine.tokenizer import Tokenizer
from engine.weights import model_digest, read_config
from engine.worker import Worker

RETRY_AFTER_SECONDS = 1.0
"""What a caller is told when the queue is full: long enough for a batch to move on."""
INSTANCE_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a caller may know of the loaded model."""

    name: str
    digest: str
    architecture: str
    shape: ModelShape
    max_context_tokens: int
    max_output_tokens: int
    default_output_tokens: int
    backend: str
    device: str
    energy_source: EnergySource
    idle_watts: float | None
    accepts_messages: bool
    template_variables: tuple[str, ...]
    """What the chat template reads beside its own."""
    calibration: Calibration | None
    """Of this model on this device; None where there is none."""
    zone: str
    """Of the grid; empty where it was told none."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is."""

    running: int
    waiting: int
    free_blocks: int
    blocks: int
    output_tokens: int
    """Since the start."""
    requests: int
    """Since the start."""
    draining: bool
    instance_id: str
    """Drawn at the start: the totals count from there."""
    busy_seconds: float
    """In which steps ran, since the start."""
    idle_seconds: float
    """In which none did, up to the last second."""
    idle_energy: Energy | None
    """Of the idle time; None where unknown."""


class Place:
    """One request's place in the engine, from its arrival to its end."""

    def __init__(self, key: int, request_id: str, window_seconds: float) -> None:
        self.key = key
        self.request_id = request_id
        self.arrived_seconds = time.monotonic()
        self.stream = AnswerStream(window_seconds)
        self.aborted = False


class Engine:
    """A loaded model that serves. After the loading, it is used from one event loop."""

    def __init__(self, config: EngineConfig) -> None:
        """Loads and warms up, which takes as long as it takes: not for an event loop.

        Raises ModelError or DeviceError, in one line, where the model cannot be served.
        """
        directory = config.model_path
        model = read_config(directory)
        tokenizer = Tokenizer(directory, model.shape.vocab_size)
        context_tokens = min(model.max_context_tokens, config.max_context_tokens or model.max_context_tokens)
        digest = model_digest(directory)
        backend = load_backend(config, model, tokenizer, digest)
        prices = config.prices(backend.name)
        modelled = ModelledMeter(model.shape, prices, backend.bytes_per_parameter, backend.bytes_per_kv)
        calibration = _calibration(config, digest, backend.device)
        counter = find_counter(f"cuda:{config.gpu}" if backend.name == "cuda" else "cpu")
        meter = choose_meter(counter, modelled, calibration)
        limits = SchedulingLimits(config.max_batch, config.max_step_tokens)
        self.config = config
        self.tokenizer = tokenizer
        self.card = ModelCard(
            name=config.name,
            digest=digest,
            architecture=model.architecture,
            shape=model.shape,
            max_context_tokens=min(context_tokens, backend.blocks * BLOCK_SIZE_TOKENS),
            max_output_tokens=config.max_output_tokens,
            default_output_tokens=config.default_output_tokens,
            backend=backend.name,
            device=backend.device,
            energy_source=meter.source,
            idle_watts=meter.idle_watts,
            accepts_messages=tokenizer.accepts_messages,
            template_variables=tokenizer.template_variables,
            calibration=calibration,
            zone=config.zone,
        )
        self._instance_id = secrets.token_hex(INSTANCE_ID_BYTES)
        self._blocks = backend.blocks
        self._modelled = modelled
        self._end_token_ids = model.end_token_ids
        self._batch = ContinuousBatch(backend, tokenizer, meter, limits, model.end_token_ids, time.monotonic)
        self._worker: Worker | None = None
        self._on_finished: Callable[[Finished], None] = lambda finished: None
        self._places: dict[int, Place] = {}
        self._keys = itertools.count()
        self._requests = 0
        self._draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    def start(self, on_finished: Callable[[Finished], None]) -> None:
        """Starts the decode loop, for the event loop that this runs on.

        `on_finished` hears of every answer that ends, also of those whose client is gone.
        """
        self._on_finished = on_finished
        self._worker = Worker(self._batch, Handover(asyncio.get_running_loop(), self._receive))
        self._worker.start()

    def stop(self) -> None:
        """Ends the decode loop; returns once its thread has ended."""
        if self._worker is not None:
            self._worker.stop()

    @contextmanager
    def place(self, request_id: str) -> Iterator[Place]:
        """A place for one request; leaving it stops the request, if it still runs, within one step.

        Raises PithError: RESOURCE_EXHAUSTED where max_batch + max_queue requests are here already, UNAVAILABLE
        while draining.
        """
        if self._draining:
            raise unavailable("DRAINING", "the engine is draining")
        most = self.config.max_batch + self.config.max_queue
        if len(self._places) >= most:
            raise resource_exhausted("QUEUE_FULL", f"{most} requests run or wait already", RETRY_AFTER_SECONDS)
        place = Place(next(self._keys), request_id, self.config.delta_window_seconds)
        self._places[place.key] = place
        self._empty.clear()
        self._requests += 1
        try:
            yield place
        finally:
            del self._places[place.key]
            if not self._places:
                self._empty.set()
            if not place.stream.ended:
                self._running_worker.abort(place.key)

    def request(
        self,
        place: Place,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        max_output_tokens: int,
        stop: tuple[str, ...],
    ) -> GenerationRequest:
        """The request that the decode loop gets for a place.

        The prompt must leave room for a token in the context; `max_output_tokens` is cut to that room.
        """
        room_tokens = self.card.max_context_tokens - len(prompt_token_ids)
        return GenerationRequest(
            key=place.key,
            prompt_token_ids=prompt_token_ids,
            sampling=sampling,
            max_output_tokens=min(max_output_tokens, self.card.max_output_tokens, room_tokens),
            stop=stop,
            arrived_seconds=place.arrived_seconds,
        )

    def replay(self, request: GenerationRequest) -> Update | None:
        """As `engine.request.replay`: what is left of an answer that was resumed at its very end."""
        return replay(request, self.tokenizer.detokenizer(), self._end_token_ids, self.card.energy_source)

    def submit(self, place: Place, request: GenerationRequest, rest: Update | None = None) -> None:
        """Hands a request to the decode loop; its answer comes through `place.stream`.

        `rest`, of `replay`, is all of an answer that has nothing to decode.
        """
        place.stream.go_on_from(len(request.resumed_token_ids))
        if rest is not None:
            self._receive([rest])
            return
        self._running_worker.submit(request)
        if place.aborted:
            self._running_worker.abort(place.key)

    def abort(self, request_id: str) -> bool:
        """Ends the requests of this id within one step, as ABORTED; whether there are any."""
        found = [place for place in self._places.values() if place.request_id == request_id]
        for place in found:
            # Remembered, for a request whose prompt is still being tokenised.
            place.aborted = True
            self._running_worker.abort(place.key)
        return bool(found)

    async def drain(self) -> int:
        """Takes no new requests and returns when the last of those here has ended: how many they were."""
        self._draining = True
        here = len(self._places)
        await self._empty.wait()
        return here

    def load(self) -> Load:
        occupancy = self._running_worker.occupancy
        return Load(
            running=occupancy.running,
            waiting=max(0, sum(not place.stream.ended for place in self._places.values()) - occupancy.running),
            free_blocks=occupancy.free_blocks,
            blocks=self._blocks,
            output_tokens=occupancy.output_tokens,
            requests=self._requests,
            draining=self._draining,
            instance_id=self._instance_id,
            busy_seconds=occupancy.busy_seconds,
            idle_seconds=occupancy.idle_seconds,
            idle_energy=occupancy.idle_energy,
        )

    @property
    def _running_worker(self) -> Worker:
        if self._worker is None:
            raise RuntimeError("the engine has not been started")
        return self._worker

    def _receive(self, updates: Sequence[Update]) -> None:
        for update in updates:
            if update.finished is not None:
                # This engine's counters tell of its own work, its clients' accounts of the whole answer.
                self._on_finished(update.finished)
                update = replace(update, finished=with_resumed_part(update.finished, self._modelled))
            # The client may be gone while its last step was under way.
            if place := self._places.get(update.key):
                place.stream.push(update)


def _calibration(config: EngineConfig, digest: str, device: str) -> Calibration | None:
    try:
        return calibration_file.load(config.cache_directory, digest, device)
    except CalibrationFileError as fault:
        structlog.get_logger("engine").warning("calibration not used", why=str(fault))
        return None
