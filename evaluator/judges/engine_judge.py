"""A judge on one of Pith's engines: its choice is read from the probabilities of its first token, not from prose."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import grpc
from google.protobuf.struct_pb2 import Struct
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

from common.errors import from_rpc_error
from common.limits import MAX_LOGPROBS
from common.model_identity import model_identity
from evaluator.judges.budget import JudgeBudget
from evaluator.judges.judge_model import Failure, JudgeError, Verdict
from evaluator.judges.judge_prompt import CHOICES, FIRST, TIE, JudgePrompt

MIN_CHOICE_PROBABILITY = 0.5
"""Of all choices together: a model that would rather say something else has not chosen."""
# A letter is another token at the start of a text, after a space, and inside a text where no space is before it.
_CONTEXTS = ("", " ", "\n")
_ROUNDING = 1e-3

_FAILURES: Mapping[grpc.StatusCode, Failure] = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Failure.LIMITED,
    grpc.StatusCode.DEADLINE_EXCEEDED: Failure.TIMEOUT,
    grpc.StatusCode.INVALID_ARGUMENT: Failure.REJECTED,
    grpc.StatusCode.NOT_FOUND: Failure.REFUSED,
    grpc.StatusCode.UNAUTHENTICATED: Failure.REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: Failure.REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: Failure.REFUSED,
}

Reply = TypeVar("Reply")


class EngineJudge:
    """Asks for one token and weighs the choices' probabilities: the preference is P(first) + P(tie) / 2, as a share of
    the probability of all choices.

    Args:
        channel: from `common.grpc_client.connect`, without retries of its own.
        model: that must be loaded; empty: whatever is.
        deadline_seconds: of a call, wall time.
    """

    way = f"probabilities of one token, of at least {MIN_CHOICE_PROBABILITY} together, among {MAX_LOGPROBS}"

    def __init__(self, channel: grpc.aio.Channel, model: str, deadline_seconds: float, budget: JudgeBudget) -> None:
        self._channel = channel
        self._inference = inference_pb2_grpc.InferenceStub(channel)
        self._control = control_pb2_grpc.ControlStub(channel)
        self._model = model
        self._deadline_seconds = deadline_seconds
        self._budget = budget
        self._choices: tuple[str, Mapping[int, str]] | None = None
        self._learning = asyncio.Lock()

    async def identify(self) -> str:
        info = await self._called(self._control.GetModelInfo, control_pb2.GetModelInfoRequest())
        if self._model not in ("", info.model):
            raise JudgeError(Failure.REFUSED, "another model than judge_model is loaded")
        return model_identity(info.model, info.model_digest)

    async def choose(self, prompt: JudgePrompt) -> Verdict:
        async with self._learning:
            model, letters = self._choices or await self._learn_choices()
        variables = Struct()
        # What a model thinks first is no choice.
        variables.update({"enable_thinking": False})
        turns = [
            text_pb2.Message(role=text_pb2.ROLE_SYSTEM, content=prompt.system),
            text_pb2.Message(role=text_pb2.ROLE_USER, content=prompt.user),
        ]
        reply = await self._generate(
            messages=text_pb2.Messages(messages=turns, template_variables=variables),
            sampling=text_pb2.Sampling(logprobs=MAX_LOGPROBS, seed=0),
        )
        if model_identity(reply.started.model, reply.started.model_digest) != model:
            self._choices = None
            raise JudgeError(Failure.MALFORMED, "another model was loaded in the meantime")
        return Verdict(_preference(reply, letters), model)

    async def close(self) -> None:
        await self._channel.close()

    async def _learn_choices(self) -> tuple[str, Mapping[int, str]]:
        """The model, and which letter each of its tokens for a choice is: by what it makes of texts that differ by the
        letter alone."""
        letter_of: dict[int, str] = {}
        models = set()
        for context in _CONTEXTS:
            spelt = []
            for letter in CHOICES:
                reply = await self._generate(text=context + letter, sampling=text_pb2.Sampling(seed=0))
                models.add(model_identity(reply.started.model, reply.started.model_digest))
                spelt.append(tuple(reply.started.prompt_token_ids))
            letter_of.update(_letters(spelt))
        if len(models) != 1 or set(letter_of.values()) != set(CHOICES):
            raise JudgeError(Failure.REFUSED, "it has no single token for each choice")
        self._choices = models.pop(), letter_of
        return self._choices

    async def _generate(
        self,
        *,
        sampling: text_pb2.Sampling,
        messages: text_pb2.Messages | None = None,
        text: str = "",
    ) -> inference_pb2.GenerateResponse:
        request = inference_pb2.GenerateRequest(
            model=self._model, sampling=sampling, limits=text_pb2.Limits(max_output_tokens=1)
        )
        if messages is None:
            request.text = text
        else:
            request.messages.CopyFrom(messages)
        self._budget.take()
        reply = await self._called(self._inference.Generate, request)
        finished = reply.finished
        self._budget.spent(
            finished.energy.joules if finished.HasField("energy") else None,
            finished.usage.prompt_tokens + finished.usage.output_tokens,
        )
        return reply

    async def _called(self, call: Callable[..., Awaitable[Reply]], request: object) -> Reply:
        try:
            return await call(request, timeout=self._deadline_seconds)
        except grpc.RpcError as error:
            told = from_rpc_error(error)
            failure = _FAILURES.get(told.code, Failure.UNREACHABLE)
            raise JudgeError(failure, f"its engine answers {told.code.name}", told.retry_after_seconds) from error


def _letters(spelt: Sequence[tuple[int, ...]]) -> Mapping[int, str]:
    """The token of each choice, where texts that differ by their letter alone differ by one token alone; else none."""
    if len({len(tokens) for tokens in spelt}) != 1:
        return {}
    differing = [column for column in zip(*spelt, strict=True) if len(set(column)) > 1]
    if len(differing) != 1 or len(set(differing[0])) != len(CHOICES):
        return {}
    return dict(zip(differing[0], CHOICES, strict=True))


def _preference(reply: inference_pb2.GenerateResponse, letters: Mapping[int, str]) -> float:
    """How far the first answer is preferred. Raises JudgeError."""
    if not reply.token_ids or not reply.logprobs:
        if reply.finished.reason == text_pb2.FINISH_REASON_STOP:
            raise JudgeError(Failure.UNPARSABLE, "it says nothing")
        raise JudgeError(Failure.MALFORMED, "its engine tells no logprobs")
    first = reply.logprobs[0]
    logprob_of = {one.token_id: one.logprob for one in first.alternatives} | {reply.token_ids[0]: first.logprob}
    # A comparison with NaN is never true.
    if not all(logprob <= _ROUNDING for logprob in logprob_of.values()):
        raise JudgeError(Failure.MALFORMED, "its engine tells logprobs that are none")
    probability = dict.fromkeys(CHOICES, 0.0)
    for token_id, logprob in logprob_of.items():
        if token_id in letters:
            probability[letters[token_id]] += math.exp(logprob)
    total = sum(probability.values())
    if total > 1 + _ROUNDING:
        raise JudgeError(Failure.MALFORMED, "its engine tells probabilities that add up to more than 1")
    if total < MIN_CHOICE_PROBABILITY:
        raise JudgeError(Failure.UNPARSABLE, "it would rather say something else than one of its choices")
    return (probability[FIRST] + probability[TIE] / 2) / total
