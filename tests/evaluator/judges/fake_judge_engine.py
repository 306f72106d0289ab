"""An engine whose model compares as a test says: real gRPC, logprobs of one token, no model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from pith.common.v1 import energy_pb2, text_pb2
from pith.engine.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

from common.errors import STATUS_DETAILS_KEY, PithError, to_status

BEGIN = 1
# At a text's start, after a space, inside a text: as SentencePiece tells them apart.
IDS = {"A": 10, "B": 11, "C": 12, " A": 20, " B": 21, " C": 22, "I": 30, "Sure": 31}
Odds = Mapping[str, float]


def by_words(text: str) -> Callable[[str, str], Odds]:
    """Likes an answer that holds the text, nine times in ten."""

    def odds(first: str, second: str) -> Odds:
        if (text in first) == (text in second):
            return {"A": 0.2, "B": 0.2, "C": 0.6}
        return {"A": 0.9, "B": 0.1} if text in first else {"A": 0.1, "B": 0.9}

    return odds


class FakeJudgeEngine(inference_pb2_grpc.InferenceServicer, control_pb2_grpc.ControlServicer):
    """Gives the pieces of `odds` (first answer, second answer) their probabilities, the likeliest as its answer."""

    def __init__(self, odds: Callable[[str, str], Odds]) -> None:
        self.odds = odds
        self.model, self.digest = "judge", "f" * 64
        self.joules: float | None = 10.0
        self.merged = False
        """Its tokenizer has no token of its own for a letter."""
        self.faults: list[PithError] = []
        self.questions: list[inference_pb2.GenerateRequest] = []
        self.spelt = 0
        self.tokens: list[str] = []
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def __aenter__(self) -> FakeJudgeEngine:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServicer_to_server(self, self._server)
        control_pb2_grpc.add_ControlServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        await self._server.stop(None)

    async def GetModelInfo(self, request: Any, context: Any) -> control_pb2.ModelInfo:
        return control_pb2.ModelInfo(model=self.model, model_digest=self.digest)

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> inference_pb2.GenerateResponse:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        reply = inference_pb2.GenerateResponse()
        reply.started.model, reply.started.model_digest = self.model, self.digest
        reply.finished.reason = text_pb2.FINISH_REASON_LENGTH
        if self.joules is not None:
            reply.finished.energy.joules = self.joules
            reply.finished.energy.source = energy_pb2.ENERGY_SOURCE_MEASURED
        if request.WhichOneof("input") == "text":
            self.spelt += 1
            reply.started.prompt_token_ids.extend(self._spell(request.text))
            return reply
        self.questions.append(request)
        if self.faults:
            fault = self.faults.pop(0)
            status = to_status(fault)
            await context.abort(fault.code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))
        user = request.messages.messages[-1].content
        odds = self.odds(_shown(user, "ANSWER A"), _shown(user, "ANSWER B"))
        likeliest = max(odds, key=lambda piece: odds[piece])
        reply.text = likeliest
        reply.token_ids.append(IDS[likeliest])
        told = reply.logprobs.add(logprob=_log(odds[likeliest]))
        for piece, probability in odds.items():
            told.alternatives.add(token_id=IDS[piece], logprob=_log(probability))
        return reply

    def _spell(self, text: str) -> list[int]:
        letter = text[-1]
        if self.merged:
            return [BEGIN, 40, ord(letter), ord(letter) + 100]
        if text[:-1] == "\n":
            return [BEGIN, 5, IDS[letter]]
        return [BEGIN, *([6] if text[:-1] else []), IDS[" " + letter]]


def _shown(user: str, name: str) -> str:
    _, _, rest = user.partition(f"BEGIN {name} ")
    mark, _, rest = rest.partition("\n")
    return rest.partition(f"\nEND {name} {mark}")[0]


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf if probability == 0 else probability
