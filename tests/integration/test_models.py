"""A directive that has another model answer, from its first sample to the loss of that model's engine: two real engines
with weights of their own, a real router and a real evaluator.

The model asked for says "4 legs". The other one says "4" and spends three times as much on each token, where a
kilowatt-hour emits a tenth: it saves no energy, and most of the carbon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pith.engine.v1 import control_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, policies_pb2, reports_pb2
from safetensors.numpy import load_file, save_file

from common.clock import ManualClock
from common.energy.calibration import Calibration
from common.energy.reading import EnergySource
from common.energy.sweet_spot import SweetSpot
from common.model_identity import model_identity
from engine.backends.processor import processor_name
from engine.calibration import file as calibration_file
from engine.weights import model_digest
from tests.engine.tiny_model import END, byte_tokenizer, write_model
from tests.integration.evaluators.evaluating import Evaluator, evaluator
from tests.integration.served_engine import Served, serving
from tests.router.running import Running, ask, running

SAMPLES = 8
"""A batch of the evaluator's. Without an error, one opens a directive at FLOOR."""
FLOOR = 0.5
SAID = {"large": "4 legs", "small": "4"}
JOULES_A_TOKEN = {"large": 10.0, "small": 30.0}
ZONES = ("clean=constant:CLEAN:36",)
"""That of the small model's engine; the other stands where it is 360."""


def saying(directory: Path, text: str, seed: int, layers: int) -> Path:
    """A model that answers with that text, in which no character is twice, whatever it is asked."""
    path = write_model(directory, seed, num_hidden_layers=layers, tie_word_embeddings=False) / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name][:] = 0  # what remains is the embedding of the last token, at first the template's ":"
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    head[:] = 0
    for last, token in pairwise([*byte_tokenizer().encode(f":{text}").ids, END]):
        state = embedding[last] / np.sqrt(np.mean(embedding[last] ** 2) + 1e-5) * tensors["model.norm.weight"]
        head[token] = state / (state @ state) * 60
    save_file(tensors, path)
    return directory


def calibrate(model: Path, joules_a_token: float, cache: Path) -> None:
    calibration = Calibration(
        model=SweetSpot(input_joules=joules_a_token / 10, output_joules=joules_a_token),
        source=EnergySource.MODELLED,
        model_digest=model_digest(model),
        device=f"{processor_name()}, threads: 1",
        measured_at=datetime(2026, 3, 1, tzinfo=UTC),
        cells=12,
        held_out_mape=1.0,
        corner_mape=None,
        max_batch=16,
        max_input_tokens=256,
        max_output_tokens=256,
    )
    calibration_file.save(calibration, cache)


@dataclass
class World:
    """Both engines behind a router; that of the small model can be stopped and started."""

    folder: Path
    large: Served
    router: Running
    evaluator: Evaluator
    small: Served
    of_small: AsyncExitStack
    asked: int = 0

    @property
    def answers(self) -> dict[str, int]:
        """That each engine has given since it started."""
        count = "pith_engine_finished_answers_total"
        return {
            name: int(sum(s.value for m in served.metrics.registry.collect() for s in m.samples if s.name == count))
            for name, served in (("large", self.large), ("small", self.small))
        }

    async def generate(self) -> Any:
        """An answer to a user of the large model, with what the sample of it is graded by."""
        self.asked += 1
        request = ask(f"Legs of dog {self.asked}?", model="large", reference="4", request_id=f"r{self.asked}")
        return await self.router.generation.Generate(request)

    async def serve(self, count: int) -> list[tuple[str, str, str]]:
        """(directive, engine, text) of each answer, later than anything before; their samples are kept by then."""
        await self.router.clock.advance(1)
        found = [await self.generate() for _ in range(count)]
        assert await self.router.router.ledger.flush()
        return [told(answer) for answer in found]

    async def evaluate(self) -> list[str]:
        await self.router.clock.advance(1)
        return await self.evaluator.evaluate()

    async def explain(self) -> tuple[Any, dict[str, Any]]:
        """The whole, and the candidates by directive."""
        asked = policies_pb2.ExplainRequest(request=ask(model="large"))
        reply = await self.router.policies.Explain(asked)
        return reply, {candidate.directive: candidate for candidate in reply.candidates}

    async def until_planned(self, directive: str) -> None:
        async with asyncio.timeout(30):
            while (await self.explain())[1][directive].planned_share != pytest.approx(1.0):
                pass

    async def start(self, model: str, **settings: Any) -> None:
        """At the address where the small model's engine was."""
        self.small = await self.of_small.enter_async_context(
            served(self.folder, model, zone="clean", listen=self.small.address, **settings)
        )


def served(folder: Path, name: str, **settings: Any) -> Any:
    return serving(folder / name, cache_directory=folder / "cache", max_output_tokens=64, **settings)


