"""The life of one request in the engine: what it asks, the text that its tokens become, and why it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from common.energy.reading import Energy, EnergySource
from engine.sampling import History, SamplingParams, TokenLogprob
from engine.tokenizer import Detokenizer


class FinishReason(StrEnum):
    """Why an answer ended; the names of pith.common.v1.FinishReason without its prefix."""

    STOP = "STOP"
    STOP_STRING = "STOP_STRING"
    LENGTH = "LENGTH"
    ABORTED = "ABORTED"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request that has passed validation."""

    key: int
    """Unique in this process; names the request between the event loop and the decode loop."""
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams
    max_output_tokens: int
    """At least 1; prompt and answer together fit the context."""
    stop: tuple[str, ...]
    arrived_seconds: float
    """On the clock of the decode loop."""
    resumed_token_ids: Sequence[int] = ()
    """The beginning of the answer, made by an engine that died."""
    delivered_bytes: int = 0
    """How much of the text of `resumed_token_ids`, in UTF-8, its client has."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How an answer ended and what it took."""

    reason: FinishReason
    stop: str
    """The stop string that was reached, else empty."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's, those whose keys and values another request had brought to the cache."""
    output_tokens: int
    """Of the whole answer, also of what it was resumed from; with the end token, which costs a step like any other."""
    queue_seconds: float
    first_token_seconds: float
    """From arrival; 0 where there was no token."""
    decode_seconds: float
    """From the first token to the last."""
    busy_seconds: float
    energy: Energy | None
    resumed_tokens: int = 0
    """Of the output tokens, those that another engine made."""
    preemptions: int = 0
    """How often it gave its blocks back to older answers, to be computed again."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one step added to one answer."""

    key: int
    text: str
    token_ids: tuple[int, ...]
    finished: Finished | None
    failed: bool = False
    """A fault of the decode loop ended the answer; the log has it."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, where they are asked for."""


class StopStrings:
    """Finds the first stop string to become complete, however the text is cut into pieces.

    Text that could be the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self._longest = max(map(len, stop), default=0)

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that is now sure to be part of the answer, and the stop string that ends it, if one does."""
        if not self._stop or not text:
            return text, None
        text = self._held + text
        ends = [(start + len(stop), -len(stop), stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            end, _, stop = min(ends)
            self._held = ""
            return text[: end - len(stop)], stop
        held = self._undecided(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def flush(self) -> str:
        """What was held back, at the end of an answer that no stop string ends."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


class Answer:
    """One request in the decode loop: its blocks, its progress, its bill."""

    def __init__(self, request: GenerationRequest, detokenizer: Detokenizer) -> None:
        self.request = request
        self.token_ids = list(request.prompt_token_ids)
        """The prompt and what has been generated."""
        self.block_keys: list[bytes] = []
        """Names of the full blocks of `token_ids`."""
        self.block_table: list[int] = []
        self.context_tokens = 0
        """How many of `token_ids`, from the first, have their keys and values in `block_table`."""
        self.cached_tokens = 0
        """Tokens of the prompt that were in the cache when this answer first came to them."""
        self._reached_tokens = 0
        self.preemptions = 0
        self.admitted_seconds: float | None = None
        self.begun = False
        """Whether it had a step since it joined the batch."""
        self.busy_seconds = 0.0
        self.joules: float | None = 0.0
        params = request.sampling
        self.history = History(params, request.prompt_token_ids) if params.depends_on_history else None
        self._detokenizer = detokenizer
        self._stop_strings = StopStrings(request.stop)
        self._first_token_seconds: float | None = None
        self._last_token_seconds = 0.0
        released = "".join([self._extend(token_id, None)[0] for token_id in request.resumed_token_ids])
        self._undelivered = released.encode()[request.delivered_bytes :].decode()

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def pending_tokens(self) -> int:
        """Tokens to bring to the cache before the next one can be chosen: 1 while decoding, more in prefill."""
        return len(self.token_ids) - self.context_tokens

    def find(self, context_tokens: int) -> None:
        """The first `context_tokens` are in the cache, of which another answer computed those beyond its own."""
        reached = max(self._reached_tokens, self.context_tokens)
        self.cached_tokens += max(0, min(context_tokens, len(self.request.prompt_token_ids)) - reached)
        self.context_tokens = context_tokens

    def lose(self) -> None:
        """Nothing is in the cache any more."""
        self._reached_tokens = max(self._reached_tokens, self.context_tokens)
        self.context_tokens = 0
        self.begun = False

    def take(
        self, token_id: int, end_token_ids: frozenset[int], now_seconds: float
    ) -> tuple[str, FinishReason | None, str]:
        """Takes the next token: the text it releases, why the answer ends with it (if it does), the stop string."""
        self._last_token_seconds = now_seconds
        if self._first_token_seconds is None:
            self._first_token_seconds = now_seconds
        reason = None
        if token_id in end_token_ids:
            reason = FinishReason.STOP
        elif self.output_tokens + 1 == self.request.max_output_tokens:
            reason = FinishReason.LENGTH
        text, stop = self._extend(token_id, reason)
        text, self._undelivered = self._undelivered + text, ""
        if stop is not None:
            return text, FinishReason.STOP_STRING, stop
        return text, reason, ""

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the token chosen last, where they are asked for."""
        return () if self.history is None or self.history.chosen is None else (self.history.chosen,)

    def _extend(self, token_id: int, reason: FinishReason | None) -> tuple[str, str | None]:
        """The text that a token releases, all of it at a `reason` to end, and the stop string that it completes."""
        self.token_ids.append(token_id)
        if self.history is not None:
            self.history.push(token_id)
        text, stop = self._stop_strings.push(self._detokenizer.push(token_id))
        return (text, stop) if stop is not None or reason is None else self._last_text(text)

    def _last_text(self, text: str) -> tuple[str, str | None]:
        rest, stop = self._stop_strings.push(self._detokenizer.flush())
        return text + rest + self._stop_strings.flush(), stop

    def charge(self, busy_seconds: float, joules: float | None) -> None:
        """Adds a step's share. Energy that is unknown once stays unknown."""
        self.begun = True
        self.busy_seconds += busy_seconds
        self.joules = None if self.joules is None or joules is None else self.joules + joules

    def finished(self, reason: FinishReason, stop: str, source: EnergySource, now_seconds: float) -> Finished:
        """The account of the answer, which ends now."""
        request, first_seconds = self.request, self._first_token_seconds
        return Finished(
            reason=reason,
            stop=stop,
            prompt_tokens=len(request.prompt_token_ids),
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
            queue_seconds=(now_seconds if self.admitted_seconds is None else self.admitted_seconds)
            - request.arrived_seconds,
            first_token_seconds=0.0 if first_seconds is None else first_seconds - request.arrived_seconds,
            decode_seconds=0.0 if first_seconds is None else self._last_token_seconds - first_seconds,
            busy_seconds=self.busy_seconds,
            energy=None if self.joules is None else Energy(self.joules, source),
            resumed_tokens=len(request.resumed_token_ids),
            preemptions=self.preemptions,
        )


class ResumeError(ValueError):
    """A request cannot be resumed as it says; `field` of Resume is at fault, the text says why."""

    def __init__(self, field: str, fault: str) -> None:
        super().__init__(fault)
        self.field = field


def replay(
    request: GenerationRequest, detokenizer: Detokenizer, end_token_ids: frozenset[int], source: EnergySource
) -> Update | None:
    """What is left of an answer whose resumed tokens are all of it already; None where there are tokens to come.

    Raises ResumeError where the answer had ended before the last of its tokens, or `delivered_bytes` cannot be right.
    """
    answer = Answer(replace(request, resumed_token_ids=(), delivered_bytes=0), detokenizer)
    released, reason, stop = "", None, ""
    for count, token_id in enumerate(request.resumed_token_ids, start=1):
        text, reason, stop = answer.take(token_id, end_token_ids, request.arrived_seconds)
        released += text
        if reason is not None and count < len(request.resumed_token_ids):
            raise ResumeError("token_ids", f"the answer ends with the first {count} ({reason}); none may follow")
    encoded, delivered_bytes = released.encode(), request.delivered_bytes
    if delivered_bytes > len(encoded):
        raise ResumeError("delivered_bytes", f"is {delivered_bytes}; the tokens have released {len(encoded)} bytes")
    # A byte of the form 10xxxxxx goes on with a character.
    if delivered_bytes < len(encoded) and encoded[delivered_bytes] & 0xC0 == 0x80:
        raise ResumeError("delivered_bytes", f"is {delivered_bytes}, inside of a character")
    if reason is None:
        return None
    finished = replace(
        answer.finished(reason, stop, source, request.arrived_seconds), resumed_tokens=len(request.resumed_token_ids)
    )
    return Update(request.key, encoded[delivered_bytes:].decode(), (), finished)