def told(answer: Any) -> tuple[str, str, str]:
    return answer.started.decision.directive, answer.started.engine, answer.text


ASKED_FOR = ("L0", "large", "4 legs")
INSTEAD = ("tiny", "small", "4")


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[tuple[World, str]]:
    """And what the small model is called."""
    for seed, (name, text) in enumerate(SAID.items()):
        calibrate(saying(folder / name, text, seed, layers=2 - seed), JOULES_A_TOKEN[name], folder / "cache")
    saying(folder / "liar", "5", seed=7, layers=1)
    identity = model_identity("small", model_digest(folder / "small"))
    async with AsyncExitStack() as stack:
        large = await stack.enter_async_context(served(folder, "large"))
        of_small = await stack.enter_async_context(AsyncExitStack())
        small = await of_small.enter_async_context(served(folder, "small", zone="clean"))
        engines: Any = {"large": large, "small": small}
        clock = ManualClock()
        # The energy is by lengths and the same in every run; what answers take of the device's time is not.
        settings: Any = {"clock": clock, "zones": ZONES, "embodied_grams": 0.0}
        router = await stack.enter_async_context(running(folder, engines, **settings))
        directive = directives_pb2.Directive(name="tiny", model=identity)
        directives = directives_pb2_grpc.DirectivesStub(router.channel)
        await directives.CreateDirective(directives_pb2.CreateDirectiveRequest(directive=directive, reason="test"))
        await router.policy(directives=["tiny"], floor=FLOOR, sample_share=1.0, grader="numeric")
        judging = await evaluator(stack, router.address, clock)
        yield World(folder, large, router, judging, small, of_small), identity


async def test_another_model_is_judged_answers_and_is_done_without(tmp_path: Path) -> None:
    async with open_world(tmp_path) as (world, identity):
        assert set(await world.serve(SAMPLES)) == {ASKED_FOR}
        reply, candidates = await world.explain()
        assert (reply.decision.directive, reply.decision.model) == ("L0", "")
        assert "no quality bound for it yet" in candidates["tiny"].why

        events = await world.evaluate()
        assert any("tiny opened" in event for event in events), events
        assert world.answers == {"large": SAMPLES, "small": SAMPLES}, "each once: those of users were at hand"

        # What it saves is the grid that its engine stands in.
        reply, candidates = await world.explain()
        assert (reply.decision.directive, reply.decision.model) == ("tiny", identity)
        assert any(step.startswith("tiny: open, bound ") for step in reply.steps), reply.steps
        tiny, l0 = candidates["tiny"], candidates["L0"]
        assert (tiny.open, tiny.planned_share, l0.planned_share) == (True, pytest.approx(1.0), 0.0)
        assert tiny.predicted_energy.joules == pytest.approx(3 * l0.predicted_energy.joules)
        assert tiny.predicted_grams == pytest.approx(3 / 10 * l0.predicted_grams)
        assert "with 100 % of their output tokens, priced at a batch of" in tiny.priced_by

        # What it has answered, the model asked for answers for the evaluator.
        assert set(await world.serve(4)) == {INSTEAD}
        assert world.answers == {"large": SAMPLES, "small": SAMPLES + 4}
        await world.evaluate()
        assert world.answers == {"large": SAMPLES + 4, "small": SAMPLES + 4}

        # Its engine ends: those in flight end well, all others are answered by the model asked for.
        async def drain() -> None:
            await world.small.control.Drain(control_pb2.DrainRequest())

        *answers, _ = await asyncio.gather(*(world.generate() for _ in range(12)), drain())
        assert {told(answer) for answer in answers} <= {ASKED_FOR, INSTEAD}
        await world.of_small.aclose()
        assert set(await world.serve(4)) == {ASKED_FOR}
        await world.until_planned("L0")
        reply, candidates = await world.explain()
        away = f"tiny: closed, no engine of {identity} accepts requests at present"
        assert away in reply.steps
        assert (candidates["tiny"].open, candidates["tiny"].why, reply.decision.directive) == (False, away, "L0")
        assert candidates["tiny"].bound > FLOOR, "it is still known to be good"

        assert (await world.evaluate())[-1] == "done: 0 samples scored, 0 not", "nobody could answer them"

        # In its place come other weights by its name, of which nothing is known.
        await world.start("liar", model_name="small")
        await world.router.until_ready(2)
        assert set(await world.serve(4)) == {ASKED_FOR}
        assert (await world.explain())[1]["tiny"].why == away
        assert world.answers["small"] == 0
        await world.of_small.aclose()

        await world.start("small")
        await world.until_planned("tiny")
        assert set(await world.serve(4)) == {INSTEAD}

        # Whoever answered, what was asked for is what is accounted for.
        report = await world.router.report(reports_pb2.DIMENSION_MODEL)
        large = model_identity("large", model_digest(tmp_path / "large"))
        assert {row.model: row.requests for row in report.rows} == {large: world.asked}
